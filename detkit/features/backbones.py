"""Backbones by name: a classification network, cut for detection, with or without a feature pyramid."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detkit.errors import ConfigError
from detkit.features.architectures import architecture, classification_network, convolution_layers
from detkit.features.frozen_batch_norm import FrozenBatchNorm
from detkit.features.initialization import RULES, initialize
from detkit.features.weights import Loaded, load_classification_weights

#: What learns of a backbone, from nothing to everything.
TRANSFER = ("frozen", "partial", "full")


@dataclass(frozen=True)
class FeatureSettings:
    """How a backbone begins and which part of it learns.

    Args:
        transfer: which part learns. ``frozen``: none, it is a fixed feature extractor; ``partial``: the last stages
            (Fast R-CNN trains VGG16 from conv3_1 on, section 4.5; torchvision trains ResNet's last three); ``full``:
            all of it. Batch norms of a stage that does not learn keep their statistics.
        trainable_stages: with ``partial``, how many of the last stages learn, 1 to the number of stages.
        freeze_batch_norm: all batch norms of the backbone are a fixed scale and shift.
        initialization: ``he`` or ``xavier``, for convolutions and linear layers without weights.
        channels_last: memory format of images and features; faster for most networks.

    Raises:
        ConfigError: for an unknown name, or a number of stages that does not go with ``transfer``.
    """

    transfer: str = "full"
    trainable_stages: int | None = None
    freeze_batch_norm: bool = False
    initialization: str = "he"
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.transfer not in TRANSFER:
            raise ConfigError(
                f"features.transfer {self.transfer!r} is unknown; the known ones are {', '.join(TRANSFER)}"
            )
        if self.transfer == "partial" and (self.trainable_stages is None or self.trainable_stages < 1):
            raise ConfigError(
                f"features.transfer partial needs features.trainable_stages of at least 1, not {self.trainable_stages}"
            )
        if self.transfer != "partial" and self.trainable_stages is not None:
            raise ConfigError(
                f"features.trainable_stages goes with features.transfer partial, not with {self.transfer}; set it to "
                "null"
            )
        if self.initialization not in RULES:
            raise ConfigError(
                f"features.initialization {self.initialization!r} is unknown; the known ones are {', '.join(RULES)}"
            )


@dataclass(frozen=True)
class MapSettings(FeatureSettings):
    """`FeatureSettings`, and which feature maps of an image the detector reads.

    Args:
        fpn: put a feature pyramid on the backbone (Lin et al. 2017).
        fpn_channels: channels of its maps.
        fpn_norm: batch norm in the pyramid, as in torchvision's v2 model.
        levels: layers that are read instead of the architecture's usual ones, by torchvision's names of children.
        batch_norm_eps: replaces the network's own epsilon of batch norm; null: its own.

    Raises:
        ConfigError: as `FeatureSettings`, or for a number that is not above 0.
    """

    fpn: bool = True
    fpn_channels: int = 256
    fpn_norm: bool = False
    levels: list[str] | None = None
    batch_norm_eps: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.fpn_channels < 1:
            raise ConfigError(f"features.fpn_channels {self.fpn_channels} must be at least 1")
        if self.levels is not None and not self.levels:
            raise ConfigError("features.levels is empty; name one layer or more, or set it to null")
        if self.batch_norm_eps is not None and self.batch_norm_eps < 0:
            raise ConfigError(f"features.batch_norm_eps {self.batch_norm_eps} must not be below 0")


class Backbone(nn.Module):
    """Image batch to feature maps, finest first.

    Attributes:
        body: the network's layers by torchvision's names, up to the last one that is read.
        fpn: the pyramid (Lin et al. 2017), or None.
        strides: pixels of the input per cell of each map.
        channels: channels of each map.
        levels: the names of the layers that are read.
        loaded: what it began with; None if it was built without weights.
    """

    loaded: Loaded | None = None

    def __init__(
        self, layers: OrderedDict[str, nn.Module], levels: list[str], fpn_channels: int | None, fpn_norm: bool = False
    ) -> None:
        super().__init__()
        unknown = [level for level in levels if level not in layers]
        if unknown:
            raise ConfigError(f"backbone has no layers {unknown}; it has {', '.join(layers)}")
        names = list(layers)
        self.levels = levels
        self.body = nn.ModuleDict({name: layers[name] for name in names[: names.index(levels[-1]) + 1]})
        self.channels, self.strides = self._measure()
        self.fpn: FeaturePyramidNetwork | None = None
        if fpn_channels is not None:
            self.fpn = FeaturePyramidNetwork(
                self.channels,
                fpn_channels,
                extra_blocks=LastLevelMaxPool(),
                norm_layer=nn.BatchNorm2d if fpn_norm else None,
            )
            self.channels = [fpn_channels] * (len(levels) + 1)
            self.strides = [*self.strides, self.strides[-1] * 2]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [(N, C, H/s, W/s), ...] of a normalised batch (N, 3, H, W), one for each of ``strides``."""
        maps = self._levels(images)
        return list(self.fpn(maps).values()) if self.fpn is not None else list(maps.values())

    def _levels(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = OrderedDict()
        for name, layer in self.body.items():
            x = layer(x)
            if name in self.levels:
                maps[name] = x
        return maps

    @torch.no_grad()
    def _measure(self) -> tuple[list[int], list[int]]:
        """Channels and strides of the levels, from one pass over an empty image."""
        side, training = 256, self.training
        maps = self.eval()._levels(torch.zeros(1, 3, side, side)).values()
        self.train(training)
        return [m.shape[1] for m in maps], [2 ** round(math.log2(side / m.shape[-1])) for m in maps]


def build_backbone(
    backbone: str | Mapping, weights: str | None = None, settings: MapSettings = MapSettings()
) -> tuple[Backbone, nn.Module | None]:
    """A backbone and the rest of its network, which may serve as the head of each region.

    Args:
        backbone: one of `detkit.features.architectures.ARCHITECTURES`.
        weights: None (from scratch), DEFAULT, a torchvision weight name, or a local state dict.
        settings: see `MapSettings`.

    Returns:
        the `Backbone`, and the top: the layers after the trunk (conv5 of a ResNet, fc6 and fc7 of VGG and AlexNet;
        None where there is none, or where a pyramid already uses them). A top always learns.

    Raises:
        ConfigError, WeightsError: as `architecture` and `load_classification_weights` do.
    """
    name = backbone
    spec = architecture(name)
    network = classification_network(name)
    loaded = None if weights is None else load_classification_weights(network, name, weights)
    if loaded is None:
        initialize([network], settings.initialization)
    if settings.batch_norm_eps is not None:
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = settings.batch_norm_eps
    layers = convolution_layers(name, network)
    levels = settings.levels or (list(spec.levels) if settings.fpn else [spec.trunk])
    result = Backbone(layers, levels, settings.fpn_channels if settings.fpn else None, settings.fpn_norm)
    result.loaded = loaded
    top = None
    if not settings.fpn and spec.top_is_fully_connected:
        # torchvision's classifier: VGG fc6, relu, drop, fc7, relu, drop, fc8; AlexNet drop, fc6, relu, drop, fc7, ...
        top = nn.Sequential(nn.Flatten(), *without_last_linear(network.classifier))
    elif not settings.fpn and spec.top:
        top = nn.Sequential(
            OrderedDict((layer, layers[layer]) for layer in spec.top),
        )
        top.append(nn.AdaptiveAvgPool2d(1))
        top.append(nn.Flatten())
    if settings.freeze_batch_norm:
        freeze_batch_norms(result.body)
        if top is not None:
            freeze_batch_norms(top)
    apply_transfer(result, name, settings)
    return result, top


def apply_transfer(backbone: Backbone, name: str, settings: FeatureSettings) -> None:
    """Set ``requires_grad`` of the backbone's body by ``settings.transfer``, in place; a pyramid always learns.

    Batch norms of a frozen stage are frozen with it: their running statistics would drift otherwise.

    Raises:
        ConfigError: ``settings.trainable_stages`` is more than there are.
    """
    stages = [[s for s in stage if s in backbone.body] for stage in architecture(name).stages]
    stages = [stage for stage in stages if stage]
    learning = {"frozen": 0, "partial": settings.trainable_stages or 0, "full": len(stages)}[settings.transfer]
    if learning > len(stages):
        raise ConfigError(f"features.trainable_stages must be 1 to {len(stages)} for {name}, not {learning}")
    for stage in stages[: len(stages) - learning]:
        for layer in stage:
            backbone.body[layer].requires_grad_(False)
            if isinstance(backbone.body[layer], nn.BatchNorm2d):  # ResNet's bn1 is a layer of its own
                holder = nn.ModuleDict({layer: backbone.body[layer]})
                freeze_batch_norms(holder)
                backbone.body[layer] = holder[layer]
            else:
                freeze_batch_norms(backbone.body[layer])


def without_last_linear(classifier: nn.Sequential) -> list[nn.Module]:
    """The layers before the last linear one, which knows the classes of its own training set."""
    layers = list(classifier)
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    return layers[:last]


def freeze_batch_norms(module: nn.Module) -> None:
    """Replace each BatchNorm2d below ``module`` by a `FrozenBatchNorm` of the same scale, shift and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batch_norms(child)
