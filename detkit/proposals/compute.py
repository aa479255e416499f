"""From a method to the proposals of a split: where they are kept, and computing those that are missing."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.errors import ConfigError, DataError
from detkit.progress import Progress
from detkit.proposals.methods import ProposalMethod, describe
from detkit.proposals.store import Images, ProposalStore
from detkit.proposals.store_writer import COMMIT_INTERVAL, StoreWriter
from detkit.settings import to_plain
from detkit.signals import SIGNALS
from detkit.system import available_cores

SUFFIX = ".proposals"


@dataclass(frozen=True)
class ProposalTask:
    """The proposals of a split by one method, and the file for them.

    Args:
        path: the store.
        images: ids and sizes of the split's images.
        read: position of an image in the split -> uint8 RGB (H, W, 3); raises DataError if it cannot be read.
        method: how they are made.
        grow: a store that lacks images, as after some were added to the data set, is extended and not refused.
    """

    path: Path
    images: Images
    read: Callable[[int], np.ndarray]
    method: ProposalMethod
    grow: bool = False

    def writer(self, rank: int = 0) -> StoreWriter:
        """What computed boxes are given to; see `StoreWriter`."""
        plain = self.plain
        method, parameters = plain["class_path"], plain["init_args"]
        return StoreWriter(self.path, self.images, method, parameters, rank, self.grow, self._announce_waiting)

    @property
    def plain(self) -> dict[str, Any]:
        """The method's ``class_path`` and ``init_args``."""
        return to_plain(self.method)

    def find(self) -> ProposalStore | None:
        """The store, read through once and compared with what it should be; None if images are to be computed.

        Raises:
            DataError: it does not fit the split, holds other proposals, or is damaged.
        """
        if not self.path.exists():
            return None
        store = ProposalStore(self.path)
        here, _, other_size = store.common(self.images)
        lacks_images = 0 < len(here) < len(self.images.ids) and not other_size.any()
        if not (self.grow and lacks_images):
            store.check(*self.images)
        if {"class_path": store.method, "init_args": store.parameters} != self.plain:
            raise DataError(
                f"{self.path}: holds proposals by {describe(store.method, store.parameters)}; asked for is "
                f"{describe(**self.plain)}. Delete it, or choose another file"
            )
        store.verify()
        return None if lacks_images else store

    def propose(self, index: int) -> tuple[np.ndarray, tuple[int, int]] | None:
        """The boxes (P, 4) of one image and its (width, height); None if it cannot be read."""
        if self.method.needs_pixels:
            try:
                image = self.read(index)
            except DataError:
                return None
        else:
            height, width = int(self.images.heights[index]), int(self.images.widths[index])
            image = np.broadcast_to(np.uint8(0), (height, width, 3))
        image_id = self.images.ids[index].item()
        try:
            boxes = np.asarray(self.method(image, image_id))
        except Exception as error:
            error.add_note(f"{describe(**self.plain)} of image {image_id!r}")
            raise
        return boxes, (image.shape[1], image.shape[0])

    def announce(self, done: int, means: str) -> None:
        """Print what is about to be computed, into which file, and by what means."""
        before = f" ({done:,} of them are there already)" if done else ""
        print(
            f"proposals of {len(self.images.ids):,} images{before} by {describe(**self.plain)}, {means}\n"
            f"  into {self.path}",
            flush=True,
        )

    def _announce_waiting(self) -> None:
        print(
            f"proposals: another process is computing {self.path}; waiting for it ({time.strftime('%H:%M')}). If there "
            "is none, the drive has no file locks: choose another folder",
            flush=True,
        )


def load_or_compute(task: ProposalTask, workers: int | None = None, progress: bool = True) -> ProposalStore:
    """The proposals of a split, computed now if they are not there; a computation that was stopped goes on.

    Args:
        task: what is wanted.
        workers: threads; None for one a core.
        progress: print what is computed, and how far it is.

    Raises:
        DataError: the store does not fit the split, or holds other proposals; or images cannot be read, which is said
            after all others are computed and kept.
    """
    store = task.find()
    if store is None:
        with task.writer() as writer:
            store = task.find()  # another process may have made it while this one waited
            if store is None:
                compute(task, writer, writer.todo(), workers, progress)
                store = finish(task, writer)
    return store


def compute(
    task: ProposalTask,
    writer: StoreWriter,
    todo: Sequence[int],
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Compute the images ``todo``, an image a thread (by default one a core), and keep each as soon as it is done.

    The boxes depend neither on the number of threads nor on the order of the images. Images that cannot be read are
    left for `finish`.
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    done = int(writer.done.sum())
    if progress:
        task.announce(done, f"{workers} thread{'s' if workers > 1 else ''}")
    rest = iter(todo)
    running: dict[Future[tuple[np.ndarray, tuple[int, int]] | None], int] = {}
    with (
        SIGNALS.postponed(),
        Progress("proposals", done + len(todo), done, show=progress) as bar,
        ThreadPoolExecutor(workers, "proposals") as pool,
    ):
        try:
            while True:
                if SIGNALS.received is not None:  # what runs is finished and kept
                    rest, running = iter(()), {future: i for future, i in running.items() if not future.cancel()}
                while len(running) < 2 * workers and (index := next(rest, None)) is not None:
                    running[pool.submit(task.propose, index)] = index
                if not running:
                    break
                failure: BaseException | None = None
                ended = wait(running, timeout=COMMIT_INTERVAL, return_when=FIRST_COMPLETED).done
                if not ended:
                    writer.commit()
                for future in sorted(ended, key=running.__getitem__):  # of several failures the first image's is told
                    index = running.pop(future)
                    failure = failure or future.exception()
                    if future.exception() is None and (result := future.result()) is not None:
                        writer.add(index, *result)
                        bar.step()
                if failure is not None:  # after what was done beside it is kept
                    raise failure
        except BaseException:
            for future in running:
                future.cancel()
            raise


def finish(task: ProposalTask, writer: StoreWriter, processes: int = 1) -> ProposalStore:
    """Make the store from the parts of all processes; ``processes`` is their number.

    Raises:
        DataError: images that cannot be read, or whose proposals other processes kept elsewhere. All others are kept.
    """
    writer.merge_parts()
    unreadable, missing = [], writer.todo()
    for index in missing if task.method.needs_pixels else ():
        try:
            task.read(index)
        except DataError as error:
            unreadable.append(error)
    if unreadable:
        more = f"\nThe same holds for {len(unreadable) - 1} more images." if len(unreadable) > 1 else ""
        raise DataError(f"{unreadable[0]}{more}\nAll other proposals are kept: the same command goes on from there.")
    if missing and processes > 1:
        raise DataError(
            f"{task.path.parent}: the proposals of {len(missing)} of {len(task.images.ids)} images, which other "
            f"processes computed, are not in this folder. All {processes} processes must write to one folder that "
            "their machines share: choose such a one with --output. What is here is kept"
        )
    return writer.finish()


def store_path(folder: Path, split: str, method: ProposalMethod) -> Path:
    """The file of a split's proposals in a folder: ``SPLIT-CLASS-HASH.proposals``, with a hash of class and options."""
    plain = to_plain(method)
    name = plain["class_path"].rpartition(".")[2]
    return folder / f"{split}-{name}-{_short_hash(json.dumps(plain, sort_keys=True))}{SUFFIX}"


def default_store_path(root: Path, split: str, method: ProposalMethod) -> Path:
    """Where a split's proposals are kept if the user names no other place.

    That is the folder ``proposals`` of the data set in ``root``, or, if that cannot be written to and the store is not
    there, neither complete nor begun, ``data/proposals/NAME-HASH`` in the working directory.
    """
    path = store_path(root / "proposals", split, method)
    begun = path.exists() or any(path.parent.glob(f".{path.name}.part*"))
    folder = path.parent if path.parent.exists() else root
    # What is marked read-only is left alone by root too.
    if begun or (os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222):
        return path
    elsewhere = os.path.abspath(root)
    return Path("data") / "proposals" / f"{os.path.basename(elsewhere)}-{_short_hash(elsewhere)}" / path.name


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
