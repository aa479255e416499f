"""Masks in COCO's run lengths (RLE): lengths of runs of 0 and 1, in turn, down the columns from the left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkit.data.input_files import LARGEST, short_repr


def box_of_runs(counts: Sequence[float] | str, size: Sequence[float]) -> tuple[int, int, int, int]:
    """The box around the ones of a mask, as pycocotools gives it.

    pycocotools does not check what it is given: it may end the process, or give a box outside the mask.

    Args:
        counts: the lengths, the first of zeros, or the string that pycocotools packs them into.
        size: height and width of the mask.

    Returns:
        x, y, width and height in pixels; zeros where the mask is empty.

    Raises:
        ValueError: the lengths are none of a mask of this size; says why.
        TypeError: what is given is no list.
    """
    if len(size) != 2:
        raise ValueError(f"the size of its mask is {short_repr(size)}; it must be [height, width]")
    height, width = map(_whole, size)
    if not (0 < height <= LARGEST and 0 < width <= LARGEST):
        raise ValueError(f"no mask has {width} x {height} pixels")
    runs = _unpack(counts) if isinstance(counts, str) else [_whole(count) for count in counts]
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        problem = "one is negative" if any(run < 0 for run in runs) else f"their sum is {sum(runs):,}"
        raise ValueError(f"its run lengths are not those of {width} x {height} pixels: {problem}")
    ends = np.cumsum(runs, dtype=np.int64)
    start, stop = ends[:-1:2], ends[1::2]
    start, last = start[stop > start], stop[stop > start] - 1
    if not len(start):
        return 0, 0, 0, 0
    left, right = start // height, last // height
    one_column = (left == right).all()
    top, bottom = ((start % height).min(), (last % height).max()) if one_column else (0, height - 1)
    x, y = int(left.min()), int(top)
    return x, y, int(right.max()) - x + 1, int(bottom) - y + 1


def _whole(number: float) -> int:
    if not isinstance(number, int | float) or not abs(number) <= LARGEST**2 or int(number) != number:
        raise ValueError(f"{short_repr(number)} is no number of pixels")
    return int(number)


def _unpack(text: str) -> list[int]:
    """The lengths in a string: 5 bits a character, the 6th says that more follow; from the 4th on, differences."""
    runs: list[int] = []
    value = shift = 0
    for code in map(ord, text):
        if not 48 <= code < 112:
            raise ValueError("its string of run lengths has a character that is none of pycocotools'")
        value |= (code - 48 & 31) << shift
        shift += 5
        if code - 48 & 32 and shift < 60:
            continue
        value -= (code - 48 & 16) << shift - 4  # the highest bit is the sign
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its string of run lengths is cut short")
    return runs
