"""Making a store of proposals: parts that processes fill image by image, and that outlive them."""

from __future__ import annotations

import glob
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from detkit.errors import DataError
from detkit.files import free_space, sync, to_json
from detkit.proposals.store import TABLES, VERSION, Images, ProposalStore, checksum_of, encode, key_of

COMMIT_INTERVAL = 0.5  # seconds between transactions
DELETE = "DELETE FROM main.images WHERE image_id = ? AND (width, height) != (?, ?)"


class StoreWriter:
    """Fills a part of a store, from which `finish` makes the store; a context manager.

    A part stays when the process ends or is killed, and the next writer with the same arguments goes on with it. A
    writer that finds another one at the same part waits until that has ended, and calls ``on_wait`` once.

    Args:
        path: the store.
        images: ids and sizes.
        method: full name of the class that makes the boxes.
        parameters: its options; plain JSON values.
        rank: of this process. The writer of rank 0 takes over all parts that are there when it begins.
        grow: take over also what the store and its parts have for another list of the data set's images.
        on_wait: see above.

    Attributes:
        done: (I,) bool, images that need not be computed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        images: Images,
        method: str,
        parameters: Mapping[str, Any],
        rank: int = 0,
        grow: bool = False,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.images, self.grow = Path(os.path.abspath(path)), images, grow
        self.part = self.path.with_name(f".{self.path.name}.part{rank}")
        self._lock_path = self.path.with_name(f".{self.path.name}.lock{rank}")
        self.done = np.zeros(len(images.ids), bool)
        self._meta = (VERSION, method, json.dumps(to_json(parameters), sort_keys=True))
        self._keys = {key_of(image_id): index for index, image_id in enumerate(images.ids.tolist())}
        self._committed = time.monotonic()
        with _writing(self.part):
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _acquire_lock(self._lock_path, on_wait)
            self._connection = sqlite3.connect(self.part.as_uri(), uri=True, isolation_level=None)
        try:
            with self._transaction():
                self._connection.executemany(DELETE, self._look_through("main", self.part))
                if not self._connection.execute("SELECT 1 FROM main.meta").fetchall():
                    self._write_meta(0)
            if rank == 0:
                self.merge_parts()
            if rank == 0 and grow and self.path.exists():
                here, _, other_size = ProposalStore(self.path).common(images)
                if len(here[~other_size]) < len(images.ids):
                    self._merge(self.path, f"{self.path.as_uri()}?mode=ro&immutable=1")
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Keep what was added, and let other processes go on; a part with nothing in it is removed."""
        try:
            if self.part.exists():  # not made a store
                self.commit()
                with _writing(self.part):
                    if not self._connection.execute("SELECT 1 FROM images LIMIT 1").fetchall():
                        self.part.unlink()
        except DataError:
            if kind is None:
                raise
        finally:
            self._release()

    def todo(self) -> list[int]:
        """The images that are missing."""
        return np.flatnonzero(~self.done).tolist()

    def add(self, index: int, boxes: Any, size: tuple[int, int]) -> None:
        """Keep the boxes (P, 4), best first, in pixels of an image of that size (width, height).

        Raises:
            DataError: boxes that are none, or they cannot be written; what was committed before is kept.
        """
        image_id = self.images.ids[index].item()
        try:
            scale, units = encode(boxes, size)
        except DataError as error:
            raise DataError(f"image {image_id!r}: {error}") from None
        key, width, height = key_of(image_id), int(self.images.widths[index]), int(self.images.heights[index])
        row = (key, index, width, height, scale, checksum_of(key, width, height, scale, boxes=units), units)
        with _writing(self.part):
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN")
            self._connection.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self.done[index] = True
        if time.monotonic() - self._committed >= COMMIT_INTERVAL:
            self.commit()

    def commit(self) -> None:
        """Keep what was added so far, whatever happens to the process; DataError if it cannot be written."""
        with _writing(self.part):
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")
        self._committed = time.monotonic()

    def merge_parts(self) -> None:
        """Take over the parts of all other processes, which must have ended; DataError for another computation's."""
        self.commit()
        for part in sorted(self.path.parent.glob(f".{glob.escape(self.path.name)}.part*[0-9]")):
            if part != self.part:
                self._merge(part, part.as_uri())
                part.unlink()

    def finish(self) -> ProposalStore:
        """Make the store; all images must be there.

        Raises:
            DataError: they are not, or the file cannot be written.
        """
        if not self.done.all():
            counts = f"{(~self.done).sum()} of {len(self.done)} images"
            raise DataError(f"{self.path}: {counts} have no proposals yet; run the same again")
        with self._transaction():
            rows = self._connection.execute("SELECT image_id, position FROM images ORDER BY position").fetchall()
            others = [key for key, _ in rows if key not in self._keys]  # in another list of the data set's images
            order = {key: position for position, key in enumerate([*self._keys, *others])}
            moved = [(order[key], key) for key, position in rows if order[key] != position]
            self._connection.executemany("UPDATE images SET position = ? WHERE image_id = ?", moved)
            self._write_meta(len(rows))
        with _writing(self.path):
            self._connection.close()
            os.replace(self.part, self.path)
            sync(self.path.parent)
        return ProposalStore(self.path)

    # -- tables ----------------------------------------------------------------------------------

    def _release(self) -> None:
        self._connection.close()
        self._lock_path.unlink(missing_ok=True)
        self._lock.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.commit()
        with _writing(self.part):
            self._connection.execute("BEGIN")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite rolls back by itself when the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def _write_meta(self, images: int) -> None:
        row = (*self._meta, images)
        self._connection.execute("DELETE FROM meta")
        self._connection.execute("INSERT INTO meta VALUES (?, ?, ?, ?, ?)", (*row, checksum_of(*row)))

    def _merge(self, path: Path, uri: str) -> None:
        """Add the images of another file; one that is here stays as it is."""
        with _writing(path):
            self._connection.execute("ATTACH ? AS other", (uri,))
            try:
                with self._transaction():
                    stale = self._look_through("other", path)
                    self._connection.execute("INSERT OR IGNORE INTO main.images SELECT * FROM other.images")
                    self._connection.executemany(DELETE, stale)
            finally:
                self._connection.execute("DETACH other")

    def _look_through(self, database: str, path: Path) -> list[tuple[bytes | int, int, int]]:
        """Note what is done in a part; returns key, width and height of the images that it has in another size."""
        if not self._connection.execute(f"SELECT 1 FROM {database}.sqlite_master").fetchall():
            for table in TABLES:  # a new one, or its process was killed at once
                self._connection.execute(table.replace("TABLE ", f"TABLE {database}."))
        rows = self._connection.execute(f"SELECT version, method, parameters FROM {database}.meta")
        for version, method, parameters in rows:
            if (version, method) != self._meta[:2]:
                raise _another_computation(path, method)
            if parameters != self._meta[2]:
                raise _another_computation(path, f"parameters {parameters} instead of {self._meta[2]}")
        sizes, stale = self.images.sizes.tolist(), []
        for key, *size in self._connection.execute(f"SELECT image_id, width, height FROM {database}.images"):
            index = self._keys.get(key)
            if index is not None and size == sizes[index]:
                self.done[index] = True
            elif not self.grow:
                raise _another_computation(path, "other images")
            elif index is not None:
                stale.append((key, *sizes[index]))
        return stale


def _another_computation(path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: holds the beginning of another computation of proposals ({what}); delete it to give that up, or "
        "choose another file"
    )


def _acquire_lock(path: Path, on_wait: Callable[[], None]) -> sqlite3.Connection:
    """A connection that holds SQLite's lock of an empty file, until it is closed or its process ends.

    The part itself is not used for it: a process that waits for a part which is renamed meanwhile would write the
    journal of the next part of that name into the store.
    """
    waits = False
    while True:
        path.touch()
        inode = _inode(path)
        connection = sqlite3.connect(path.as_uri(), uri=True, timeout=1, isolation_level=None)
        busy = None
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            busy = error
        if busy is None and inode is not None and inode == _inode(path):
            return connection
        connection.close()
        if inode != _inode(path):
            continue  # the process that had the lock has removed the file, with which some drives have errors
        if busy is not None and busy.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise busy
        if not waits:
            on_wait()
        waits = True


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Errors as DataErrors that name the file and the way out."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path.parent}: the proposals cannot be written ({why}; {free_space(path.parent)}). What was written "
            "before is kept: make room or choose another folder, and run the same again"
        ) from error
    except sqlite3.DatabaseError as error:
        raise DataError(f"{path}: is damaged, or no part of a store of proposals ({error}); delete it") from error
