"""timm's networks as backbones, where timm is installed (``pip install timm``).

timm cuts them itself (``features_only``) and says the stride and the channels of each map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detkit.errors import ConfigError, WeightsError
from detkit.features.weights import Loaded, last_layer, load_state_dict_file

#: What their names begin with: ``timm/resnet50d``.
PREFIX = "timm/"
#: Finer maps than of this stride are not read: they are large, and say little.
FINEST_STRIDE = 4
#: Without a pyramid the last map up to this stride is read, as of the papers' networks.
TRUNK_STRIDE = 16


class TimmMaps(nn.Module):
    """The maps of one of timm's networks, as `detkit.features.backbones.Backbone` takes them.

    ``network`` is built with ``features_only``; ``ends`` are the paths of the modules at whose ends there are maps, up
    to the last one that is read. Its ``stages`` end there too, and are empty where timm does not show them.
    """

    def __init__(self, network: nn.Module, ends: list[str]) -> None:
        super().__init__()
        self.network = network
        self.strides = list(network.feature_info.reduction())
        self.channels = list(network.feature_info.channels())
        *stages, unread = _stages(network, ends)
        self.stages = [[f"network.{path}" for path in stage] for stage in stages]
        for path in unread if stages else ():  # some of timm's networks compute them nevertheless
            network.get_submodule(path).requires_grad_(False)
        self.permute = str(getattr(network, "output_fmt", "")).endswith("NHWC")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps [(N, C, H/s, W/s), ...] of a normalised batch (N, 3, H, W)."""
        return [m.permute(0, 3, 1, 2) if self.permute else m for m in self.network(x)]


def timm_network(
    name: str, weights: str | None, pyramid: bool, levels: list[str] | None
) -> tuple[TimmMaps, Loaded | None]:
    """One of timm's networks.

    Args:
        name: ``timm/NAME``.
        weights: None (from scratch), DEFAULT (timm downloads its own), or a local state dict of the whole network.
        pyramid: read one map of each stride from 4 on; otherwise the last one of stride 16 or less.
        levels: the numbers of the maps to read instead.

    Raises:
        ConfigError: timm is not installed, or has no such network.
        WeightsError: for weights that do not fit or cannot be downloaded.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"backbone {name} needs timm; pip install timm") from error
    own = name.removeprefix(PREFIX)
    if not timm.is_model(own):
        similar = timm.list_models(f"*{own}*")[:5]
        hint = f"; there are {', '.join(similar)}" if similar else "; timm.list_models() gives the names"
        raise ConfigError(f"backbone {name}: timm has no network {own!r}{hint}")
    try:
        with torch.device("meta"):
            every = timm.create_model(own, features_only=True).feature_info
    except RuntimeError as error:
        raise ConfigError(f"backbone {name}: timm does not give its maps ({error})") from error
    read = _choose(every.reduction(), pyramid)
    if levels is not None:
        read = [int(level) for level in levels if level.isdecimal() and int(level) < len(every.reduction())]
        if len(read) < len(levels):
            numbers = ", ".join(str(i) for i in range(len(every.reduction())))
            raise ConfigError(f"features.levels {levels}: the maps of {name} are {numbers}")
    options: dict[str, Any] = {"features_only": True, "out_indices": [every.out_indices[i] for i in read]}
    loaded = None
    if weights == "DEFAULT":
        options["pretrained"] = True
    elif weights is not None:
        whole = timm.create_model(own)
        loaded = load_state_dict_file(whole, weights, name, last_layer(whole))
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": whole.state_dict()}}
    try:
        network = timm.create_model(own, **options)
    except (RuntimeError, OSError, ImportError) as error:
        raise WeightsError(
            f"weights {weights} of {name} could not be loaded by timm ({error}); download them elsewhere and give "
            "the file: --model.weights FILE, in Python weights=FILE"
        ) from error
    if weights == "DEFAULT":
        loaded = Loaded(f"timm ({name})", len(network.state_dict()), "")
    return TimmMaps(network, every.module_name()[: read[-1] + 1]), loaded


def _choose(strides: list[int], pyramid: bool) -> list[int]:
    """The positions of the maps that are read."""
    last = {stride: i for i, stride in enumerate(strides)}
    if pyramid:
        return [i for stride, i in last.items() if stride >= FINEST_STRIDE] or [len(strides) - 1]
    return [max((i for stride, i in last.items() if stride <= TRUNK_STRIDE), default=len(strides) - 1)]


def _stages(network: nn.Module, ends: list[str]) -> list[list[str]]:
    """The paths of a network's modules, in a new list after each of ``ends``; the last one holds what follows them."""
    paths: list[str] = []
    known = {name for end in ends for name in (end, end.replace(".", "_"))}  # timm flattens some of the names
    for name, child in network.named_children():
        inner = [f"{name}.{key}" for key, _ in child.named_children()]
        paths += inner if known & set(inner) else [name]
    stages: list[list[str]] = [[]]
    for path in paths:
        stages[-1].append(path)
        if path in known:
            stages.append([])
    return stages
