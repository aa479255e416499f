"""R-CNN's crops: proposals warped to one size, with context around them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detkit.errors import ConfigError

MODES = ("warp", "square", "square_masked")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOGETHER = 64 * 2**20
"""Bytes of the crops, in float32, that the batched operations make at a time; they need some six times as much."""


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
    """What `warp` cuts out and where it puts it, by the arithmetic of the authors' rcnn_im_crop.m (papers.md 2.1).

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
    if mode not in MODES:
        raise ConfigError(f"unknown way to crop {mode!r}; the known ones are {', '.join(MODES)}")
    if size < 1 or context < 0 or size <= 2 * context:
        raise ConfigError(f"a crop of {size} pixels has no room for {context} pixels of context on each side")
    if boxes.device.type == "mps":  # which knows no double precision
        boxes = boxes.cpu()
    # The authors count pixels from 1, and their last pixel belongs to the box: our (x1, y1, x2, y2) is their
    # (x1 + 1, y1 + 1, x2, y2). All below is in their coordinates, as halves are rounded away from their zero.
    first, last = boxes[:, :2].double() + 1, boxes[:, 2:].double()
    lowest, highest = torch.ones_like(first), last.new_tensor([image_size[1], image_size[0]])
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
    image: Tensor,
    boxes: Tensor,
    size: int,
    context: int = 16,
    mode: str = "warp",
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Crops of one size, as R-CNN shows its proposals to the network (Girshick et al. 2014, appendix A).

    Bilinear, without antialiasing; what lies outside the image is 0, the mean of a normalised image. No gradients.
    On the CPU it runs compiled on ``torch.get_num_threads()`` threads, elsewhere in batched operations.

    Args:
        image: (3, H, W), float, normalised.
        boxes, size, context, mode: see `crop_geometry`.
        dtype: of the result: float32, bfloat16 or float16.
        channels_last: the result's memory format.
        out: (N, 3, size, size) on the image's device, for the result; its type and memory format hold instead of
            `dtype` and `channels_last`. For thousands of crops, memory that is there already saves time.

    Returns:
        (N, 3, size, size).

    Raises:
        ConfigError: see `crop_geometry`; or an image, a type or an `out` that does not fit.
    """
    if image.ndim != 3 or len(image) != 3 or not image.is_floating_point():
        raise ConfigError(
            f"the image is {image.dtype} {tuple(image.shape)}; crops are cut out of a normalised float (3, H, W)"
        )
    geometry = crop_geometry(boxes, (image.shape[1], image.shape[2]), size, context, mode)
    shape = (len(boxes), 3, size, size)
    if out is None:
        out = _empty(shape, dtype, channels_last, image.device)
    elif out.shape != shape or out.device != image.device:
        raise ConfigError(f"out is {tuple(out.shape)} on {out.device}; the crops are {shape} on {image.device}")
    if out.dtype not in DTYPES:
        raise ConfigError(f"crops cannot be {out.dtype}; the types are {', '.join(map(str, DTYPES))}")
    if not (out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last)):
        raise ConfigError("out must be contiguous, or contiguous in channels_last")
    if out.numel() == 0 or image.numel() == 0:
        return out.zero_()
    image, geometry = image.float(), CropGeometry(*(each.to(image.device) for each in geometry))
    if image.device.type == "cpu":
        _warp_compiled(image, geometry, out)
    else:
        _warp_batched(image, geometry, out)
    return out


def _empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, device: torch.device) -> Tensor:
    if device.type == "cpu" and shape[0] > 0:
        # NumPy asks the system for large pages: in small ones, memory takes three times as long to get as to fill.
        memory = torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype)
    else:
        memory = torch.empty(math.prod(shape), dtype=dtype, device=device)
    return memory.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2) if channels_last else memory.view(shape)


def _round(values: Tensor) -> Tensor:
    """To whole numbers, halves away from zero, as MATLAB does."""
    whole = values.trunc()
    return whole + ((values - whole).abs() >= 0.5) * values.sign()


def _warp_compiled(image: Tensor, geometry: CropGeometry, out: Tensor) -> None:
    from detkit.features.warping_kernels import warp_crops

    if out.dtype == torch.float16:  # slow on any CPU, and not worth a loop of its own
        result = torch.empty_like(out, dtype=torch.float32)
        _warp_compiled(image, geometry, result)
        out.copy_(result)
        return
    rows = out if out.is_contiguous() else out.permute(0, 2, 3, 1).flatten(2)[:, None]
    if out.dtype == torch.bfloat16:
        rows = rows.view(torch.uint16)
    pixels, threads = image.contiguous().numpy(), torch.get_num_threads()

    def fill(sources: Tensor, targets: Tensor, crops: Tensor) -> None:
        warp_crops(pixels, sources.numpy(), targets.numpy(), crops.numpy())

    if threads == 1:
        fill(*geometry, rows)
        return
    with ThreadPoolExecutor(threads) as pool:  # several shares for each thread, as some crops take longer than others
        list(pool.map(fill, *(each.tensor_split(4 * threads) for each in (*geometry, rows))))


def _warp_batched(image: Tensor, geometry: CropGeometry, out: Tensor) -> None:
    """The same in operations over many crops at once, as many as `TOGETHER` allows."""
    size, step = out.shape[2], max(1, TOGETHER // (4 * out.shape[1:].numel()))
    channel = torch.arange(3, device=image.device)[:, None, None]
    for source, target, crops in zip(*(each.split(step) for each in (*geometry, out)), strict=True):
        left, right, across, wide = _place_samples(source[:, 0::2], target[:, 0::2], size)
        top, bottom, down, high = (each.mT for each in _place_samples(source[:, 1::2], target[:, 1::2], size))
        upper, lower = (torch.lerp(image[channel, y, left], image[channel, y, right], across) for y in (top, bottom))
        crops.copy_(torch.lerp(upper, lower, down).masked_fill_(~(wide & high), 0))


def _place_samples(source: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`warping_kernels.place_samples` for the whole of one axis of many crops.

    Args:
        source, target: (N, 2) start and stop.

    Returns:
        lower and upper int64, the weights of upper float32, and whether it shows the image: all (N, 1, 1, size).
    """
    start, extent = source[:, 0, None], (source[:, 1] - source[:, 0])[:, None].clamp(min=1)
    length = (target[:, 1] - target[:, 0])[:, None].clamp(min=1)
    place = torch.arange(size, device=source.device) - target[:, 0, None]
    doubled = (2 * place + 1) * extent - length
    below = doubled.div(2 * length, rounding_mode="floor")
    weights = (doubled - below * 2 * length) / (2 * length).float()
    lower, upper = (start + each.clamp(min=0).minimum(extent - 1) for each in (below, below + 1))
    seen = (place >= 0) & (place < target[:, 1, None] - target[:, 0, None])
    return lower[:, None, None], upper[:, None, None], weights[:, None, None], seen[:, None, None]
