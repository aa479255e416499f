"""The classification networks that a detector can have as a backbone, and where each of them is cut.

`ARCHITECTURES` is the one list of their names. A network is a sequence of layers, which are grouped into stages as the
papers do: most end where the next layer halves the map. ``partial`` training counts stages; a pyramid reads the maps at
the ends of the last stages; without a pyramid the network is cut behind its ``trunk``, which is computed once for an
image, and the stages after it form the ``top``, which is applied to each region (ResNet's conv5, MobileNet's last
blocks, or the fully connected layers of VGG, AlexNet and LeNet).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torchvision
from torch import nn
from torchvision.ops import Permute

from detkit.features.networks import LeNet5, TinyCNN
from detkit.settings import check_choice


@dataclass(frozen=True)
class Architecture:
    """Where a network is cut.

    Args:
        stages: the layers of each stage in the order they are applied, by torchvision's names of children; "7-13"
            stands for 7, 8, ..., 13. What comes after them belongs to the classifier.
        levels: the stages that a pyramid reads.
        trunk: the last stage of the trunk.
        containers: the submodules whose children the layers are; "" is the network itself.
        fully_connected: the top is the classifier without its last layer.
        normalize: the network normalises its maps where it reads them, not where they are made (ConvNeXt, Swin). The
            maps that a detector reads then get a layer norm each, as in the authors' detectors, and there is no top.
        channels_last: the layers pass (N, H, W, C) on (Swin).
        crop_size: pixels a side of the images that the network was made for.
    """

    stages: tuple[str, ...]
    levels: tuple[int, ...] = (1, 2, 3, 4)
    trunk: int = 3
    containers: tuple[str, ...] = ("features",)
    fully_connected: bool = False
    normalize: bool = False
    channels_last: bool = False
    crop_size: int = 224

    def layers(self, stage: int) -> list[str]:
        """The names of a stage's layers."""
        names: list[str] = []
        for part in self.stages[stage].split():
            first, _, last = part.partition("-")
            names += [str(i) for i in range(int(first), int(last) + 1)] if last else [first]
        return names

    @property
    def has_top(self) -> bool:
        """Whether there is a top, which `head: top` needs."""
        return self.fully_connected or (not self.normalize and self.trunk + 1 < len(self.stages))


_RESNET = Architecture(("conv1 bn1 relu maxpool", "layer1", "layer2", "layer3", "layer4"), containers=("",))
_REGNET = Architecture(("stem", "block1", "block2", "block3", "block4"), containers=("", "trunk_output"))
_EFFICIENTNET = ("0-1", "2", "3", "4-5", "6-7")
#: Pixels a side that torchvision's weights of EfficientNet B0, B1, ... were trained for.
_EFFICIENTNET_SIZES = (224, 240, 288, 300, 380, 456, 528, 600)
_CONVNEXT = Architecture(("0-1", "2-3", "4-5", "6-7"), levels=(0, 1, 2, 3), trunk=2, normalize=True)
_SWIN = Architecture(_CONVNEXT.stages, (0, 1, 2, 3), trunk=2, normalize=True, channels_last=True)
_SWIN_V2 = Architecture(_CONVNEXT.stages, (0, 1, 2, 3), trunk=2, normalize=True, channels_last=True, crop_size=256)

ARCHITECTURES: dict[str, Architecture] = {
    # The last pooling layer is left out: RoI pooling takes its place (Fast R-CNN, section 2.2).
    "alexnet": Architecture(
        ("0-1", "2-4", "5-7", "8-9", "10-11"), levels=(1, 4), trunk=4, fully_connected=True, crop_size=227
    ),
    "vgg16": Architecture(("0-3", "4-8", "9-15", "16-22", "23-29"), levels=(2, 3, 4), trunk=4, fully_connected=True),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), _RESNET),
    "mobilenet_v2": Architecture(("0-1", "2-3", "4-6", "7-13", "14-17")),
    "mobilenet_v3_large": Architecture(("0-1", "2-3", "4-6", "7-12", "13-16")),
    "squeezenet1_0": Architecture(("0-2", "3-5", "6-10", "11-12"), levels=(1, 2, 3)),
    **{f"efficientnet_b{i}": Architecture(_EFFICIENTNET, crop_size=size) for i, size in enumerate(_EFFICIENTNET_SIZES)},
    **{f"regnet_y_{size}": _REGNET for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")},
    **{f"regnet_x_{size}": _REGNET for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")},
    **{f"convnext_{size}": _CONVNEXT for size in ("tiny", "small", "base", "large")},
    **{f"swin_{size}": _SWIN for size in ("t", "s", "b")},
    **{f"swin_v2_{size}": _SWIN_V2 for size in ("t", "s", "b")},
    # As VGG and AlexNet: RoI pooling to 8 x 8 takes the place of S4.
    "lenet5": Architecture(
        ("c1 relu1", "s2 c3 relu3", "s4"), levels=(1, 2), trunk=1, fully_connected=True, crop_size=32
    ),
    "tiny": Architecture(("0", "1", "2", "3"), levels=(1, 2, 3), trunk=2),
}

#: Networks that are not torchvision's.
OWN_NETWORKS: dict[str, type[nn.Module]] = {"lenet5": LeNet5, "tiny": TinyCNN}


def backbone_names() -> list[str]:
    """The names of all architectures, in alphabetical order."""
    return sorted(ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """The `Architecture` of that name; where there is none, a ConfigError lists those there are."""
    check_choice("backbone", name, backbone_names())
    return ARCHITECTURES[name]


def classification_network(name: str, num_classes: int = 1000) -> nn.Module:
    """The whole classification network for that many classes, freshly initialised by its own rule."""
    architecture(name)
    if name in OWN_NETWORKS:
        return OWN_NETWORKS[name](num_classes)
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes)


def convolution_layers(name: str, network: nn.Module) -> dict[str, nn.Module]:
    """The layers of all stages by name, in the order they are applied."""
    spec = architecture(name)
    children: dict[str, nn.Module] = {}
    for container in spec.containers:
        children |= dict(network.get_submodule(container).named_children())
    return {layer: children[layer] for stage in range(len(spec.stages)) for layer in spec.layers(stage)}


def classifier_layers(name: str, network: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The layers between the last stage and the network's last linear layer, which knows the classes of its own set.

    Returns:
        of a network with fully connected layers: its last pooling layers; a Flatten and the layers fc6 to fc7. Of
        another: none; what comes before its global average, the average, a norm where it has one, and a Flatten.
    """
    spec = architecture(name)
    if spec.channels_last:
        return [], [Permute([0, 2, 3, 1]), network.norm, Permute([0, 3, 1, 2]), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    rest: list[nn.Module] = []
    if spec.containers == ("features",):
        stages = convolution_layers(name, network)
        rest = [layer for child, layer in network.features.named_children() if child not in stages]
    if spec.fully_connected:
        # VGG has fc6, relu, dropout, fc7, relu, dropout, fc8; AlexNet dropout, fc6, relu, dropout, fc7, relu, fc8.
        last = max(i for i, layer in enumerate(network.classifier) if isinstance(layer, nn.Linear))
        pool: Any = network.avgpool
        return [*rest, pool], [nn.Flatten(), *network.classifier[:last]]
    norm = [layer for layer in network.classifier if isinstance(layer, nn.LayerNorm)] if spec.normalize else []
    return [], [*rest, nn.AdaptiveAvgPool2d(1), *norm, nn.Flatten()]
