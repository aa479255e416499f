"""Which pixels a cell of a feature map sees: strides and receptive fields, computed from the layers.

A cell of a convolution's output sees kernel x kernel cells of its input, and through them the pixels that those see
(Araujo et al. 2019, "Computing receptive fields of convolutional neural networks"). This is the theoretical field; the
effective one lies around its centre and is much smaller (Luo et al. 2016).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import fx, nn
from torchvision.ops import FrozenBatchNorm2d, Permute, StochasticDepth

from detkit.errors import ConfigError
from detkit.features.backbones import Backbone, LayerMaps

#: Layers whose output in a cell depends on that cell alone.
POINTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.SiLU,
    nn.GELU,
    nn.Dropout,
    nn.Identity,
    nn.Sequential,  # an empty one
    nn.BatchNorm2d,
    FrozenBatchNorm2d,
    nn.LayerNorm,  # over the channels, as is a linear layer
    nn.Linear,
    Permute,
    StochasticDepth,
)
#: Operations that join branches cell by cell.
JOINS = (operator.add, operator.iadd, operator.mul, torch.add, torch.mul, torch.cat)


class ReceptiveField(NamedTuple):
    """What the cells of a layer's output see; height and width alike.

    Attributes:
        name: of the layer or level.
        stride: pixels of the input from one cell to the next.
        size: side in pixels of what a cell sees, where the image's border does not cut it.
        offset: centre of the first cell's field, in pixels from the image's border. It is half the stride where cells
            lie over the pixels of their stride, as RoI pooling assumes.
    """

    name: str
    stride: int
    size: int
    offset: float


class _Seen(NamedTuple):
    """Pixels first..last, both included, are seen by cell 0; those of cell i are i * stride further on."""

    stride: int
    first: int
    last: int

    def row(self, name: str) -> ReceptiveField:
        return ReceptiveField(name, self.stride, self.last - self.first + 1, (self.first + self.last + 1) / 2)


def receptive_field(layers: Backbone | Mapping[str, nn.Module]) -> list[ReceptiveField]:
    """Strides and receptive fields of a backbone's maps, or of layers.

    Squeeze-and-excitation (MobileNetV3) is left out: it lets each cell see the mean of the whole image.

    Args:
        layers: a `Backbone`, or layers by name in the order they are applied, such as `Backbone.body` or
            `detkit.features.architectures.convolution_layers`.

    Returns:
        one row for each of the backbone's maps, finest first, or for each layer. A pyramid's maps are followed from
        the body through their own convolutions; what they see besides through the coarser maps is left out.

    Raises:
        ConfigError: where it is not known: for layers other than convolutions, poolings and what depends on single
            cells (Swin's attention), and for backbones that are not listed in `detkit.features.architectures`.
    """
    if not isinstance(layers, Backbone):
        return [seen.row(name) for name, seen in _follow(layers, _Seen(1, 0, 0)).items()]
    if not isinstance(layers.body, LayerMaps):
        raise ConfigError(f"the receptive field of a {type(layers.body).__name__} is not known")
    body = _follow(layers.body, _Seen(1, 0, 0))
    found = {name: body[name] for name in layers.levels}
    if layers.fpn is not None:
        for name, inner, outer in zip(layers.levels, layers.fpn.inner_blocks, layers.fpn.layer_blocks, strict=True):
            found[name] = _through(nn.Sequential(inner, outer), found[name])
        found["pool"] = _through(nn.MaxPool2d(1, 2), found[layers.levels[-1]])
    return [seen.row(name) for name, seen in found.items()]


def extend(field: ReceptiveField, layers: nn.Module) -> ReceptiveField:
    """The field of what is computed by further layers, such as the convolutions of an RPN, on a map of that field."""
    first = round(field.offset - field.size / 2)
    return _through(layers, _Seen(field.stride, first, first + field.size - 1)).row(field.name)


def _follow(layers: Mapping[str, nn.Module], seen: _Seen) -> dict[str, _Seen]:
    found = {}
    for name, layer in layers.items():
        found[name] = seen = _through(layer, seen)
    return found


class _Tracer(fx.Tracer):
    """Follows the computation down to the layers that have no layers in them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def _through(layer: nn.Module, seen: _Seen) -> _Seen:
    """What the layer's output sees, where its input sees that."""
    root = nn.Sequential(layer)
    try:
        graph = _Tracer().trace(root)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ConfigError(f"the receptive field through a {type(layer).__name__} is not known: {error}") from error
    states: dict[fx.Node, _Seen | None] = {}  # None: the whole image
    for node in graph.nodes:
        inputs = [states[each] for each in node.all_input_nodes]
        if node.op == "placeholder":
            states[node] = seen
        elif node.op == "call_module":
            states[node] = _step(root.get_submodule(str(node.target)), inputs[0])
        elif node.op == "get_attr":  # a parameter, such as ConvNeXt's scale of a layer
            states[node] = None
        elif node.op == "output" or (node.op == "call_function" and node.target in JOINS):
            states[node] = _join(inputs, layer)
        else:
            raise ConfigError(f"the receptive field through {node.target} in a {type(layer).__name__} is not known")
    result = states[next(iter(reversed(graph.nodes)))]
    if result is None:
        raise ConfigError(f"a {type(layer).__name__} lets each cell see the whole image: it has no receptive field")
    return result


def _step(layer: nn.Module, seen: _Seen | None) -> _Seen | None:
    """Through one layer that has no layers in it."""
    if seen is None or isinstance(layer, POINTWISE):
        return seen
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return None
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        raise ConfigError(f"the receptive field through a layer {type(layer).__name__} is not known")
    dilation = _side(getattr(layer, "dilation", 1), layer)
    kernel, stride, padding = (_side(getattr(layer, n), layer) for n in ("kernel_size", "stride", "padding"))
    first = seen.first - padding * seen.stride
    return _Seen(seen.stride * stride, first, seen.last + first - seen.first + dilation * (kernel - 1) * seen.stride)


def _join(branches: list[_Seen | None], layer: nn.Module) -> _Seen | None:
    """What is seen through any of the branches; factors that come from the whole image do not count."""
    known = [seen for seen in branches if seen is not None]
    if not known:
        return None
    if len({seen.stride for seen in known}) != 1:
        raise ConfigError(f"a {type(layer).__name__} joins maps of different strides")
    return _Seen(known[0].stride, min(s.first for s in known), max(s.last for s in known))


def _side(value: int | tuple[int, ...] | str, layer: nn.Module) -> int:
    sides = {value} if isinstance(value, int | str) else set(value)
    if len(sides) != 1 or isinstance(value, str):
        raise ConfigError(f"{layer}: its receptive field is not known: height and width differ, or are not numbers")
    return int(sides.pop())
