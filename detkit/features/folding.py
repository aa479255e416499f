"""Batch norms multiplied into the convolutions before them, for a network that does not learn any more."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detkit.features.layers import FrozenBatchNorm

#: These types alone: a subclass may do more, as timm's do.
NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, FrozenBatchNorm)
#: The largest difference of an output, as a share of the largest value, for which a network counts as the same.
TOLERANCE = 1e-4


@torch.no_grad()
def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a network in eval mode without the batch norms that follow a convolution; its outputs are the same.

    Which these are is seen while it computes an example. The network itself is returned where there is none, where it
    cannot be copied or called so, or where its outputs would change: it then uses a convolution's output in another
    place, too.

    Args:
        network: in eval mode; its forward takes the example and gives a tensor, or tensors in lists and dicts.
        example: an input of any values.
    """
    try:
        result = copy.deepcopy(network)
        pairs = _pairs(result, example)
    except Exception:  # of a user's own network, which then stays as it is
        return network
    if not pairs:
        return network
    for convolution, norm in pairs:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if convolution.bias is not None:
            shift = shift + convolution.bias * scale
        convolution.weight = nn.Parameter(convolution.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
        convolution.bias = nn.Parameter(shift, requires_grad=False)
        name = next(name for name, layer in result.named_modules() if layer is norm)
        parent, _, child = name.rpartition(".")
        setattr(result.get_submodule(parent), child, nn.Identity())
    try:
        outputs = list(zip(_tensors(result(example)), _tensors(network(example)), strict=True))
    except AttributeError:  # its forward reads what only a batch norm has
        return network
    same = all((a - b).abs().max() <= TOLERANCE * b.abs().max() for a, b in outputs)
    return result if same else network


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, Any]]:
    """The convolutions whose output is the input of a batch norm, which is used once, each with it."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are kept, so that no other gets their number
    pairs: list[tuple[nn.Conv2d, Any]] = []
    calls: list[nn.Module] = []

    def after(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(layer)
        if isinstance(layer, nn.Conv2d):
            outputs[id(output)] = layer, output
        elif inputs and id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], layer))

    layers = [layer for layer in network.modules() if type(layer) in NORMS or _is_plain(layer)]
    hooks = [layer.register_forward_hook(after) for layer in layers if getattr(layer, "weight", None) is not None]
    network(example)
    for hook in hooks:
        hook.remove()
    once = [pair for pair in pairs if all(calls.count(layer) == 1 for layer in pair)]
    return [(convolution, norm) for convolution, norm in once if norm.running_var is not None]


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is a convolution whose weights are parameters, and not computed from others."""
    return isinstance(layer, nn.Conv2d) and isinstance(layer._parameters.get("weight"), nn.Parameter)


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of a network's output."""
    if isinstance(output, Tensor):
        yield output
    else:
        for each in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(each)
