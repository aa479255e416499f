"""Proposals on disk, opened without loading them: see `store_format` for the file."""

from __future__ import annotations

import os
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkit.errors import DataError

from .store_format import MAGIC, VERSION, aligned, layout, parse_header, unpack_ids

AGAIN = "delete it and compute it again with `detkit propose`"


class ProposalStore(Mapping[str | int, np.ndarray]):
    """The proposals of a split, image_id -> boxes (P, 4) float32, x1 y1 x2 y2 in the image's pixels, best first.

    The file is memory-mapped: opening reads its index only, processes share its pages, and pickling a store hands on
    its path. An image without proposals has boxes of shape (0, 4). Open with `ProposalStore.open`.

    Attributes:
        path: the file, absolute.
        version: of the file's format.
        method: how the boxes were made: "selective_search", "sliding_window" or "rpn".
        parameters: with which options; plain JSON values.
        scale: the boxes are kept to 1 / scale pixel.
        image_ids: (I,) str or int64, in the data set's order.
        widths, heights: (I,) int32, of the images as the data set gives them.
        counts: (I,) int64, boxes of each image.
    """

    def __init__(self, path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.path = path
        self.version: int = header["version"]
        self.method: str = header["method"]
        self.parameters: dict[str, Any] = header["parameters"]
        self.scale: int = header["scale"]
        self.image_ids = unpack_ids(arrays)
        self.widths, self.heights = arrays["widths"], arrays["heights"]
        self.counts = np.diff(arrays["offsets"])
        self._offsets, self._checksums, self._boxes = arrays["offsets"], arrays["checksums"], arrays["boxes"]
        # Flat arrays instead of a dict: reading an element of one copies its page into every worker.
        self._order = np.argsort(self.image_ids, kind="stable")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ProposalStore:
        """Open a store.

        Raises:
            DataError: missing, not a store, of a newer version, cut short or damaged.
        """
        place = Path(os.path.abspath(path))
        try:
            raw = np.memmap(place, np.uint8, "r") if place.stat().st_size else np.zeros(0, np.uint8)
        except FileNotFoundError:
            raise DataError(f"{path}: no such store of proposals; `detkit propose` makes one") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error})") from None
        try:
            return cls(place, *_parse(raw.view(np.ndarray)))
        except ValueError as error:
            raise DataError(f"{path}: is no store of proposals, or a damaged one ({error}); {AGAIN}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return ProposalStore.open, (str(self.path),)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __iter__(self) -> Iterator[str | int]:
        return iter(self.image_ids.tolist())

    def __contains__(self, image_id: object) -> bool:
        return self._row(image_id) is not None

    def __getitem__(self, image_id: str | int) -> np.ndarray:
        """The boxes of an image, (P, 4) float32, in memory of their own.

        Raises:
            KeyError: no such image.
            DataError: the file is damaged at this image.
        """
        row = self._row(image_id)
        if row is None:
            raise KeyError(image_id)
        return self.boxes_at(row)

    def boxes_at(self, row: int) -> np.ndarray:
        """The boxes of the image at that place of `image_ids`; otherwise as with its id."""
        return self.units_at(row).astype(np.float32) / np.float32(self.scale)

    def __repr__(self) -> str:
        return f"ProposalStore({str(self.path)!r}, {self.method}, {len(self)} images, {len(self._boxes)} boxes)"

    def verify(self) -> None:
        """Read everything once.

        Raises:
            DataError: the file is damaged.
        """
        for row in range(len(self)):
            self.units_at(row)

    def check(self, image_ids: Sequence[str | int] | np.ndarray, widths: Any, heights: Any) -> None:
        """Whether there are proposals for all of these images, of these sizes. More images in the store do no harm.

        Raises:
            DataError: with the counts of images that are missing, of another size, and not in the data set.
        """
        wanted = np.asarray(image_ids)
        mine, yours = self.common(wanted)
        missing, foreign = len(wanted) - len(yours), len(self) - len(mine)
        other = (self.widths[mine] != np.asarray(widths)[yours]) | (self.heights[mine] != np.asarray(heights)[yours])
        if not missing and not other.any():
            return
        absent = np.setdiff1d(np.arange(len(wanted)), yours)
        named = [*absent[:1], *yours[other][:1]]
        examples = " and ".join(repr(wanted[i].item()) for i in named)
        raise DataError(
            f"{self.path}: these proposals do not fit the data set's {len(wanted)} images: {missing} have none, "
            f"{int(other.sum())} are of another size (such as {examples}), and {foreign} of the store's {len(self)} "
            "images are not among them. If it is another split's, name the right file; if the data set has changed, "
            f"{AGAIN}"
        )

    def common(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the images that are both here and in `wanted` (unique ids) stand in each, two arrays (C,)."""
        if (wanted.dtype.kind == "U") != (self.image_ids.dtype.kind == "U"):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        _, mine, yours = np.intersect1d(self.image_ids, wanted, assume_unique=True, return_indices=True)
        return mine, yours

    def units_at(self, row: int) -> np.ndarray:
        """The boxes (P, 4) uint16 in units of 1 / scale, as they lie in the file; otherwise as `boxes_at`."""
        units = self._boxes[self._offsets[row] : self._offsets[row + 1]]
        if zlib.crc32(units) != self._checksums[row]:
            raise DataError(f"{self.path}: is damaged at image {self.image_ids[row].item()!r}; {AGAIN}")
        return units

    def _row(self, image_id: object) -> int | None:
        kind = str if self.image_ids.dtype.kind == "U" else int | np.integer
        if not isinstance(image_id, kind):
            return None
        ids, order = self.image_ids, self._order
        at = bisect_left(order, image_id, key=lambda row: ids[row])
        return int(order[at]) if at < len(order) and ids[order[at]] == image_id else None


def _parse(raw: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays, as views of the file's bytes; ValueError for what is wrong."""
    header, end = parse_header(MAGIC, raw[: len(MAGIC) + 8].tobytes())
    if header is None:
        header, end = parse_header(MAGIC, raw[:end].tobytes())
    if header is None:
        raise ValueError(f"cut short: it has {len(raw)} bytes")
    if header.get("version") != VERSION:
        raise ValueError(f"its format is version {header.get('version')}, this detkit reads version {VERSION}")
    try:
        table = header["arrays"]
        id_bytes = table["id_bytes"]["shape"][0] if "id_bytes" in table else None
        expected, length = layout(table["widths"]["shape"][0], table["boxes"]["shape"][0], id_bytes)
        known = table == expected and isinstance(header["method"], str) and isinstance(header["parameters"], dict)
        checksum, scale = header["index_crc32"], header["scale"]
    except (KeyError, TypeError, IndexError):
        known = False
    if not known or not isinstance(scale, int) or scale < 1:
        raise ValueError("its header is incomplete")
    start = aligned(end)
    if len(raw) != start + length:
        raise ValueError(f"{'cut short' if len(raw) < start + length else 'too long'}: {len(raw)} bytes instead of "
                         f"{start + length}")  # fmt: skip
    arrays = {}
    for name, place in table.items():
        first, size = start + place["start"], np.dtype(place["dtype"]).itemsize * int(np.prod(place["shape"]))
        arrays[name] = raw[first : first + size].view(place["dtype"]).reshape(place["shape"])
    if zlib.crc32(raw[start : start + table["boxes"]["start"]]) != checksum:
        raise ValueError("its index is damaged")
    for name, last in (("offsets", "boxes"), ("id_offsets", "id_bytes")):
        if name in arrays:
            ends = arrays[name]
            if ends[0] != 0 or ends[-1] != len(arrays[last]) or (np.diff(ends) < 0).any():
                raise ValueError("its index contradicts itself")
    return header, arrays
