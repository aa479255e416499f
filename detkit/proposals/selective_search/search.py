"""Selective search as one call, its parameters, and the order of its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from detkit.errors import ConfigError, ImageTypeError
from detkit.settings import check_choice

if TYPE_CHECKING:
    from detkit.proposals.selective_search.grouping import Hierarchy

#: 0.8 in single precision, as OpenCV passes it on: the difference changes some regions.
OPENCV_SIGMA = 0.800000011920929

ALL = ("colour", "texture", "size", "fill")
NO_COLOUR = ("texture", "size", "fill")


@dataclass(frozen=True)
class SearchParameters:
    """What selective search varies: one hierarchy of regions for each colour space, k and strategy.

    Attributes:
        colour_spaces: see `COLOUR_SPACES`.
        ks: thresholds of the initial segmentation; see `segment`.
        strategies: for each strategy, the measures whose mean is the similarity; see `group`.
        min_sizes: for each k, initial regions of fewer pixels are absorbed by a neighbour.
        sigma: smoothing before segmentation, in pixels.
        connectivity: 4 or 8 neighbours of a pixel.
        min_side: boxes with a shorter side are dropped, in pixels of the image as it was searched.
    """

    colour_spaces: tuple[str, ...]
    ks: tuple[float, ...]
    strategies: tuple[tuple[str, ...], ...]
    min_sizes: tuple[int, ...]
    sigma: float = 0.8
    connectivity: int = 4
    min_side: int = 0


def parameters_of(name: str, mode: str) -> SearchParameters:
    """The parameters of a set and a mode.

    "opencv": those of cv2.ximgproc's selective search (contrib 4.x, selectivesearchsegmentation.cpp), as they take
    effect (see `colour_spaces` on hue). The boxes are then OpenCV's, except where edges of equal weight
    or pairs of equal similarity are ordered differently.

    "paper": those of Uijlings et al. (IJCV 2013, table 5) as R-CNN used them (papers.md 2.1), with the graph of 8
    neighbours. The authors' histograms and similarities are compiled MATLAB: here both sets use the same ones.

    Args:
        name: "opencv" or "paper".
        mode: "single" (one grouping), "fast" or "quality".

    Raises:
        ConfigError: an unknown set or mode.
    """
    check_choice("parameters of selective search", name, ("opencv", "paper"))
    check_choice("mode of selective search", mode, ("single", "fast", "quality"))
    if name == "opencv":
        spaces: tuple[str, ...] = ("hsv", "lab", "gray", "blue", "rgi")
        ks: tuple[float, ...] = {"single": (200,), "fast": (150, 300, 450), "quality": (150, 300, 450, 600, 750)}[mode]
        min_sizes, sigma, connectivity, min_side = (100,) * len(ks), OPENCV_SIGMA, 4, 0
    else:
        spaces = ("hsv_full", "lab", "normalized_rgi", "h_full", "gray")
        ks = {"single": (100,), "fast": (50, 100), "quality": (50, 100, 150, 300)}[mode]
        min_sizes, sigma, connectivity, min_side = tuple(int(k) for k in ks), 0.8, 8, 20
    strategies = (ALL, NO_COLOUR, ("fill",), ("size",))
    count, kinds = {"single": (1, 1), "fast": (2, 2), "quality": (5, 4)}[mode]
    return SearchParameters(spaces[:count], ks, strategies[:kinds], min_sizes, sigma, connectivity, min_side)


def selective_search(
    image: np.ndarray | Tensor,
    mode: str = "fast",
    max_boxes: int | None = None,
    min_side: float | None = None,
    parameters: str | SearchParameters = "opencv",
    resize_width: int | None = 500,
    seed: int = 0,
) -> Tensor:
    """Boxes that may hold objects (Uijlings et al., "Selective Search for Object Recognition", IJCV 2013).

    For every colour space and k the image is segmented, and for every strategy neighbouring regions are merged until
    one is left. The same image and arguments give the same boxes in the same order, in any thread or process of one
    machine. The compiled loops release the interpreter's lock, so several images can be searched in threads.

    Memory: about 85 bytes for each pixel that is searched, 100 with "paper": 20 MB for a photograph of 500 x 375, and
    4 GB for one of 8000 x 6000 with `resize_width` None.

    Args:
        image: uint8 RGB, an array (H, W, 3) or a tensor (3, H, W); of any size from one pixel on.
        mode: "single" (hundreds of boxes), "fast" (one to two thousand) or "quality" (several thousand); the last
            takes four times as long.
        max_boxes: at most so many, the first ones; None for all.
        min_side: boxes with a shorter side are dropped, in pixels of the image as it is searched; None for the value
            in the parameters: 0 for "opencv", 20 for "paper".
        parameters: "opencv", "paper" (see `parameters_of`) or a SearchParameters, which takes the place of `mode`.
        resize_width: a wider image is searched at this width, and the boxes are mapped back; None: at its own size.
        seed: of the random part of the order.

    Returns:
        float32 (N, 4), x1 y1 x2 y2 in pixels of `image`, half-open, no box twice, in the order of `rank`.

    Raises:
        ImageTypeError: an image of another type or shape, or without a pixel.
        ConfigError: an unknown mode or parameters, or a number out of its range.
    """
    import cv2

    pixels = as_pixels(image)
    chosen = parameters if isinstance(parameters, SearchParameters) else parameters_of(parameters, mode)
    for name, value in (("max_boxes", max_boxes), ("resize_width", resize_width)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} of selective search must be 1 or more, or null for no limit; it is {value}")
    height, width = pixels.shape[:2]
    searched = pixels
    if resize_width is not None and width > resize_width:
        size = (resize_width, max(round(height * resize_width / width), 1))
        searched = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    side = chosen.min_side if min_side is None else min_side
    boxes = rank(group_all(searched, chosen), seed, side)[:max_boxes].astype(np.float32)
    if searched is not pixels:
        boxes[:, 0::2] *= width / searched.shape[1]
        boxes[:, 1::2] *= height / searched.shape[0]
        # Rounding must not put a box's far side beyond the image.
        np.minimum(boxes, np.array([width, height, width, height], np.float32), out=boxes)
    return torch.from_numpy(boxes)


def group_all(image: np.ndarray, parameters: SearchParameters) -> list[Hierarchy]:
    """The hierarchies of an image (H, W, 3): by colour space, then k, then strategy; see `Hierarchy`."""
    from detkit.proposals.selective_search.colour_spaces import to_colour_space
    from detkit.proposals.selective_search.grouping import group
    from detkit.proposals.selective_search.regions import describe
    from detkit.proposals.selective_search.segmentation import segment

    hierarchies = []
    for name in parameters.colour_spaces:
        converted = to_colour_space(image, name)
        options = (parameters.sigma, parameters.min_sizes, parameters.connectivity)
        for regions in describe(converted, segment(converted, parameters.ks, *options)):
            hierarchies += [group(regions, strategy) for strategy in parameters.strategies]
    return hierarchies


def rank(hierarchies: Sequence[Hierarchy], seed: int = 0, min_side: float = 0.0) -> np.ndarray:
    """Boxes of several hierarchies, no box twice, those most likely to hold an object first.

    As in Uijlings et al. (2013, section 4.3): a region's rank in its hierarchy, counted from the last merge, times a
    random number between 0 and 1. Initial regions rank behind the first merge. (OpenCV multiplies the number of levels
    below a region instead, so that small regions come first.)

    Args:
        hierarchies: from `group`, in a fixed order.
        seed: of the random numbers.
        min_side: boxes with a shorter side are left out, in pixels.

    Returns:
        (N, 4) int32, half-open x1 y1 x2 y2.
    """
    boxes = np.concatenate([hierarchy.boxes for hierarchy in hierarchies])
    ranks = np.concatenate([np.minimum(np.arange(len(h.sizes), 0, -1), len(h.children) + 1) for h in hierarchies])
    order = np.argsort(ranks * np.random.default_rng(seed).random(len(ranks)), kind="stable")
    boxes = boxes[order]
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] >= min_side).all(axis=1)]
    return boxes[_first_of_each(boxes)]


def _first_of_each(boxes: np.ndarray) -> np.ndarray:
    """Ascending positions of the first occurrence of each box."""
    # Two numbers a box compare faster than four; a coordinate is below 2**31.
    corners = boxes.astype(np.int64)
    low, high = corners[:, 0] << 32 | corners[:, 1], corners[:, 2] << 32 | corners[:, 3]
    order = np.lexsort((high, low))
    new = np.ones(len(boxes), bool)
    new[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
    return np.sort(order[new])


def as_pixels(image: np.ndarray | Tensor) -> np.ndarray:
    """The image as an array (H, W, 3); raises ImageTypeError unless it is uint8 RGB of one pixel or more."""
    got, pixels = f"a {type(image).__name__}", None
    if isinstance(image, Tensor):
        got = f"a {str(image.dtype).removeprefix('torch.')} tensor of shape {tuple(image.shape)}"
        pixels = image.detach().cpu().permute(1, 2, 0).numpy() if image.ndim == 3 else None
    elif isinstance(image, np.ndarray):
        got, pixels = f"a {image.dtype} array of shape {image.shape}", image
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageTypeError(
            f"selective search wants a uint8 RGB image of one pixel or more, an array (H, W, 3) or a tensor (3, H, W); "
            f"it got {got}"
        )
    return np.ascontiguousarray(pixels)
