"""Receptive fields: against the gradients of a single cell, and against numbers in the literature."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.errors import ConfigError
from detkit.features import ARCHITECTURES, MapSettings, build_backbone
from detkit.features.architectures import classification_network, convolution_layers
from detkit.features.receptive_field import ReceptiveField, extend, receptive_field

from .test_backbones import without_weights


class Mean(nn.Module):
    """The mean of a convolution's or a pooling's window and of all channels: every cell of the window counts."""

    def __init__(self, layer: nn.Conv2d | nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel = layer.kernel_size if isinstance(layer.kernel_size, int) else layer.kernel_size[0]
        self.options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.full((1, 1, self.kernel, self.kernel), self.kernel**-2, dtype=x.dtype)
        return F.conv2d(x.mean(1, keepdim=True), kernel, **self.options)


def averaged(module: nn.Module) -> nn.Module:
    """The same network of `Mean` layers: no weight is 0 and nothing is cut off, so gradients show the whole field."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d | nn.MaxPool2d):
            setattr(module, name, Mean(child))
        elif next(child.children(), None) is None or type(child).__name__ == "SqueezeExcitation":
            setattr(module, name, nn.Identity())
        else:
            averaged(child)
    return module


def field_by_gradients(network: nn.Module, field: ReceptiveField) -> tuple[float, int]:
    """Offset and size of what a cell sees that lies far enough from the border, by its gradient."""
    cell = math.ceil((field.size / 2 - field.offset) / field.stride) + 2
    side = int(cell * field.stride + field.offset + field.size / 2) + 2 * field.stride + 1
    image = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image)[0, :, cell, cell].sum(), image)
    spans = []
    for axis in (0, 1):
        seen = gradient[0, 0].ne(0).any(axis).nonzero()
        first, last = int(seen.min()), int(seen.max())
        assert first > 0 and last < side - 1  # not cut by the border
        spans.append(((first + last + 1) / 2 - cell * field.stride, last - first + 1))
    assert spans[0] == spans[1]
    return spans[0]


#: One of each family that has receptive fields.
NAMES = [
    "alexnet",
    "vgg16",
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "squeezenet1_0",
    "lenet5",
    "tiny",
    "efficientnet_b0",
    "regnet_y_400mf",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_field_is_where_gradients_are(name: str) -> None:
    with without_weights(name):
        layers = convolution_layers(name, classification_network(name))
    fields = receptive_field(layers)
    assert [field.name for field in fields] == list(layers)
    spec = ARCHITECTURES[name]
    ends = {spec.layers(stage)[-1] for stage in (*spec.levels, spec.trunk)}
    looked = [field for field in fields if field.name in ends]
    network = nn.Sequential()
    for layer, module in layers.items():
        network.append(averaged(nn.Sequential(module)))
        for field in looked:
            if field.name == layer:
                assert field_by_gradients(network, field) == (field.offset, field.size)


# AlexNet, VGG16: Araujo et al. 2019, table 1, whose fields reach through the last pooling; ResNets differ, for
# torchvision's stride lies in the 3x3 convolution of a block's beginning and not at its end.
@pytest.mark.parametrize(("name", "size"), [("alexnet", 195), ("vgg16", 212)])
def test_fields_in_the_literature(name: str, size: int) -> None:
    with torch.device("meta"):
        network = classification_network(name).features
    assert receptive_field(dict(network.named_children()))[-1].size == size


def test_the_fields_of_lenet() -> None:
    """By hand: 5, then 6 at stride 2, then 4 more of these, then another."""
    with torch.device("meta"):
        layers = convolution_layers("lenet5", classification_network("lenet5"))
    expected = {"c1": (1, 5), "relu1": (1, 5), "s2": (2, 6), "c3": (2, 14), "relu3": (2, 14), "s4": (4, 16)}
    assert {f.name: (f.stride, f.size) for f in receptive_field(layers)} == expected
    assert all(f.offset == f.stride / 2 for f in receptive_field(layers))  # cells lie over their pixels


def test_the_fields_of_convnext() -> None:
    """By hand: patches of 4 pixels, then three convolutions of 7 cells, which are 4 pixels each."""
    with torch.device("meta"):
        layers = convolution_layers("convnext_tiny", classification_network("convnext_tiny"))
    fields = {field.name: field for field in receptive_field(layers)}
    assert (fields["1"].stride, fields["1"].size, fields["1"].offset) == (4, 4 + 3 * 6 * 4, 2)
    assert (fields["3"].stride, fields["3"].size, fields["3"].offset) == (8, 76 + 4 + 3 * 6 * 8, 4)


@pytest.mark.parametrize(("backbone", "message"), [("swin_t", "is not known"), ("timm/test_resnet", "TimmMaps is not")])
def test_where_no_field_is_known(backbone: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        receptive_field(build_backbone(backbone)[0])


@pytest.mark.parametrize("fpn", [False, True], ids=["single", "fpn"])
@pytest.mark.parametrize("name", NAMES)
def test_a_backbones_maps(name: str, fpn: bool) -> None:
    with without_weights(name):
        backbone, _ = build_backbone(name, settings=MapSettings(fpn=fpn, fpn_channels=8))
    fields = receptive_field(backbone)
    assert [field.stride for field in fields] == backbone.strides
    assert [field.name for field in fields] == [*backbone.levels, *["pool"] * fpn]
    body = {field.name: field for field in receptive_field(backbone.body)}
    for level, field in zip(backbone.levels, fields, strict=False):
        assert field.size == body[level].size + 2 * field.stride * fpn  # the pyramid's own 3x3 convolution
        assert field.offset == body[level].offset


def test_further_layers_widen_a_field() -> None:
    """228 pixels: Ren et al. 2015, section 3.1, for the RPN's 3x3 convolution on VGG16."""
    with torch.device("meta"):
        (field,) = receptive_field(build_backbone("vgg16", settings=MapSettings(fpn=False))[0])
        head = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1), nn.ReLU())
    assert (field.size, field.offset) == (196, 8.0)
    assert extend(field, head) == field._replace(size=228)
    assert extend(field, nn.Sequential()) == field


def test_odd_strides_dilation_and_missing_padding() -> None:
    layers = {
        "a": nn.Conv2d(1, 1, 4, stride=3),  # pixels 0..3
        "b": nn.Conv2d(1, 1, 3, dilation=2, padding=1),  # cells -1, 1, 3
        "c": nn.AvgPool2d(2),
    }
    assert receptive_field(layers) == [("a", 3, 4, 2.0), ("b", 3, 16, 5.0), ("c", 6, 19, 6.5)]
    network = averaged(nn.Sequential(layers["a"], layers["b"]))
    assert field_by_gradients(network, receptive_field(layers)[1]) == (5.0, 16)


class Joined(nn.Module):
    """Two branches, added."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


class Turned(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(2)


def test_branches_see_what_either_sees() -> None:
    joined = Joined(nn.Conv2d(1, 1, 3, padding=2), nn.Conv2d(1, 1, 3, padding=0))
    assert receptive_field({"joined": joined}) == [("joined", 1, 5, 0.5)]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.ConvTranspose2d(1, 1, 2), "layer ConvTranspose2d is not known"),
        (nn.AdaptiveAvgPool2d(1), "see the whole image"),
        (Turned(nn.Identity()), "through flip in a Turned"),
        (nn.Conv2d(1, 1, (3, 5)), "height and width differ"),
        (nn.Conv2d(1, 1, 3, padding="same"), "not numbers"),
        (Joined(nn.Conv2d(1, 1, 1, stride=2), nn.Identity()), "Joined joins maps of different strides"),
    ],
)
def test_what_is_not_known_is_said(layer: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        receptive_field({"layer": layer})
