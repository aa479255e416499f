"""Backbones by name: a classification network, cut for detection, with or without a feature pyramid."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detkit.errors import ConfigError
from detkit.features.architectures import architecture, classification_network, convolution_layers
from detkit.features.frozen_batch_norm import FrozenBatchNorm
from detkit.features.initialization import initialize
from detkit.features.weights import Loaded, load_classification_weights


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
    name: str,
    *,
    fpn: bool = False,
    weights: str | None = None,
    levels: list[str] | None = None,
    fpn_channels: int = 256,
    fpn_norm: bool = False,
    initialization: str = "he",
    freeze_batch_norm: bool = False,
    batch_norm_eps: float | None = None,
) -> tuple[Backbone, nn.Module | None]:
    """A backbone and the rest of its network, which may serve as the head of each region.

    Args:
        name: one of `detkit.features.architectures.ARCHITECTURES`.
        fpn: put a feature pyramid of ``fpn_channels`` on it.
        weights: None (from scratch), DEFAULT, a torchvision weight name, or a local state dict.
        levels: the layers to read instead of the architecture's usual ones (torchvision's child names).
        fpn_norm: batch norm in the pyramid (torchvision's v2 model).
        initialization: ``he`` or ``xavier``, for what is trained from scratch.
        freeze_batch_norm: batch norm becomes a fixed scale and shift (`FrozenBatchNorm`).
        batch_norm_eps: replaces the network's own epsilon of batch norm.

    Returns:
        the `Backbone`, and the top: the layers after the trunk (conv5 of a ResNet, fc6 and fc7 of VGG and AlexNet;
        None where there is none, or where ``fpn`` already uses them).

    Raises:
        ConfigError, WeightsError: as `architecture` and `load_classification_weights` do.
    """
    spec = architecture(name)
    network = classification_network(name)
    loaded = None if weights is None else load_classification_weights(network, name, weights)
    if loaded is None:
        initialize([network], initialization)
    if batch_norm_eps is not None:
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = batch_norm_eps
    layers = convolution_layers(name, network)
    levels = levels or (list(spec.levels) if fpn else [spec.trunk])
    backbone = Backbone(layers, levels, fpn_channels if fpn else None, fpn_norm)
    backbone.loaded = loaded
    top = None
    if not fpn and spec.top_is_fully_connected:
        # torchvision's classifier: VGG fc6, relu, drop, fc7, relu, drop, fc8; AlexNet drop, fc6, relu, drop, fc7, ...
        top = nn.Sequential(nn.Flatten(), *without_last_linear(network.classifier))
    elif not fpn and spec.top:
        top = nn.Sequential(
            OrderedDict((layer, layers[layer]) for layer in spec.top),
        )
        top.append(nn.AdaptiveAvgPool2d(1))
        top.append(nn.Flatten())
    if freeze_batch_norm:
        freeze_batch_norms(backbone.body)
        if top is not None:
            freeze_batch_norms(top)
    return backbone, top


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
