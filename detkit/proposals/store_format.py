"""How proposals lie on disk: the file's layout, and boxes as integers.

A store is one file, little-endian throughout, that any program can read:

    16 bytes   b"detkit-proposals"
    2 uint32   length of the header and its CRC-32
    header     JSON: version, method, parameters, scale, detkit, index_crc32, and arrays: for each its dtype, its shape
               and its start in bytes, counted from the first multiple of 64 after the header
    arrays     offsets (I + 1,), widths, heights and checksums (I,), the ids, and last boxes (P, 4)

Image i, with id ids[i], has the boxes offsets[i]:offsets[i + 1], x1 y1 x2 y2 in units of 1 / scale pixel, best first;
checksums[i] is their CRC-32. Ids that are text lie in id_bytes (UTF-8) at id_offsets[i]:id_offsets[i + 1].
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from detkit.errors import DataError
from detkit.files import to_json

VERSION = 1
MAGIC = b"detkit-proposals"
ALIGNMENT = 64
FINEST = 8  # units a pixel: finer is of no use to any detector
BOX_BYTES = 8

Layout = dict[str, dict[str, Any]]


class Images(NamedTuple):
    """The images of a split, in order: ids (I,) str or int64, widths and heights (I,) in pixels."""

    ids: np.ndarray
    widths: np.ndarray
    heights: np.ndarray

    @classmethod
    def of(cls, ids: Sequence[str | int] | np.ndarray, widths: Any, heights: Any) -> Images:
        """Checked arrays of what may be lists.

        Raises:
            DataError: ids that are no int or str, or given twice; lengths that differ.
        """
        array = np.asarray(ids)
        array = array.astype(np.int64) if array.dtype.kind in "iu" or not len(array) else array
        if array.dtype.kind not in "iU" or array.ndim != 1:
            raise DataError(f"image ids must be all numbers or all strings, got {array.dtype}")
        if len(np.unique(array)) != len(array):
            raise DataError("an image id is given twice; ids must be unique")
        result = cls(array, np.asarray(widths, np.int32), np.asarray(heights, np.int32))
        if not len(array) == len(result.widths) == len(result.heights):
            raise DataError(f"{len(array)} image ids, {len(result.widths)} widths, {len(result.heights)} heights")
        return result

    def digest(self) -> str:
        """What tells these images from others: 16 hexadecimal digits of their ids and sizes."""
        key = hashlib.sha256(self.ids.dtype.kind.encode())
        for part in (*pack_ids(self.ids).values(), self.widths.astype("<i4"), self.heights.astype("<i4")):
            key.update(part.tobytes())
        return key.hexdigest()[:16]


def finest_scale(images: Images) -> int:
    """Units a pixel, 8, 4, 2 or 1, so that every box of these images fits 16 bits: 8 up to 8191 pixels.

    Raises:
        DataError: an image with a side of more than 65535 pixels.
    """
    longest = int(max(images.widths.max(initial=1), images.heights.max(initial=1)))
    if longest > 65535:
        index = int(np.argmax(np.maximum(images.widths, images.heights)))
        raise DataError(
            f"image {images.ids[index].item()!r} is {images.widths[index]} x {images.heights[index]}: proposals are "
            "kept for images of up to 65535 pixels a side; cut it into parts"
        )
    scale = FINEST
    while longest * scale > 65535:
        scale //= 2
    return scale


def encode(boxes: Any, size: tuple[int, int], scale: int) -> np.ndarray:
    """Boxes (P, 4) in pixels as uint16 (Q, 4) in units of 1 / scale, within the image (width, height).

    What is thinner than a unit then is left out.

    Raises:
        DataError: another shape, a value that is not finite, or an image too large for the scale.
    """
    boxes = np.asarray(boxes, np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4), "<u2")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise DataError(f"boxes of shape {boxes.shape}: wanted are finite numbers of shape (P, 4)")
    limit = np.array([*size, *size]) * scale
    if limit.max() > 65535:
        raise DataError(f"the image is {size[0]} x {size[1]}, far larger than its annotation says; correct that")
    units = np.clip(np.rint(boxes * scale), 0, limit).astype("<u2")
    return np.ascontiguousarray(units[(units[:, 2:] > units[:, :2]).all(1)])


def pack_ids(ids: np.ndarray) -> dict[str, np.ndarray]:
    """The ids as flat arrays: ids int64, or id_offsets and id_bytes."""
    if ids.dtype.kind == "i":
        return {"ids": ids.astype("<i8")}
    words = [str(word).encode("utf-8", "surrogatepass") for word in ids.tolist()]
    offsets = np.zeros(len(words) + 1, "<i8")
    np.cumsum([len(word) for word in words], out=offsets[1:])
    return {"id_offsets": offsets, "id_bytes": np.frombuffer(b"".join(words), np.uint8)}


def unpack_ids(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The opposite of `pack_ids`."""
    if "ids" in arrays:
        return arrays["ids"]
    text, ends = arrays["id_bytes"].tobytes(), arrays["id_offsets"].tolist()
    words = [text[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(ends)]
    return np.array(words, dtype=np.str_)


def layout(images: int, boxes: int, id_bytes: int | None) -> tuple[Layout, int]:
    """Where each array lies, and how many bytes they all take; `id_bytes` is None for ids that are numbers."""
    shapes: list[tuple[str, str, list[int]]] = [
        ("offsets", "<i8", [images + 1]),
        ("widths", "<i4", [images]),
        ("heights", "<i4", [images]),
        ("checksums", "<u4", [images]),
    ]
    if id_bytes is None:
        shapes.append(("ids", "<i8", [images]))
    else:
        shapes += [("id_offsets", "<i8", [images + 1]), ("id_bytes", "|u1", [id_bytes])]
    shapes.append(("boxes", "<u2", [boxes, 4]))
    result, start, end = {}, 0, 0
    for name, dtype, shape in shapes:
        start = aligned(end)
        result[name] = {"dtype": dtype, "shape": shape, "start": start}
        end = start + np.dtype(dtype).itemsize * int(np.prod(shape))
    return result, end


def aligned(position: int) -> int:
    """The next multiple of 64."""
    return -(-position // ALIGNMENT) * ALIGNMENT


def pack_header(magic: bytes, content: Mapping[str, Any]) -> bytes:
    """Magic, length, CRC-32 and JSON; the same content gives the same bytes."""
    text = json.dumps(to_json(content), sort_keys=True, allow_nan=False).encode()
    return magic + np.array([len(text), zlib.crc32(text)], "<u4").tobytes() + text


def parse_header(magic: bytes, start: bytes) -> tuple[dict[str, Any] | None, int]:
    """The header at the start of a file, and where it ends.

    Returns:
        (content, end); (None, end) if bytes are missing up to `end`.

    Raises:
        ValueError: the bytes are not of that kind, or damaged.
    """
    fixed = len(magic) + 8
    if start[: len(magic)] != magic[: len(start)]:
        raise ValueError("it does not begin as one")
    if len(start) < fixed:
        return None, fixed
    length, checksum = np.frombuffer(start[len(magic) : fixed], "<u4").tolist()
    if len(start) < fixed + length:
        return None, fixed + length
    text = start[fixed : fixed + length]
    content = json.loads(text) if zlib.crc32(text) == checksum else None
    if not isinstance(content, dict):
        raise ValueError("its header is damaged")
    return content, fixed + length
