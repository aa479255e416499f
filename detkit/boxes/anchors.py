"""Anchors: the boxes of several sizes and ratios a region proposal network starts from.

Shapes: A anchors a cell, a feature map of H x W cells. Ratios are height / width.
Rows are ordered (h, w, a), as the channels of the network's heads are; within a cell the
ratio changes slowest (ratio-major), in both conventions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from detkit.errors import ConfigError
from detkit.settings import check_choice, check_range

CONVENTIONS = ("torchvision", "paper")
PAPER_CELL = 16
"""Side in pixels of the square the paper's anchors grow from: the stride of VGG16's and ZF's last map."""


@dataclass(frozen=True)
class AnchorSettings:
    """The anchors of a region proposal network.

    Args:
        sizes: a list of sizes in pixels for each feature map, the square root of an anchor's area; null: 32 to 512 for
            a pyramid, one a map, and [128, 256, 512] for a single map.
        ratios: height over width.
        convention: torchvision or paper, see `AnchorGenerator`.
    """

    sizes: list[list[float]] | None = None
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    convention: str = "torchvision"

    def __post_init__(self) -> None:
        check_choice("anchors.convention", self.convention, CONVENTIONS)

    def level_sizes(self, levels: int) -> list[list[float]]:
        """The sizes of each of so many feature maps, the defaults where none are given."""
        if self.sizes is not None:
            return self.sizes
        return [[128.0, 256.0, 512.0]] if levels == 1 else [[32.0 * 2**i] for i in range(levels)]

    def generator(self, strides: Sequence[int]) -> AnchorGenerator:
        """The generator for feature maps of these strides; ConfigError for another number of lists of sizes."""
        sizes = self.level_sizes(len(strides))
        fixed = list(strides) if self.convention == "paper" else None
        return AnchorGenerator(sizes, self.ratios, self.convention, num_levels=len(strides), strides=fixed)


class AnchorGenerator(nn.Module):
    """Lays the anchors of each level over its feature map.

    sizes: for each level the sizes in pixels, the square root of an anchor's area.
    ratios: for each level its ratios, or one flat list for all levels.
    convention: "torchvision" rounds half extents and centres anchors on the corner of their cell;
        "paper" rounds the base shape, multiplies it by size / 16, and centres anchors
        on a cell of 16 pixels (generate_anchors.py, papers.md 2.3 and 2.5).
    num_levels: how many feature maps will come, where the caller knows it and wants it checked.
    strides: pixels from one cell to the next at each level; None takes them from the sizes of
        image and feature map.

    Raises ConfigError where the counts of sizes, ratios, levels and strides differ.
    It has no parameters and adds nothing to a state_dict.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[Sequence[float]] | Sequence[float] = (0.5, 1.0, 2.0),
        convention: str = "torchvision",
        num_levels: int | None = None,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_choice("anchor convention", convention, CONVENTIONS)
        if not sizes or not all(isinstance(level, Sequence) and level for level in sizes):
            raise ConfigError(f"anchor sizes are one list for each level, such as [[128, 256, 512]], not {sizes}")
        if not ratios:
            raise ConfigError("anchor ratios are empty: give at least one, such as [1.0]")
        shared = isinstance(ratios[0], (int, float))
        level_ratios = cast(Sequence[Sequence[float]], [ratios] * len(sizes) if shared else ratios)
        for name, levels in (("sizes", sizes), ("ratios", level_ratios)):
            for value in (value for level in levels for value in level):
                check_range(f"anchor {name}", value, 0, 1e5, open_low=True)
        self.convention = convention
        self.sizes = [[float(size) for size in level] for level in sizes]
        self.strides = None if strides is None else [int(stride) for stride in strides]
        counts = {
            "ratios": len(level_ratios),
            "levels": num_levels,
            "strides": None if strides is None else len(strides),
        }
        for name, count in counts.items():
            if count is not None:
                self._check_count(name, count)
        shape = _paper_cell if convention == "paper" else _torchvision_cell
        # Not buffers: half precision models would round them. `forward` moves them to the device.
        self.cell_anchors: list[Tensor] = [
            shape(sizes_here, ratios_here) for sizes_here, ratios_here in zip(sizes, level_ratios, strict=True)
        ]

    def _check_count(self, name: str, count: int) -> None:
        if count != len(self.sizes):
            raise ConfigError(
                f"anchor sizes are given for {len(self.sizes)} level(s) but there are {count} {name}: "
                "give one list of sizes for each feature map"
            )

    @property
    def num_anchors(self) -> list[int]:
        """How many anchors a cell of each level has."""
        return [len(cell) for cell in self.cell_anchors]

    def forward(
        self,
        feature_sizes: Sequence[tuple[int, int]],
        image_size: tuple[int, int],
        device: torch.device | str | None = None,
    ) -> list[Tensor]:
        """The anchors of each level: float32 (H * W * A, 4), not clipped to the image.

        feature_sizes: (H, W) of each map; image_size: (height, width) of the padded batch.
        Raises ConfigError where the number of maps is not that of the levels.
        """
        self._check_count("feature maps", len(feature_sizes))
        levels = []
        for level, (cell, (height, width)) in enumerate(zip(self.cell_anchors, feature_sizes, strict=True)):
            if self.strides is None:
                stride_y, stride_x = image_size[0] // height, image_size[1] // width
            else:  # a map may be empty
                stride_y = stride_x = self.strides[level]
            y = torch.arange(height, device=device, dtype=torch.float32) * stride_y
            x = torch.arange(width, device=device, dtype=torch.float32) * stride_x
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1)
            cell = cell.to(device=device, non_blocking=True)
            levels.append((shifts[:, :, None] + cell).reshape(-1, 4))
        return levels

    def extra_repr(self) -> str:
        return f"num_anchors={self.num_anchors}, convention={self.convention!r}, strides={self.strides}"


def _torchvision_cell(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """(A, 4) centred on 0, half extents rounded (papers.md 2.5). float32 throughout, as torchvision's."""
    scale = torch.tensor(sizes, dtype=torch.float32)
    height_factor = torch.tensor(ratios, dtype=torch.float32)[:, None].sqrt()
    width, height = 1 / height_factor * scale, height_factor * scale
    return (torch.stack((-width, -height, width, height), dim=-1).reshape(-1, 4) / 2).round()


def _paper_cell(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """(A, 4) centred on a cell of 16 pixels: the base shape is rounded, then scaled without rounding again."""
    ratio = torch.tensor(ratios, dtype=torch.float64)[:, None]
    base_width = (PAPER_CELL**2 / ratio).sqrt().round()
    base_height = (base_width * ratio).round()
    scale = torch.tensor(sizes, dtype=torch.float64) / PAPER_CELL
    width, height = base_width * scale, base_height * scale
    corners = torch.stack((-width, -height, width, height), dim=-1) / 2 + PAPER_CELL / 2
    return corners.reshape(-1, 4).float()
