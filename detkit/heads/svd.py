"""Truncated SVD of fully connected layers (Girshick 2015, section 3.1): quicker detection, no training.

A layer's weights W (v outputs, u inputs) are close to U_t S_t V_t^T, of which the t largest singular values are kept.
It becomes two layers, S_t V_t^T without bias and U_t with its bias (compress_net.py, papers.md 2.2): t(u + v)
multiplications for each region instead of uv.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from detkit.errors import ConfigError


class FactoredLinear(nn.Sequential):
    """A linear layer that is the product of two: inputs -> rank without bias, rank -> outputs."""

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool = True) -> None:
        super().__init__(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))

    @classmethod
    def like(cls, layer: nn.Linear, rank: int) -> FactoredLinear:
        return cls(layer.in_features, layer.out_features, rank, layer.bias is not None)


@torch.no_grad()
def factorise(layer: nn.Linear, rank: int) -> FactoredLinear:
    """The best approximation of a layer by a product of that rank; exact at min(inputs, outputs).

    U comes from the eigenvectors of W W^T, and S V^T is U^T W: a tenth of the time of a whole SVD. Small
    singular values lose digits in W W^T, but not in the product, which is a projection of W whatever U is.
    """
    weight = layer.weight.double()
    _, vectors = torch.linalg.eigh(weight @ weight.T)
    u = vectors.flip(1)[:, :rank]  # the largest first
    result = FactoredLinear.like(layer, rank).to(layer.weight)
    result[0].weight.copy_(u.T @ weight)
    result[1].weight.copy_(u)
    if layer.bias is not None:
        result[1].bias.copy_(layer.bias)
    return result


def fully_connected(head: nn.Module) -> dict[str, nn.Linear | FactoredLinear]:
    """The fully connected layers of a box head as fc6, fc7, ..., in the order they are applied."""
    layers: list[Any] = [head.get_submodule(path) for path in _paths(head)]
    return {f"fc{6 + i}": layer for i, layer in enumerate(layers)}


def replace_layers(
    head: nn.Module, ranks: Mapping[str, int], make: Callable[[nn.Linear, int], FactoredLinear] = factorise
) -> None:
    """Factor layers of a box head in place, by `factorise` or, where the weights come later, `FactoredLinear.like`.

    Raises:
        ConfigError: for a layer (fc6, fc7) that is not there or is factored already, or a rank that it cannot have.
    """
    layers, paths = fully_connected(head), _paths(head)
    check_ranks(layers, ranks)
    for (name, layer), path in zip(layers.items(), paths, strict=True):
        if name in ranks:
            parent, _, child = path.rpartition(".")
            setattr(head.get_submodule(parent), child, make(layer, ranks[name]))


def check_ranks(layers: Mapping[str, Any], ranks: Mapping[str, int]) -> None:
    """Refuse ranks that these layers cannot have; see `replace_layers`."""
    if not layers:
        raise ConfigError("truncated SVD: this detector's box head has no fully connected layers")
    for name, rank in ranks.items():
        layer = layers.get(name)
        if layer is None:
            raise ConfigError(f"truncated SVD: the box head has no layer {name!r}; it has {', '.join(layers)}")
        if isinstance(layer, FactoredLinear):
            raise ConfigError(f"truncated SVD: {name} is factored already, with rank {layer[0].out_features}")
        most = min(layer.in_features, layer.out_features)
        if not 1 <= rank <= most:
            raise ConfigError(
                f"truncated SVD: the rank of {name} ({layer.in_features} x {layer.out_features}) is 1 to {most}, "
                f"not {rank}"
            )


class Cost(NamedTuple):
    """A layer's multiplications for one region, as it is and with another rank (None: it stays)."""

    name: str
    inputs: int
    outputs: int
    rank: int | None
    before: int
    after: int


def costs(layers: Mapping[str, Any], ranks: Mapping[str, int]) -> list[Cost]:
    """What each of the layers costs before and after."""
    result = []
    for name, layer in layers.items():
        parts: list[Any] = list(layer) if isinstance(layer, FactoredLinear) else [layer]
        inputs, outputs, rank = parts[0].in_features, parts[-1].out_features, ranks.get(name)
        before = sum(part.in_features * part.out_features for part in parts)
        after = before if rank is None else rank * (inputs + outputs)
        result.append(Cost(name, inputs, outputs, rank, before, after))
    return result


def check_saving(layers: Sequence[Cost]) -> None:
    """Refuse, with a ConfigError, ranks with which a layer costs as much as before, or more."""
    for each in layers:
        if each.rank is not None and each.after >= each.before:
            most = (each.before - 1) // (each.inputs + each.outputs)
            raise ConfigError(
                f"truncated SVD: {each.name} with rank {each.rank} needs {each.after:,} multiplications a region "
                f"instead of {each.before:,}, so nothing is saved; "
                + (f"give at most {most}" if most else "leave it as it is")
            )


def _paths(head: nn.Module) -> list[str]:
    """Where the fully connected layers are below the head; the halves of a factored one are not listed."""
    modules = dict(head.named_modules())
    linear = [path for path, module in modules.items() if isinstance(module, nn.Linear | FactoredLinear)]
    return [path for path in linear if not isinstance(modules.get(path.rpartition(".")[0]), FactoredLinear)]
