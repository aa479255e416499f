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

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU, nn.GELU)
#: Layers whose output in a cell depends on that cell's channels alone; an nn.Sequential that is a leaf is empty.
POINTWISE = (
    *ACTIVATIONS,
    *(nn.BatchNorm2d, FrozenBatchNorm2d, nn.LayerNorm, nn.Linear),
    *(nn.Dropout, nn.Identity, nn.Sequential, Permute, StochasticDepth),
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
        field, fields = ReceptiveField("", 1, 1, 0.5), []
        for name, layer in layers.items():
            field = extend(field, layer)._replace(name=name)
            fields.append(field)
        return fields
    if not isinstance(layers.body, LayerMaps):
        raise ConfigError(f"the receptive field of a {type(layers.body).__name__} is not known")
    body = {field.name: field for field in receptive_field(layers.body)}
    read = [body[name] for name in layers.levels]
    if layers.fpn is None:
        return read
    blocks = zip(layers.fpn.inner_blocks, layers.fpn.layer_blocks, strict=True)
    maps = [extend(field, nn.Sequential(*block)) for field, block in zip(read, blocks, strict=True)]
    return [*maps, extend(maps[-1], nn.MaxPool2d(1, 2))._replace(name="pool")]


def extend(field: ReceptiveField, layer: nn.Module) -> ReceptiveField:
    """The field of what is computed by a further layer, such as the convolutions of an RPN, on a map of that field."""
    root = nn.Sequential(layer)
    try:
        graph = _Tracer().trace(root)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ConfigError(f"the receptive field through a {type(layer).__name__} is not known: {error}") from error
    states: dict[fx.Node, ReceptiveField | None] = {}  # None: the whole image
    for node in graph.nodes:
        inputs = [states[each] for each in node.all_input_nodes]
        if node.op == "placeholder":
            states[node] = field
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


class _Tracer(fx.Tracer):
    """Follows the computation down to the layers that have no layers in them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def _step(layer: nn.Module, field: ReceptiveField | None) -> ReceptiveField | None:
    """Through one layer that has no layers in it."""
    if field is None or isinstance(layer, POINTWISE):
        return field
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return None
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        raise ConfigError(f"the receptive field through a layer {type(layer).__name__} is not known")
    dilation = _side(getattr(layer, "dilation", 1), layer)
    kernel, stride, padding = (_side(getattr(layer, n), layer) for n in ("kernel_size", "stride", "padding"))
    reach = dilation * (kernel - 1)  # cells from the first that is seen to the last
    size, offset = field.size + reach * field.stride, field.offset + (reach / 2 - padding) * field.stride
    return field._replace(stride=field.stride * stride, size=size, offset=offset)


def _join(branches: list[ReceptiveField | None], layer: nn.Module) -> ReceptiveField | None:
    """What is seen through any of the branches; factors that come from the whole image do not count."""
    known = [field for field in branches if field is not None]
    if not known:
        return None
    if len({field.stride for field in known}) != 1:
        raise ConfigError(f"a {type(layer).__name__} joins maps of different strides")
    first, last = min(f.offset - f.size / 2 for f in known), max(f.offset + f.size / 2 for f in known)
    return known[0]._replace(size=int(last - first), offset=(first + last) / 2)


def _side(value: int | tuple[int, ...] | str, layer: nn.Module) -> int:
    sides = {value} if isinstance(value, int | str) else set(value)
    if len(sides) != 1 or isinstance(value, str):
        raise ConfigError(f"{layer}: its receptive field is not known: height and width differ, or are not numbers")
    return int(sides.pop())
