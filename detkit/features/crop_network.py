"""The network R-CNN applies to each warped crop: a whole classification network, read at two depths.

The paper reads AlexNet's pool5 (for the boxes) and fc7 (for the classes). Networks without fully connected layers have
neither by name: theirs are the last map, averaged to a small grid, and its global average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.errors import ConfigError
from detkit.features.architectures import architecture, classifier_layers
from detkit.features.backbones import Backbone, FeatureSettings, MapSettings, is_named, named_backbone, open_backbone
from detkit.features.layers import output_for_zeros

#: Cells a side of the pool5 of networks that end in a global average.
GRID = 3


class CropFeatures(NamedTuple):
    """What is read of each of N crops: ``pool5`` (N, D5), which knows where, and ``fc7`` (N, D7), which knows what."""

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
        """What is to be told of crops to which pre-trained fully connected layers are not used; None: nothing.

        These layers read a fixed number of cells, which an adaptive pooling makes of whatever map there is: nothing
        fails, but fc6 of AlexNet sees one cell 36 times in a crop of 64 pixels. More than half as many cells, and up to
        twice as many, are let pass. Networks that end in a global average take any size.
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
        settings: see `FeatureSettings`.

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
