"""Selective search as one call, and for many images side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.errors import ConfigError, ImageTypeError
from detkit.threads import available_cores

from .parameters import SearchParameters, parameters_of


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
    one is left: see `to_colour_space`, `segment`, `describe`, `group` and `rank`, which are the steps of this. The same
    image and arguments give the same boxes in the same order, in any thread or process of one machine.

    Memory: about 85 bytes for each pixel that is searched, 100 with "paper": 20 MB for a photograph of 500 x 375, and
    4 GB for one of 8000 x 6000 that `resize_width` None leaves as large as it is.

    Args:
        image: uint8 RGB, an array (H, W, 3) or a tensor (3, H, W); of any size from one pixel on.
        mode: "single" (hundreds of boxes), "fast" (one to two thousand) or "quality" (several thousand); the last
            takes four times as long.
        max_boxes: at most so many, the first ones; None for all.
        min_side: boxes with a shorter side are dropped, in pixels of the image as it is searched; None for the
            parameters' own: 0 for "opencv", 20 for "paper".
        parameters: "opencv", "paper" (see `parameters_of`) or numbers of your own, with which `mode` does not count.
        resize_width: a wider image is searched at this width, and the boxes are mapped back; None to search images as
            they are. R-CNN's authors brought every image to that width; narrower ones are not enlarged here, with
            "paper" neither.
        seed: of the random part of the order.

    Returns:
        float32 (N, 4), x1 y1 x2 y2 in pixels of `image`, half-open, each box once, most object-like first.

    Raises:
        ImageTypeError: an image of another type or shape, or without a pixel.
        ConfigError: an unknown mode or parameters, or a number out of its range.
    """
    pixels = as_pixels(image)
    chosen = parameters if isinstance(parameters, SearchParameters) else parameters_of(parameters, mode)
    for name, value in (("max_boxes", max_boxes), ("resize_width", resize_width)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} of selective search must be 1 or more, or null for no limit; it is {value}")
    from .ranking import rank

    height, width = pixels.shape[:2]
    searched = pixels if resize_width is None or width <= resize_width else shrink(pixels, resize_width)
    side = chosen.min_side if min_side is None else min_side
    boxes = rank(group_all(searched, chosen), seed, side)[:max_boxes].astype(np.float32)
    if searched is not pixels:
        boxes[:, 0::2] *= width / searched.shape[1]
        boxes[:, 1::2] *= height / searched.shape[0]
        # Rounding must not put a box's far side beyond the image.
        np.minimum(boxes, np.array([width, height, width, height], np.float32), out=boxes)
    return torch.from_numpy(boxes)


def selective_search_many(
    images: Iterable[np.ndarray | Tensor], threads: int | None = None, **options: Any
) -> Iterator[Tensor]:
    """`selective_search` of one image after the other, several at a time.

    Args:
        images: taken as they are needed: beside those in work, as many wait or are done.
        threads: images in work at once; None for one a core. The boxes do not hang on it.
        options: of `selective_search`.

    Yields:
        the boxes of each image, in the images' order.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be 1 or more, or null for one a core; it is {threads}")
    threads = threads or available_cores()
    pending: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="selective_search") as pool:
        for image in images:
            pending.append(pool.submit(selective_search, image, **options))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def group_all(image: np.ndarray, parameters: SearchParameters) -> list:
    """The hierarchies of an image (H, W, 3): by colour space, then k, then strategy; see `Hierarchy`."""
    from .colour_spaces import to_colour_space
    from .grouping import group
    from .regions import describe_many
    from .segmentation import segment_many

    hierarchies = []
    for name in parameters.colour_spaces:
        converted = to_colour_space(image, name)
        segmentations = segment_many(
            converted, parameters.ks, parameters.sigma, parameters.min_sizes, parameters.connectivity
        )
        for regions in describe_many(converted, segmentations):
            hierarchies += [group(regions, strategy) for strategy in parameters.strategies]
    return hierarchies


def as_pixels(image: np.ndarray | Tensor) -> np.ndarray:
    """The image as an array (H, W, 3); raises ImageTypeError for anything but uint8 RGB with a pixel at least."""
    if isinstance(image, Tensor):
        wanted = image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.numel() > 0
        what = f"a {str(image.dtype).removeprefix('torch.')} tensor of shape {tuple(image.shape)}"
        pixels = image.detach().cpu().permute(1, 2, 0).numpy() if wanted else None
    elif isinstance(image, np.ndarray):
        wanted = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0
        what = f"a {image.dtype} array of shape {image.shape}"
        pixels = image if wanted else None
    else:
        what, pixels = f"a {type(image).__name__}", None
    if pixels is None:
        raise ImageTypeError(
            f"selective search wants a uint8 RGB image, an array (H, W, 3) or a tensor (3, H, W), of a pixel or more; "
            f"it got {what}"
        )
    return np.ascontiguousarray(pixels)


def shrink(image: np.ndarray, width: int) -> np.ndarray:
    """The image at that width, sides in proportion."""
    import cv2

    height = max(round(image.shape[0] * width / image.shape[1]), 1)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
