"""R-CNN's features: a whole classification network applied to each warped crop, in passes that fit a memory.

The network is read at two depths. The paper reads AlexNet's pool5 (for the boxes) and fc7 (for the classes). Networks
without fully connected layers have neither by name: theirs are the last map, averaged to a small grid, and its global
average.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.errors import ConfigError
from detkit.features.architectures import architecture, classifier_layers
from detkit.features.backbones import Backbone, FeatureSettings, MapSettings, is_named, named_backbone, open_backbone
from detkit.features.layers import output_for_zeros
from detkit.features.warping import MODES, warp
from detkit.settings import check_choice, check_range

#: Cells a side of the pool5 of networks that end in a global average.
GRID = 3
#: More crops in a pass gain nothing.
MOST_CROPS = 256
#: GB of a pass, by default. On a CPU, glibc returns larger blocks to the system after each layer and requests them
#: again in the next: passes of 1 GB take twice as long (benchmarks/results/warping.md).
MEMORY, MEMORY_CPU = 1.0, 0.05


class CropFeatures(NamedTuple):
    """What is read of each of N crops: ``pool5`` (N, D5), for the boxes, and ``fc7`` (N, D7), for the classes."""

    pool5: Tensor
    fc7: Tensor


class CropNetwork(nn.Module):
    """Crops to `CropFeatures`.

    Args:
        backbone: the convolutions.
        pool: from their map to pool5.
        top: to fc7, from pool5 (fully connected layers) or from the map.
        top_reads_pool5: which of the two.
        crop_size: pixels a side of the crops.

    Attributes:
        pool5_features, fc7_features: D5 and D7.
    """

    def __init__(
        self, backbone: Backbone, pool: nn.Module, top: nn.Module, top_reads_pool5: bool, crop_size: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.top = top
        self.top_reads_pool5 = top_reads_pool5
        self.crop_size = crop_size
        features = output_for_zeros(self, crop_size)
        self.pool5_features = features.pool5.shape[1]
        self.fc7_features = features.fc7.shape[1]

    def forward(self, crops: Tensor) -> CropFeatures:
        """`CropFeatures` of a normalised batch (N, 3, S, S).

        A crop alone has no statistics where its map is a single cell: batch norms then take those they have kept.
        """
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d) and m.training] if len(crops) == 1 else []
        for norm in norms:
            norm.eval()
        maps = self.backbone(crops)[-1]
        pool5 = self.pool(maps)
        fc7 = self.top(pool5 if self.top_reads_pool5 else maps)
        for norm in norms:
            norm.train()
        return CropFeatures(pool5.flatten(1), fc7)

    def cells(self, crop_size: int) -> int:
        """Cells a side of the map from which pool5 is made, for crops of that size."""
        weight = next(self.parameters())
        with torch.no_grad():
            return self.pool[:-1](self.backbone(weight.new_zeros(1, 3, crop_size, crop_size))[-1]).shape[-1]

    def size_line(self) -> str | None:
        """A warning about crops to which pre-trained fully connected layers are not used; None where they are.

        Nothing fails, for an adaptive pooling makes their number of cells of any map, but fc6 of AlexNet sees one cell
        36 times in a crop of 64 pixels. More than half as many cells, and up to twice as many, are let pass.
        """
        loaded = self.backbone.loaded
        if loaded is None or not self.top_reads_pool5:
            return None
        own, here = self.cells(loaded.crop_size), self.cells(self.crop_size)
        if own < 2 * here <= 4 * own:
            return None
        return (
            f"warning: crop.size {self.crop_size} gives a map of {here} x {here} cells, and the fully connected layers "
            f"of these weights have learnt from {own} x {own}: they will be of less use than with crop.size: "
            f"{loaded.crop_size}"
        )


def build_crop_network(
    backbone: str | Mapping[str, Any],
    crop_size: int,
    weights: str | None = None,
    settings: FeatureSettings = FeatureSettings(),
) -> CropNetwork:
    """The network of R-CNN for crops of that size.

    Args:
        backbone: as of `detkit.features.backbones.build_backbone`.
        crop_size: pixels a side; 227 for the paper's AlexNet (torchvision's takes 224 too), 224 for VGG16.
        weights: None (from scratch), DEFAULT, a torchvision weight name, or a local file.

    Raises:
        ConfigError: for a backbone that does not exist, or crops that it cannot take.
        WeightsError: for weights that do not fit.
    """
    maps = MapSettings(**asdict(settings), fpn=False)
    if is_named(backbone):
        spec = architecture(backbone)
        maps = replace(maps, levels=[spec.layers(-1)[-1]])
        convolutions, network = named_backbone(backbone, weights, maps)
        pooling, classifier = classifier_layers(backbone, network)
        hint = f"; its own is {spec.crop_size}"
    else:
        convolutions = open_backbone(backbone, weights, maps)
        pooling, classifier = [], [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        hint = ""
    grid = nn.AdaptiveAvgPool2d(min(GRID, max(crop_size // convolutions.strides[-1], 1)))
    pool, top = nn.Sequential(*pooling) if pooling else grid, nn.Sequential(*classifier)
    try:
        return CropNetwork(convolutions, pool, top, bool(pooling), crop_size)
    except RuntimeError as error:
        raise ConfigError(
            f"crop.size {crop_size} is too small for {convolutions.name}, whose maps end up empty{hint}"
        ) from error


@dataclass(frozen=True)
class CropSettings:
    """How a box becomes a crop, and how crops go through the network.

    Args:
        size: pixels a side of a crop, at most 4096; 227 for the paper's AlexNet, 224 for most networks, 32 for lenet5.
        mode: warp (each axis by itself), square (the smallest square around the box), or square_masked (the same
            square, without the image around the box and its context in it).
        context: pixels of context around the box, in the crop; 16 in the paper, for 227.
        memory: GB that the crops of one pass through the network, and what it makes of them, may take; null: 1, on a
            CPU 0.05, where larger passes take longer.
        bf16: compute features in bfloat16, or in the weights' type, whatever the trainer's precision; null: in bfloat16
            where the device has it, elsewhere in the trainer's precision. Fine-tuning always has the trainer's.
    """

    size: int = 224
    mode: str = "warp"
    context: int = 16
    memory: float | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        check_choice("crop.mode", self.mode, MODES)
        check_range("crop.size", self.size, 1, 4096)
        check_range("crop.memory", self.memory, 0, open_low=True)
        if not 0 <= 2 * self.context < self.size:
            raise ConfigError(f"crop.context: twice {self.context} must be at least 0 and below crop.size {self.size}")


class CropReader:
    """Reads boxes of an image through a `CropNetwork` for crops of ``settings.size``; it holds no weights of its own.

    ``channels_last`` is the memory format of the crops.
    """

    def __init__(self, network: CropNetwork, settings: CropSettings, channels_last: bool = False) -> None:
        self.network = network
        self.settings = settings
        self.channels_last = channels_last
        self._bytes = _bytes_per_crop(network)

    def crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        """The boxes (N, 4) of a normalised image (3, H, W) as crops (N, 3, S, S), of the type of the weights."""
        s = self.settings
        crops = warp(image, boxes, s.size, s.context, s.mode, self.channels_last)
        return crops.to(next(self.network.parameters()).dtype)

    def crops_per_pass(self, device: torch.device) -> int:
        """How many crops go through the network together."""
        memory = self.settings.memory or (MEMORY_CPU if device.type == "cpu" else MEMORY)
        return max(1, min(MOST_CROPS, int(memory * 1e9 / self._bytes)))

    def read(self, image: Tensor, boxes: Tensor) -> CropFeatures:
        """Features of boxes (N, 4) of a normalised image (3, H, W), in float32; N may be 0."""
        if not len(boxes):
            sizes = (self.network.pool5_features, self.network.fc7_features)
            return CropFeatures(*(image.new_zeros(0, size, dtype=torch.float32) for size in sizes))
        passes = []
        for some in boxes.split(self.crops_per_pass(image.device)):
            with self._precision(image.device):
                features = self.network(self.crops(image, some))
            passes.append([part.float() for part in features])
        return CropFeatures(*(torch.cat(parts) for parts in zip(*passes, strict=True)))

    def _precision(self, device: torch.device) -> AbstractContextManager[None]:
        if self.settings.bf16 is None and not has_bf16(device):
            return nullcontext()
        # Within a trainer's autocast the cache would hand out weights that were cast to that one's type.
        return torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16 is not False, cache_enabled=False)


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, and not only imitates it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def _bytes_per_crop(network: CropNetwork) -> int:
    """Bytes a crop takes on its way through the network: itself, and the largest layer's input and output."""
    largest = 0

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, sum(t.nbytes for t in (*inputs, output) if isinstance(t, Tensor)))

    leaves = [layer for layer in network.modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(measure) for layer in leaves]
    output_for_zeros(network, network.crop_size)
    for hook in hooks:
        hook.remove()
    return 4 * 3 * network.crop_size**2 + largest
