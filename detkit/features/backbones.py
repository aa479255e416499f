"""Backbones: networks that turn an image into feature maps, by name or a user's own, with or without a pyramid.

A backbone is one of torchvision's networks (`detkit.features.architectures.ARCHITECTURES` lists their names), one of
timm's (``timm/NAME``), or any module of a user's own (``{class_path: my_package.Trunk, init_args: {...}}``).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detkit.classes import build
from detkit.errors import ConfigError
from detkit.features.architectures import architecture, classification_network, classifier_layers, convolution_layers
from detkit.features.layers import RULES, MapNorm, freeze_batch_norms, initialize, output_for_zeros
from detkit.features.timm_networks import PREFIX, timm_network
from detkit.features.weights import Loaded, load_classification_weights, load_state_dict_file
from detkit.settings import check_choice, check_range

#: What learns of a backbone, from nothing to everything.
TRANSFER = ("frozen", "partial", "full")
#: Side in pixels of the image of zeros with which a network's maps are measured.
EMPTY_SIDE = 256


@dataclass(frozen=True)
class FeatureSettings:
    """The initial state of a backbone, and which part of it is trained.

    Args:
        transfer: which part learns. ``frozen``: none, it is a fixed feature extractor; ``partial``: the last stages
            (Fast R-CNN trains VGG16 from conv3_1 on, section 4.5; torchvision trains ResNet's last three); ``full``:
            all of it. Batch norms of a stage that does not learn keep their statistics.
        trainable_stages: with ``partial``, how many of the last stages learn, 1 to the number of stages.
        freeze_batch_norm: all batch norms of the backbone are a fixed scale and shift.
        initialization: ``he`` or ``xavier``, for convolutions and linear layers without weights. ConvNeXt, Swin, timm's
            networks and a user's own begin as their authors wrote them.
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
        check_choice("features.transfer", self.transfer, TRANSFER)
        check_choice("features.initialization", self.initialization, RULES)
        if self.transfer == "partial" and (self.trainable_stages is None or self.trainable_stages < 1):
            raise ConfigError(
                f"features.transfer partial needs features.trainable_stages of at least 1, not {self.trainable_stages}"
            )
        if self.transfer != "partial" and self.trainable_stages is not None:
            raise ConfigError(
                f"features.trainable_stages goes with features.transfer partial, not with {self.transfer}; set it to "
                "null"
            )


@dataclass(frozen=True)
class MapSettings(FeatureSettings):
    """`FeatureSettings`, and which feature maps of an image the detector reads.

    Args:
        fpn: put a feature pyramid on the backbone (Lin et al. 2017).
        fpn_channels: channels of its maps.
        fpn_norm: batch norm in the pyramid, as in torchvision's v2 model.
        levels: layers that are read instead of the architecture's usual ones, by torchvision's names of children; of
            timm's networks and a user's own, numbers of their maps (or the keys, where they give a dict).
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
        super().__post_init__()
        check_range("features.fpn_channels", self.fpn_channels, 1, 65536)
        check_range("features.batch_norm_eps", self.batch_norm_eps, 0)
        if self.levels is not None and not self.levels:
            raise ConfigError("features.levels is empty; name one layer or more, or set it to null")


class LayerMaps(nn.ModuleDict):
    """The layers of a network of `ARCHITECTURES` in the order they are applied; it gives maps that some of them make.

    ``levels`` are the names of the layers whose maps are read; what comes after the last of them is left out. One that
    is no layer is a ConfigError.
    """

    def __init__(self, name: str, network: nn.Module, levels: list[str]) -> None:
        spec, layers = architecture(name), convolution_layers(name, network)
        unknown = [level for level in levels if level not in layers]
        if unknown:
            raise ConfigError(f"features.levels: the backbone has no layers {unknown}; it has {', '.join(layers)}")
        names = list(layers)
        names = names[: max(names.index(level) for level in levels) + 1]
        super().__init__({name: layers[name] for name in names})
        self.levels = levels
        self.channels_last = spec.channels_last
        self.stages = [[name for name in spec.layers(i) if name in names] for i in range(len(spec.stages))]
        maps = output_for_zeros(self, EMPTY_SIDE).values()
        self.channels = [m.shape[1] for m in maps]
        self.strides = [2 ** round(math.log2(EMPTY_SIDE / m.shape[-1])) for m in maps]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Maps (N, C, H/s, W/s) by level of a normalised batch (N, 3, H, W)."""
        maps = OrderedDict()
        for name, layer in self.items():
            x = layer(x)
            if name in self.levels:
                maps[name] = x.permute(0, 3, 1, 2) if self.channels_last else x
        return maps


class Backbone(nn.Module):
    """Image batch to feature maps, finest first.

    Args:
        body: a network whose forward gives a list or dict of maps (N, C, H/s, W/s), finest first, and that says their
            ``strides`` and ``channels`` in two lists. For ``transfer: partial`` it says its ``stages``: lists of the
            names of its children, in the order they are applied.
        name: for messages.
        normalize: give each map that is read a layer norm.
        loaded: the weights that were loaded into the body; None: none were.

    Attributes:
        body, name, loaded: as given.
        norms: the layer norms, or None.
        fpn: the pyramid (Lin et al. 2017), or None.
        strides: pixels of the input per cell of each map.
        channels: channels of each map.
        levels: names of the body's maps that are read; a pyramid has one map more.

    Raises:
        ConfigError: the body does not do as it says, or settings that do not fit it.
    """

    def __init__(
        self,
        body: nn.Module,
        name: str,
        settings: MapSettings = MapSettings(),
        normalize: bool = False,
        loaded: Loaded | None = None,
    ) -> None:
        super().__init__()
        self.body, self.name, self.loaded = body, name, loaded
        names = _check_maps(body, name)
        self.levels = list(names) if settings.levels is None else list(settings.levels)
        unknown = [level for level in self.levels if level not in names]
        if unknown:
            raise ConfigError(f"features.levels: {name} has no maps {unknown}; it has {', '.join(names)}")
        self.channels = [body.channels[names.index(level)] for level in self.levels]
        self.strides = [body.strides[names.index(level)] for level in self.levels]
        self.norms: nn.ModuleDict | None = None
        if normalize:
            self.norms = nn.ModuleDict({level: MapNorm(c) for level, c in zip(self.levels, self.channels, strict=True)})
        self.fpn: FeaturePyramidNetwork | None = None
        if settings.fpn:
            norm_layer = nn.BatchNorm2d if settings.fpn_norm else None
            self.fpn = FeaturePyramidNetwork(
                self.channels, settings.fpn_channels, extra_blocks=LastLevelMaxPool(), norm_layer=norm_layer
            )
            self.channels = [settings.fpn_channels] * (len(self.levels) + 1)
            self.strides = [*self.strides, self.strides[-1] * 2]
        if settings.freeze_batch_norm:
            freeze_batch_norms(self, "body")
        self._apply_transfer(settings)
        # The first parameter as it was drawn; a user's own class may bring weights of its own.
        is_ours = isinstance(body, LayerMaps) or name.startswith(PREFIX)
        first = next(body.parameters(), None)
        self._drawn = first.detach().clone() if loaded is None and is_ours and first is not None else None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [(N, C, H/s, W/s), ...] of a normalised batch (N, 3, H, W), one for each of ``strides``."""
        maps = _by_name(self.body(images))
        maps = OrderedDict((level, maps[level]) for level in self.levels)
        if self.norms is not None:
            maps = OrderedDict((level, self.norms[level](x)) for level, x in maps.items())
        return list(self.fpn(maps).values()) if self.fpn is not None else list(maps.values())

    def random_frozen_layers(self) -> list[str]:
        """The body's layers of which a part is fixed though no weights were loaded, neither here nor later."""
        first = next(self.body.parameters(), None)
        if self._drawn is None or first is None or not torch.equal(first.detach().cpu(), self._drawn.cpu()):
            return []
        return [name for name, layer in self.body.named_children() if _is_fixed(layer)]

    def _apply_transfer(self, settings: FeatureSettings) -> None:
        """Let only a part of the body learn; batch norms of the rest are frozen, or their statistics would drift."""
        if settings.transfer == "full":
            return
        fixed = [""]
        if settings.transfer == "partial":
            stages, count = _stages(self.body, self.name), settings.trainable_stages
            if count > len(stages):
                raise ConfigError(f"features.trainable_stages must be 1 to {len(stages)} for {self.name}, not {count}")
            fixed = [part for stage in stages[:-count] for part in stage]
        for part in fixed:
            self.body.get_submodule(part).requires_grad_(False)
            freeze_batch_norms(self, f"body.{part}".rstrip("."))


def _is_fixed(layer: nn.Module) -> bool:
    """Whether a part of a layer does not learn."""
    fixed = any(not parameter.requires_grad for parameter in layer.parameters())
    return fixed or any(isinstance(part, FrozenBatchNorm2d) for part in layer.modules())


def _stages(body: nn.Module, name: str) -> list[list[str]]:
    """The stages that a body says it has, without those that have nothing to learn."""
    stages = getattr(body, "stages", None)
    if not stages or isinstance(stages, nn.Module):
        raise ConfigError(
            f"features.transfer partial: {name} does not say its stages; give it an attribute stages, lists of the "
            "names of its children, or set features.transfer to frozen or full"
        )
    modules = dict(body.named_modules())
    unknown = [part for stage in stages for part in stage if part not in modules]
    if unknown:
        raise ConfigError(f"backbone {name}: its stages name {unknown}, and it has no children of these names")
    return [stage for stage in stages if any(True for part in stage for _ in modules[part].parameters())]


def _by_name(maps: Any) -> Mapping[str, Tensor]:
    """A network's maps by name; those of a list are called 0, 1, ..."""
    return maps if isinstance(maps, Mapping) else {str(i): x for i, x in enumerate(maps)}


def _check_maps(body: nn.Module, name: str) -> list[str]:
    """The names of a body's maps, if they are what it says they are."""
    wanted = f"backbone {name}: "
    for attribute in ("strides", "channels"):
        if not isinstance(getattr(body, attribute, None), Sequence):
            raise ConfigError(f"{wanted}it needs an attribute {attribute}, a list with one number for each of its maps")
    if isinstance(body, LayerMaps):  # measured
        return body.levels
    try:
        maps = output_for_zeros(body, EMPTY_SIDE)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{wanted}it fails on an image of {EMPTY_SIDE} x {EMPTY_SIDE} pixels ({error}); a detector's backbone "
            "takes images of any size"
        ) from error
    if not isinstance(maps, Mapping | list | tuple) or not maps:
        raise ConfigError(f"{wanted}its forward gives a {type(maps).__name__}; a list or a dict of maps is needed")
    maps = _by_name(maps)
    if not len(maps) == len(body.strides) == len(body.channels):
        raise ConfigError(
            f"{wanted}it gives {len(maps)} maps and says {len(body.strides)} strides and {len(body.channels)} channels"
        )
    for (key, x), stride, channels in zip(maps.items(), body.strides, body.channels, strict=True):
        shape, side = tuple(x.shape), EMPTY_SIDE // stride
        # A network without padding loses a cell at the border.
        if len(shape) != 4 or shape[1] != channels or abs(shape[2] * stride - EMPTY_SIDE) > stride:
            raise ConfigError(
                f"{wanted}of an image of {EMPTY_SIDE} x {EMPTY_SIDE} pixels, map {key} has the shape {shape}; by its "
                f"stride {stride} and channels {channels} it would be (1, {channels}, {side}, {side})"
            )
    return list(maps)


def build_backbone(
    backbone: str | Mapping[str, Any], weights: str | None = None, settings: MapSettings = MapSettings()
) -> tuple[Backbone, nn.Module | None]:
    """A backbone and the rest of its network, which may serve as the head of each region.

    Args:
        backbone: a name of `detkit.features.architectures.ARCHITECTURES`, ``timm/NAME``, or ``{class_path, init_args}``
            of a module as `Backbone` takes it.
        weights: None (from scratch) or a local file; of torchvision's and timm's networks also DEFAULT, and of
            torchvision's a name of its weights.

    Returns:
        the `Backbone`, and the top: the layers after the trunk (conv5 of a ResNet, fc6 and fc7 of VGG and AlexNet;
        None where there is none, or where a pyramid already uses them). A top always learns.

    Raises:
        ConfigError: for a backbone that does not exist or settings that do not fit it.
        WeightsError: for weights that do not fit.
    """
    if not is_named(backbone):
        result = open_backbone(backbone, weights, settings)
        if len(set(result.channels)) > 1:
            raise ConfigError(
                f"backbone {result.name}: its maps have {result.channels} channels, and without a pyramid they must be "
                "equal; set features.fpn to true, or choose one map by features.levels"
            )
        return result, None
    spec = architecture(backbone)
    result, network = named_backbone(backbone, weights, settings, spec.normalize)
    if settings.fpn or not spec.has_top:
        return result, None
    if spec.fully_connected:
        top = nn.Sequential(*classifier_layers(backbone, network)[1])
    else:
        layers = convolution_layers(backbone, network)
        names = [name for stage in range(spec.trunk + 1, len(spec.stages)) for name in spec.layers(stage)]
        top = nn.Sequential(OrderedDict((name, layers[name]) for name in names))
        top.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    return result, top


def is_named(backbone: str | Mapping[str, Any]) -> bool:
    """Whether it is one of `detkit.features.architectures.ARCHITECTURES`, or meant to be."""
    return isinstance(backbone, str) and not backbone.startswith(PREFIX)


def named_backbone(
    name: str, weights: str | None, settings: MapSettings, normalize: bool = False
) -> tuple[Backbone, nn.Module]:
    """A backbone of `ARCHITECTURES`, and the whole network of which it is cut; see `build_backbone`."""
    spec, network, loaded = architecture(name), classification_network(name), None
    if weights is not None:
        loaded = load_classification_weights(network, name, weights)
    elif not spec.normalize:
        initialize([network], settings.initialization)
    _set_batch_norm_eps(network, settings)
    if settings.freeze_batch_norm:
        freeze_batch_norms(network)
    ends = [spec.layers(stage)[-1] for stage in (spec.levels if settings.fpn else [spec.trunk])]
    body = LayerMaps(name, network, settings.levels or ends)
    return Backbone(body, name, settings, normalize, loaded), network


def open_backbone(backbone: str | Mapping[str, Any], weights: str | None, settings: MapSettings) -> Backbone:
    """A backbone of timm's or of a user's own; see `build_backbone`."""
    loaded = None
    if isinstance(backbone, str):
        name = backbone
        body, loaded = timm_network(backbone, weights, pyramid=settings.fpn, levels=settings.levels)
        settings = replace(settings, levels=None)  # of the maps that timm gives now, all are read
    else:
        name, body = str(backbone.get("class_path")), build(backbone, nn.Module)
        if weights is not None:
            loaded = load_state_dict_file(body, weights, name)
    _set_batch_norm_eps(body, settings)
    return Backbone(body, name, settings, loaded=loaded)


def _set_batch_norm_eps(network: nn.Module, settings: MapSettings) -> None:
    least = torch.finfo(torch.float32).tiny  # adds nothing to a variance; of 0 itself, torch 2.11 raises an error
    for layer in network.modules():
        if settings.batch_norm_eps is not None and isinstance(layer, nn.BatchNorm2d):
            layer.eps = max(settings.batch_norm_eps, least)
