"""R-CNN's crops: proposals warped to one size, with context around them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.errors import ConfigError
from detkit.settings import check_choice

MODES = ("warp", "square", "square_masked")
#: Bytes of the crops, in float32, that the batched operations make at a time; they need some six times as much.
TOGETHER = 64 * 2**20


class CropGeometry(NamedTuple):
    """Which part of the image each crop shows, and where in the crop: int64 (N, 4) both, x1 y1 x2 y2, half-open.

    `source` is resized to the size of `target`; the rest of the crop is zero. Both are all zero where a crop shows
    nothing of the image.
    """

    source: Tensor
    target: Tensor


def crop_geometry(
    boxes: Tensor, image_size: tuple[int, int], size: int, context: int = 16, mode: str = "warp"
) -> CropGeometry:
    """What `warp` cuts out and where in the crop, by the arithmetic of the authors' rcnn_im_crop.m (papers.md 2.1).

    Args:
        boxes: (N, 4) x1 y1 x2 y2 in the image's pixels, half-open. Less than a pixel wide is fine, outside the image
            too; one with a coordinate that is not finite shows nothing.
        image_size: (height, width).
        size: pixels a side of a crop.
        context: pixels of the crop, not of the image, on each side of the box.
        mode: ``warp`` stretches each axis on its own; ``square`` cuts out the smallest square around the box, at the
            same centre; ``square_masked`` takes that square and leaves out what surrounds the box, and its context, in
            it. In the paper's appendix A these are (D), (B) and (C), the tightest square with and without context.

    Raises:
        ConfigError: an unknown mode, or context that leaves no room for the box.
    """
    check_choice("crop mode", mode, MODES)
    if size < 1 or context < 0 or size <= 2 * context:
        raise ConfigError(f"a crop of {size} pixels has no room for {context} pixels of context on each side")
    if boxes.device.type == "mps":  # it has no double precision
        boxes = boxes.cpu()
    # The authors count pixels from 1, and their last pixel belongs to the box: our (x1, y1, x2, y2) is their
    # (x1 + 1, y1 + 1, x2, y2). All below is in their coordinates, as halves are rounded away from their zero.
    first, last = boxes[:, :2].double() + 1, boxes[:, 2:].double()
    lowest = torch.ones_like(first)
    # Made on the device: a copy from the host would wait for it.
    highest = torch.stack([torch.full_like(last[:, 0], side) for side in (image_size[1], image_size[0])], dim=1)
    if context > 0 or mode != "warp":
        own = (last - first + 1).clamp(min=0) / 2
        centre = first + own
        tight = own if mode == "warp" else own.amax(dim=1, keepdim=True)
        half = tight * (size / (size - 2 * context))
        if mode == "square_masked":
            reach = own + (half - tight)  # as many pixels of context on each side as the square has
            lowest, highest = _round(centre - reach).clamp(min=1), torch.minimum(_round(centre + reach), highest)
        # From the first pixel to the last, one more than twice the half: so it is in the authors' code.
        first, last = _round(centre - half), _round(centre + half)
    else:
        # They take boxes as they are here, in whole pixels and within the image.
        first = _round(first)
        last = torch.maximum(_round(last), first)
    unclipped = last - first + 1
    outside = (lowest - first).clamp(min=0)
    first, last = torch.maximum(first, lowest), torch.minimum(last, highest)
    # Not size / unclipped: with a number on the left, torch multiplies by the reciprocal.
    scale = torch.full_like(unclipped, size) / unclipped
    start = _round(outside * scale)
    length = torch.minimum(_round((last - first + 1) * scale), size - start)
    seen = ((length >= 1).all(dim=1) & boxes.isfinite().all(dim=1))[:, None]

    source, target = torch.cat([first - 1, last], dim=1), torch.cat([start, start + length], dim=1)
    return CropGeometry(source.where(seen, 0).long(), target.where(seen, 0).long())


@torch.no_grad()
def warp(
    image: Tensor, boxes: Tensor, size: int, context: int = 16, mode: str = "warp", channels_last: bool = False
) -> Tensor:
    """Crops float32 (N, 3, size, size), as R-CNN shows its proposals to the network (Girshick et al. 2014, appendix A).

    Bilinear, without antialiasing; what lies outside the image is 0, the mean of a normalised image. No gradients. On
    the CPU OpenCV resizes each crop, on ``torch.get_num_threads()`` threads; other devices resize many in one
    operation.

    Args:
        image: (3, H, W), float, normalised.
        boxes, size, context, mode: see `crop_geometry`.
        channels_last: the result's memory format.

    Raises:
        ConfigError: see `crop_geometry`; or an image that does not fit.
    """
    if image.ndim != 3 or len(image) != 3 or not image.is_floating_point():
        raise ConfigError(
            f"the image is {image.dtype} {tuple(image.shape)}; crops are cut out of a normalised float (3, H, W)"
        )
    geometry = crop_geometry(boxes, (image.shape[1], image.shape[2]), size, context, mode)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (len(boxes), 3, size, size)
    crops = torch.empty(shape, dtype=torch.float32, device=image.device, memory_format=layout)
    if crops.numel() == 0 or image.numel() == 0:
        return crops.zero_()
    image = image.float()
    geometry = CropGeometry(*(part.to(image.device) for part in geometry))
    if image.device.type == "cpu":
        _resize_each(image, geometry, crops)
    else:
        _resize_batched(image, geometry, crops)
    return crops


def _round(values: Tensor) -> Tensor:
    """To whole numbers, halves away from zero, as MATLAB does."""
    whole = values.trunc()
    return whole + ((values - whole).abs() >= 0.5) * values.sign()


def _resize_each(image: Tensor, geometry: CropGeometry, crops: Tensor) -> None:
    """Fill the crops (N, 3, S, S) one by one."""
    import cv2

    pixels = image.permute(1, 2, 0).contiguous().numpy()

    def fill(sources: Tensor, targets: Tensor, some: Tensor) -> None:
        rows = some.permute(0, 2, 3, 1).numpy()
        for crop, (x1, y1, x2, y2), target in zip(rows, sources.tolist(), targets.tolist(), strict=True):
            left, top, right, bottom = target
            if (left, top, right, bottom) != (0, 0, *crop.shape[:2]):
                crop[:] = 0
            if right > left and bottom > top:
                crop[top:bottom, left:right] = cv2.resize(pixels[y1:y2, x1:x2], (right - left, bottom - top))

    threads = torch.get_num_threads()
    if threads == 1:
        fill(*geometry, crops)
        return
    with ThreadPoolExecutor(threads) as pool:  # several shares for each thread, as some crops take longer than others
        list(pool.map(fill, *(part.tensor_split(4 * threads) for part in (*geometry, crops))))


def _resize_batched(image: Tensor, geometry: CropGeometry, crops: Tensor) -> None:
    """Fill the crops (N, 3, S, S) in operations over as many of them at once as `TOGETHER` allows."""
    size = crops.shape[2]
    step = max(1, TOGETHER // (4 * crops.shape[1:].numel()))
    channel = torch.arange(3, device=image.device)[:, None, None]
    for source, target, some in zip(*(part.split(step) for part in (*geometry, crops)), strict=True):
        left, right, across, wide = _samples(source[:, 0::2], target[:, 0::2], size)
        top, bottom, down, high = (part.mT for part in _samples(source[:, 1::2], target[:, 1::2], size))
        upper, lower = (torch.lerp(image[channel, y, left], image[channel, y, right], across) for y in (top, bottom))
        some.copy_(torch.lerp(upper, lower, down).masked_fill_(~(wide & high), 0))


def _samples(source: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pixels below and above each of ``size`` samples of one axis, the weight of the second, and if it is seen.

    ``source`` and ``target`` (N, 2) are start and stop; all results are (N, 1, 1, size).
    """
    # In whole numbers, so that nothing is lost far from the image's corner; pixel centres are at halves.
    start = source[:, 0, None]
    extent = (source[:, 1] - source[:, 0])[:, None].clamp(min=1)
    length = (target[:, 1] - target[:, 0])[:, None].clamp(min=1)
    position = torch.arange(size, device=source.device) - target[:, 0, None]
    doubled = (2 * position + 1) * extent - length  # the sample's position in the source, times 2 * length
    below = doubled.div(2 * length, rounding_mode="floor")
    weights = (doubled - below * 2 * length) / (2 * length).float()
    lower, upper = (start + pixel.clamp(min=0).minimum(extent - 1) for pixel in (below, below + 1))
    seen = (position >= 0) & (position < target[:, 1, None] - target[:, 0, None])
    return lower[:, None, None], upper[:, None, None], weights[:, None, None], seen[:, None, None]
