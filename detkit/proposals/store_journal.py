"""Proposals on their way: each process appends an image at a time to a part of its own, and the parts are merged.

A part begins with what is being computed; then follow records: image, number of boxes, CRC-32 of the boxes, CRC-32 of
these three, boxes. A process may be killed at any moment: what it wrote whole is found again, a record cut in its
middle is overwritten. The merged store does not depend on who computed what, or in which order.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detkit.errors import DataError
from detkit.files import to_json

from .store import ProposalStore
from .store_format import BOX_BYTES, VERSION, Images, encode, finest_scale, pack_header, parse_header
from .store_lock import is_locked, open_locked
from .store_writer import write_units

MAGIC = b"detkit-prop-part"
RECORD = struct.Struct("<4I")


class Computation(NamedTuple):
    """What is to be computed, and into which file.

    Attributes:
        path: the store to be.
        images: ids and sizes.
        method, parameters: as they will stand in the store.
        earlier: a store by the same means that lacks some of the images; what it has is kept, and need not be computed.
    """

    path: Path
    images: Images
    method: str
    parameters: dict[str, Any]
    earlier: ProposalStore | None = None

    @classmethod
    def of(
        cls, path: str | os.PathLike[str], images: Images, method: str, parameters: Mapping[str, Any]
    ) -> Computation:
        """With parameters as JSON has them."""
        return cls(Path(path), images, method, to_json(parameters))

    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """The images that the earlier store has: where they stand in it and in `images`, two arrays (C,)."""
        none = np.zeros(0, np.int64)
        return (none, none) if self.earlier is None else self.earlier.common(self.images.ids)

    @property
    def scale(self) -> int:
        """Units a pixel; see `finest_scale`."""
        return finest_scale(self.images)

    def header(self) -> dict[str, Any]:
        """What two parts must agree in."""
        return {
            "version": VERSION,
            "method": self.method,
            "parameters": self.parameters,
            "scale": self.scale,
            "images": len(self.images.ids),
            "data": self.images.digest(),
        }

    def part(self, rank: int) -> Path:
        """The part of the process of that rank."""
        return self.path.with_name(f".{self.path.name}.part{rank}")

    def parts(self) -> list[Path]:
        """The parts that are there."""
        prefix = f".{self.path.name}.part"
        names = os.listdir(self.path.parent) if self.path.parent.is_dir() else []
        ranks = sorted(int(n[len(prefix) :]) for n in names if n.startswith(prefix) and n[len(prefix) :].isdigit())
        return [self.part(rank) for rank in ranks]

    def remove_parts(self) -> None:
        """To be called when they are merged."""
        for part in self.parts():
            part.unlink(missing_ok=True)

    def remove_abandoned_parts(self) -> None:
        """To be called when the store is there: another process may be at work on a longer list of images."""
        for part in self.parts():
            if not is_locked(part):
                part.unlink(missing_ok=True)


class Record(NamedTuple):
    """Where an image's boxes lie in a part: `count` of them from byte `start` on, of CRC-32 `checksum`."""

    index: int
    count: int
    checksum: int
    start: int


class Journal:
    """The part of one process, open for appending; a context manager.

    Args:
        computation: what is computed; the images that are done already, by whichever process, are in `done`.
        rank: of this process.
        on_wait: called once if another process is writing this very part; it is then waited for.

    Raises:
        DataError: a part is of another computation, or the place cannot be written to.
    """

    def __init__(self, computation: Computation, rank: int = 0, on_wait: Callable[[], None] | None = None) -> None:
        self.computation, self.scale, self.path = computation, computation.scale, computation.part(rank)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_locked(self.path, on_wait)
        except OSError as error:
            raise DataError(
                f"{self.path.parent}: proposals cannot be written there ({error}); choose another place"
            ) from error
        try:
            records, end = read_records(self.path, computation)
            self._empty = not records
            self._file.truncate(end)
            if end == 0:
                self._write(pack_header(MAGIC, computation.header()))
            self._file.seek(0, os.SEEK_END)
            self.done = np.zeros(len(computation.images.ids), bool)
            self.done[computation.kept()[1]] = True
            self.done[[record.index for record in records]] = True
            for part in computation.parts():
                if part != self.path:
                    self.done[[record.index for record in read_records(part, computation)[0]]] = True
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the part; it stays, unless it is empty."""
        if self._empty and not self._file.closed:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def todo(self, rank: int = 0, world: int = 1) -> list[int]:
        """The images that this process has to compute: its share of all, without those that are done."""
        return [index for index in range(rank, len(self.done), world) if not self.done[index]]

    def append(self, index: int, boxes: Any, size: tuple[int, int]) -> None:
        """Keep the boxes (P, 4) in pixels of an image (width, height); from then on a kill does not lose them.

        Raises:
            DataError: boxes that are none, or they cannot be written.
        """
        try:
            units = encode(boxes, size, self.scale).tobytes()
        except DataError as error:
            raise DataError(f"image {self.computation.images.ids[index].item()!r}: {error}") from None
        fields = struct.pack("<3I", index, len(units) // BOX_BYTES, zlib.crc32(units))
        self._write(fields + struct.pack("<I", zlib.crc32(fields)) + units)
        self._empty = False
        self.done[index] = True

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error}); what is in it is kept") from error


def missing(computation: Computation) -> list[int]:
    """The images that neither a part nor the earlier store has."""
    found = {record.index for part in computation.parts() for record in read_records(part, computation)[0]}
    found.update(computation.kept()[1].tolist())
    return [index for index in range(len(computation.images.ids)) if index not in found]


def merge(computation: Computation) -> None:
    """Make the store of all parts and of the earlier store, and remove the parts.

    Raises:
        DataError: images are missing, or the file cannot be written.
    """
    total = len(computation.images.ids)
    counts, checksums = np.zeros(total, np.int64), np.zeros(total, np.uint32)
    owner, starts = np.full(total, -1, np.int64), np.zeros(total, np.int64)
    parts = computation.parts()
    for number, part in enumerate(parts):
        for index, count, checksum, start in read_records(part, computation)[0]:
            counts[index], checksums[index], owner[index], starts[index] = count, checksum, number, start
    # What is in the earlier store is copied as it is; it is replaced when all is written, so a kill does not harm it.
    rows = {}
    for row, index in zip(*computation.kept(), strict=True):
        units = computation.earlier.units_at(row)
        rows[int(index)], owner[index] = row, len(parts)
        counts[index], checksums[index] = len(units), zlib.crc32(units)
    if (owner < 0).any():
        raise DataError(
            f"{computation.path}: {(owner < 0).sum()} of {total} images have no proposals yet; run the same again"
        )
    files = [part.open("rb") for part in parts]

    def units_of(row: int) -> bytes:
        if row in rows:
            return computation.earlier.units_at(rows[row]).tobytes()
        file = files[owner[row]]
        file.seek(starts[row])
        return file.read(int(counts[row]) * BOX_BYTES)

    try:
        write_units(
            computation.path,
            computation.images,
            computation.method,
            computation.parameters,
            computation.scale,
            counts,
            checksums,
            units_of,
        )
    finally:
        for file in files:
            file.close()
    computation.remove_parts()


def read_records(path: Path, computation: Computation) -> tuple[list[Record], int]:
    """The whole records of a part, and where they end; ([], 0) for a part whose header is not written yet.

    Raises:
        DataError: the part is of another computation.
    """
    expected = pack_header(MAGIC, computation.header())
    records: list[Record] = []
    with path.open("rb") as file:
        start = file.read(len(expected))
        if start != expected:
            if expected.startswith(start):
                return [], 0
            raise DataError(_foreign(path, file, start, computation))
        end = len(expected)
        while len(fields := file.read(RECORD.size)) == RECORD.size:
            index, count, checksum, own = RECORD.unpack(fields)
            if zlib.crc32(fields[:12]) != own or index >= len(computation.images.ids):
                break
            units = file.read(count * BOX_BYTES)
            if len(units) != count * BOX_BYTES or zlib.crc32(units) != checksum:
                break
            records.append(Record(index, count, checksum, end + RECORD.size))
            end += RECORD.size + len(units)
    return records, end


def _foreign(path: Path, file: Any, start: bytes, computation: Computation) -> str:
    what = "something else"
    try:
        _, end = parse_header(MAGIC, start[: len(MAGIC) + 8])
        file.seek(0)
        content, _ = parse_header(MAGIC, file.read(end))
        if content is not None:
            what = "other images" if content["method"] == computation.method else content["method"]
            if what == "other images" and content["parameters"] != computation.parameters:
                what = f"parameters {content['parameters']} instead of {computation.parameters}"
    except (ValueError, KeyError):
        pass
    return (
        f"{path}: holds the beginning of another computation of proposals ({what}); delete it to give that up, or "
        "choose another place"
    )
