"""Proposals on disk: one SQLite file for each split, which any program can read.

    meta      one row: version, method, parameters (JSON), images (how many there are), checksum
    images    one row for each image: image_id (integer, or the UTF-8 bytes of a text), position in the data set,
              width, height, scale, checksum, boxes

``boxes`` are little-endian uint16 (P, 4), x1 y1 x2 y2 in units of 1 / scale pixel, best first. Checksums are CRC-32.

A store is complete, and it never changes: `StoreWriter` fills a part beside it, and renames the part when all images
are in it. So stores are read without locks, also from a read-only folder.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detkit.errors import DataError

VERSION = 1
FINEST = 8  # units a pixel: finer is of no use to any detector
SCALES = (FINEST, 4, 2, 1)
LARGEST = 65535  # of a uint16
TABLES = (
    "CREATE TABLE meta (version, method, parameters, images, checksum)",
    "CREATE TABLE images (image_id PRIMARY KEY NOT NULL, position, width, height, scale, checksum, boxes)",
)
AGAIN = "delete it and compute it again with `detkit propose`"


class Images(NamedTuple):
    """The images of a split, in order: ids (I,) str or int64, widths and heights (I,) int32 in pixels."""

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
        images = cls(array, np.asarray(widths, np.int32), np.asarray(heights, np.int32))
        if not len(array) == len(images.widths) == len(images.heights):
            raise DataError(f"{len(array)} image ids, {len(images.widths)} widths, {len(images.heights)} heights")
        return images

    @property
    def sizes(self) -> np.ndarray:
        """(I, 2) int32: width and height."""
        return np.stack([self.widths, self.heights], axis=1)


class ProposalStore(Mapping[str | int, np.ndarray]):
    """The proposals of a split, image_id -> boxes (P, 4) float32, x1 y1 x2 y2 in the image's pixels, best first.

    Threads read one after the other by one connection, every process has its own, and pickling a store hands on its
    path: DataLoader workers can read it, however they are started.

    Attributes:
        path: the file, absolute.
        method: full name of the class that made the boxes.
        parameters: its options; plain JSON values.

    Raises:
        DataError: missing, no store of proposals, of another version, or damaged.
    """

    # SQLite has mutexes for the whole process. A child that is forked while a thread holds one waits for it for ever,
    # so whoever forks waits until no thread is in SQLite.
    _sqlite = threading.RLock()

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(path))
        self._opened: tuple[int, sqlite3.Connection] | None = None  # process and its connection
        if not self.path.exists():
            raise DataError(f"{path}: no such store of proposals; `detkit propose` makes one")
        if not self.path.is_file():  # a pipe would be waited for
            raise DataError(f"{path}: cannot be read (it is no file)")
        with self._reading():
            rows = self._connection().execute("SELECT * FROM meta").fetchall()
            (version, self.method, parameters, self._length, checksum), *_ = rows
            if version != VERSION:
                raise ValueError(f"its format is version {version}, this detkit reads version {VERSION}")
            if checksum != checksum_of(*rows[0][:-1]):
                raise ValueError("its description is damaged")
            self.parameters: dict[str, Any] = json.loads(parameters)
            right = isinstance(self.method, str) and isinstance(self.parameters, dict)
            if not right or self._length not in range(self.path.stat().st_size):
                raise ValueError("its description is not as detkit writes it")

    def __reduce__(self) -> tuple[Any, ...]:
        return ProposalStore, (str(self.path),)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str | int]:
        return iter(self.images.ids.tolist())

    def __getitem__(self, image_id: str | int) -> np.ndarray:
        """The boxes of an image, (P, 4) float32, in memory of their own.

        Raises:
            KeyError: no such image.
            DataError: the file is damaged at this image.
        """
        query = "SELECT image_id, width, height, scale, checksum, boxes FROM images WHERE image_id = ?"
        with self._reading():
            row = self._connection().execute(query, (key_of(image_id),)).fetchone()
            if row is not None:
                key, width, height, scale, checksum, boxes = row
                if checksum != checksum_of(key, width, height, scale, boxes=boxes) or scale not in SCALES:
                    raise DataError(f"{self.path}: is damaged at image {key!r}; {AGAIN}")
                return np.frombuffer(boxes, "<u2").reshape(-1, 4).astype(np.float32) / np.float32(scale)
        if image_id in self.images.ids.tolist():  # only SQLite's index of the ids does not have it
            raise DataError(f"{self.path}: is damaged at image {image_id!r}; {AGAIN}")
        raise KeyError(image_id)

    def __repr__(self) -> str:
        return f"ProposalStore({str(self.path)!r}, {self.method}, {len(self)} images)"

    @cached_property
    def images(self) -> Images:
        """Ids and sizes of the images as the data set gives them, in its order."""
        with self._reading():
            rows = self._connection().execute("SELECT image_id, width, height FROM images ORDER BY position").fetchall()
            if len(rows) != self._length:
                raise ValueError("images are missing")
            ids = [key if isinstance(key, int) else key.decode("utf-8", "surrogatepass") for key, *_ in rows]
            return Images.of(ids, [row[1] for row in rows], [row[2] for row in rows])

    @cached_property
    def counts(self) -> np.ndarray:
        """(I,) int64, boxes of each image."""
        with self._reading():
            rows = self._connection().execute("SELECT length(boxes) / 8 FROM images ORDER BY position").fetchall()
            return np.array(rows, np.int64).reshape(-1)

    def verify(self) -> None:
        """Read everything once.

        Raises:
            DataError: the file is damaged.
        """
        with self._reading():
            positions = [row[0] for row in self._connection().execute("SELECT position FROM images ORDER BY position")]
            if positions != list(range(len(self))):
                raise ValueError("images are missing, or out of order")
        for image_id, count in zip(self, self.counts, strict=True):  # other threads read meanwhile
            with self._reading():
                if len(self[image_id]) != count:
                    raise ValueError("images have another number of boxes")

    def check(self, image_ids: Sequence[str | int] | np.ndarray, widths: Any, heights: Any) -> None:
        """Whether there are proposals for all of these images, of these sizes. More images in the store do no harm.

        Raises:
            DataError: with the counts of images that are missing, of another size, and not in the data set.
        """
        wanted = Images.of(image_ids, widths, heights)
        here, there, other_size = self.common(wanted)
        missing, foreign = len(wanted.ids) - len(there), len(self) - len(here)
        if not missing and not other_size.any():
            return
        absent = np.setdiff1d(np.arange(len(wanted.ids)), there)
        examples = " and ".join(repr(wanted.ids[i].item()) for i in [*absent[:1], *there[other_size][:1]])
        raise DataError(
            f"{self.path}: these proposals do not fit the data set's {len(wanted.ids)} images: {missing} have none, "
            f"{int(other_size.sum())} are of another size (such as {examples}), and {foreign} of the store's "
            f"{len(self)} images are not among them. If it is another split's, name the right file; if the data set "
            f"has changed, {AGAIN}"
        )

    def common(self, wanted: Images) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The C images that are both here and in ``wanted``.

        Returns:
            Their positions here and in ``wanted``, int64 (C,); and whether they are of another size, bool (C,).
        """
        none = np.zeros(0, np.int64)
        if (wanted.ids.dtype.kind == "U") != (self.images.ids.dtype.kind == "U"):
            return none, none, none.astype(bool)
        _, here, there = np.intersect1d(self.images.ids, wanted.ids, assume_unique=True, return_indices=True)
        return here, there, (self.images.sizes[here] != wanted.sizes[there]).any(1)

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None or self._opened[0] != os.getpid():  # after a fork, the parent's is not used
            uri = f"{self.path.as_uri()}?mode=ro&immutable=1"
            self._opened = os.getpid(), sqlite3.connect(uri, uri=True, check_same_thread=False)
        return self._opened[1]

    def __del__(self) -> None:
        with self._sqlite:
            opened = self.__dict__.pop("_opened", None)
            if opened is not None and opened[0] == os.getpid():  # a connection of the parent process stays as it is
                opened[1].close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One thread at a time; errors as DataErrors that name the file and the way out."""
        try:
            with self._sqlite:
                yield
        except DataError:
            raise
        except Exception as error:  # SQLite, JSON and NumPy raise nearly all there are on damaged bytes
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # Python's own errors have none
            if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
                raise DataError(f"{self.path}: cannot be read ({error})") from None
            raise DataError(f"{self.path}: is no store of proposals, or a damaged one ({error}); {AGAIN}") from None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=ProposalStore._sqlite.acquire,
        after_in_parent=ProposalStore._sqlite.release,
        after_in_child=ProposalStore._sqlite.release,
    )


def encode(boxes: Any, size: tuple[int, int]) -> tuple[int, bytes]:
    """Boxes (P, 4) in pixels, cut to the image (width, height), as units a pixel and uint16 bytes.

    There are 8, 4, 2 or 1 units a pixel, as many as the image's size allows: 8 up to 8191 pixels. What is thinner than
    a unit is left out.

    Raises:
        DataError: boxes of another shape or with a value that is not finite, or an image that is too large.
    """
    if max(size) > LARGEST:
        limit = f"proposals are kept for images of up to {LARGEST} pixels a side"
        raise DataError(f"is {size[0]} x {size[1]}; {limit}: cut it into parts")
    scale = FINEST
    while max(size) * scale > LARGEST:
        scale //= 2
    boxes = np.asarray(boxes, np.float64)
    if boxes.size == 0:
        return scale, b""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise DataError(f"boxes of shape {boxes.shape}: wanted are finite numbers of shape (P, 4)")
    units = np.clip(np.rint(boxes * scale), 0, np.array([*size, *size]) * scale).astype("<u2")
    return scale, units[(units[:, 2:] > units[:, :2]).all(1)].tobytes()


def key_of(image_id: object) -> int | bytes | None:
    """An image id as it stands in the file; None for what is no id."""
    if isinstance(image_id, str):
        return image_id.encode("utf-8", "surrogatepass")
    return int(image_id) if isinstance(image_id, int | np.integer) else None


def checksum_of(*values: Any, boxes: bytes = b"") -> int:
    return zlib.crc32(boxes, zlib.crc32(repr(values).encode()))
