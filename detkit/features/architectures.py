"""The classification networks a detector can stand on, and where each is cut.

A network is an ordered list of layers (the names of its children). ``stages`` groups them as the papers
do, for partial training; ``trunk`` is the last layer that is computed once per image when there is no FPN;
``levels`` are the layers an FPN reads; the layers after ``trunk`` form the ``top``, which R-CNN's
descendants apply to each region (ResNet's conv5, MobileNet's last blocks, the fully connected layers of VGG, AlexNet
and LeNet).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torchvision
from torch import nn

from detkit.errors import ConfigError
from detkit.features.lenet import LeNet5
from detkit.features.tiny import TinyCNN


@dataclass(frozen=True)
class Architecture:
    """Where a classification network is cut, by the names of its children, and the ``crop_size`` it was made for."""

    factory: str
    stages: tuple[tuple[str, ...], ...]
    trunk: str
    levels: tuple[str, ...]
    top: tuple[str, ...] = ()
    top_is_fully_connected: bool = False
    trunk_stride: int = 16
    crop_size: int = 224


def _numbers(*bounds: int) -> tuple[tuple[str, ...], ...]:
    """Stages of consecutive child numbers: (0, 2, 4) is (0, 1), (2, 3)."""
    return tuple(tuple(str(i) for i in range(a, b)) for a, b in pairwise(bounds))


_RESNET = {
    "stages": (("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)),
    "trunk": "layer3",
    "levels": ("layer1", "layer2", "layer3", "layer4"),
    "top": ("layer4",),
}

ARCHITECTURES: dict[str, Architecture] = {
    **{name: Architecture(name, **_RESNET) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    # The last pooling layer is left out: RoI pooling takes its place (Fast R-CNN, section 2.2).
    "vgg16": Architecture("vgg16", _numbers(0, 4, 9, 16, 23, 30), "29", ("15", "22", "29"), (), True),
    "alexnet": Architecture(
        "alexnet", _numbers(0, 2, 5, 8, 10, 12), "11", ("4", "11"), top_is_fully_connected=True, crop_size=227
    ),
    "mobilenet_v2": Architecture(
        "mobilenet_v2", _numbers(0, 2, 4, 7, 14, 18), "13", ("3", "6", "13", "17"), ("14", "15", "16", "17")
    ),
    "mobilenet_v3_large": Architecture(
        "mobilenet_v3_large", _numbers(0, 2, 4, 7, 13, 17), "12", ("3", "6", "12", "16"), ("13", "14", "15", "16")
    ),
    # As VGG and AlexNet: RoI pooling to 8 x 8 takes the place of S4.
    "lenet5": Architecture(
        "lenet5",
        (("c1", "relu1"), ("s2", "c3", "relu3", "s4")),
        "relu3",
        ("relu3", "s4"),
        top_is_fully_connected=True,
        trunk_stride=2,
        crop_size=32,
    ),
    "squeezenet1_0": Architecture("squeezenet1_0", _numbers(0, 3, 6, 11, 13), "12", ("5", "10", "12")),
    "tiny": Architecture("tiny", _numbers(0, 1, 2, 3, 4), "2", ("1", "2", "3"), ("3",), trunk_stride=8),
}

#: Networks that are not torchvision's, by factory.
OWN_NETWORKS: dict[str, type[nn.Module]] = {"lenet5": LeNet5, "tiny": TinyCNN}


def architecture(name: str) -> Architecture:
    """The `Architecture` of that name.

    Raises:
        ConfigError: if there is none; the message lists those there are.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"unknown backbone {name!r}; the known ones are {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[name]


def classification_network(name: str, num_classes: int = 1000) -> nn.Module:
    """The whole classification network for that many classes, freshly initialised by its own rule."""
    factory = architecture(name).factory
    own = OWN_NETWORKS.get(factory)
    if own is not None:
        return own(num_classes)
    return torchvision.models.get_model(factory, weights=None, num_classes=num_classes)


def convolution_layers(name: str, network: nn.Module) -> OrderedDict[str, nn.Module]:
    """The network's convolutional layers by name, in the order they are applied."""
    children = dict((network if hasattr(network, "layer1") else network.features).named_children())
    return OrderedDict((layer, children[layer]) for stage in architecture(name).stages for layer in stage)
