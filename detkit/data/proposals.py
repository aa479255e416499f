"""The proposals of a split: where they are kept, and computing them where they are missing."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import Annotations
from detkit.data.image_io import read_image
from detkit.data.proposal_methods import describe, propose, resolve_options
from detkit.errors import ConfigError, DataError
from detkit.files import to_json
from detkit.progress import Progress
from detkit.proposals.store import ProposalStore
from detkit.proposals.store_extension import extended
from detkit.proposals.store_format import Images
from detkit.proposals.store_journal import Computation, Journal, merge, missing
from detkit.system import available_cores

SUFFIX = ".proposals"


def load_or_compute(
    annotations: Annotations,
    path: str | os.PathLike[str],
    *,
    method: str = "selective_search",
    options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> ProposalStore:
    """The proposals of a split, computed now if they are not there; a computation that was stopped goes on.

    A store in the data set's own place (`default_store_path`) that only lacks images, as after some were added to the
    data set, is made whole: what it has is kept.

    Args:
        annotations: the split.
        path: the store.
        method: "selective_search" or "sliding_window".
        options: of its function; what is not given has the function's default.
        workers: threads; None for one a core.
        progress: say that and how far it computes.

    Raises:
        DataError: the store at `path` does not fit the split, or holds other proposals; or images cannot be read,
            which is said after all others are done and kept.
        ConfigError: an unknown method or option.
    """
    computation = plan(annotations, path, method, resolve_options(method, options))
    found = find(computation)
    if found is None:
        with Journal(computation, on_wait=lambda: say_waiting(computation.path)) as journal:
            found = find(computation)  # another process may have made it while this one waited
            if found is None:
                compute(annotations, journal, journal.todo(), workers=workers, progress=progress)
                found = finish(annotations, computation)
    computation.remove_abandoned_parts()
    return found


def plan(
    annotations: Annotations, path: str | os.PathLike[str], method: str, parameters: Mapping[str, Any]
) -> Computation:
    """What has to be computed for a split.

    Raises:
        DataError: what is at `path` is no store.
    """
    images = Images.of(annotations.image_ids, annotations.widths, annotations.heights)
    computation = Computation.of(path, images, method, parameters)
    if not computation.path.exists() or not _is_own(annotations, computation):
        return computation
    store = ProposalStore.open(path)
    whole = extended(store, images) if _by_same_means(store, computation) else None
    return computation if whole is None else computation._replace(images=whole, earlier=store)


def find(computation: Computation) -> ProposalStore | None:
    """The store, read through once and held against what it should be; None if it is not there, or to be made whole.

    Raises:
        DataError: it does not fit, holds other proposals, or is damaged.
    """
    if not computation.path.exists():
        return None
    store = ProposalStore.open(computation.path)
    lacking = computation.earlier is not None and extended(store, computation.images) is not None
    if not lacking:
        store.check(*computation.images)
    if not _by_same_means(store, computation):
        raise DataError(
            f"{computation.path}: holds proposals by {describe(store.method, store.parameters)}; asked for is "
            f"{describe(computation.method, computation.parameters)}. Delete it, or choose another place"
        )
    store.verify()
    return None if lacking else store


def compute(
    annotations: Annotations,
    journal: Journal,
    todo: Sequence[int],
    *,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Compute the images `todo` of a split, an image a thread, each kept as soon as it is done.

    What is found does not depend on the number of threads, nor on the order of the images. Images that cannot be read
    are left for `finish`.
    """
    computation = journal.computation
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    earlier = int(journal.done.sum())
    if progress:
        say_what(journal, f"{workers} thread{'s' if workers > 1 else ''}")

    def one(index: int) -> tuple[np.ndarray, tuple[int, int]] | None:
        try:
            return propose(annotations, index, computation.method, computation.parameters)
        except DataError:
            return None
        except Exception as error:
            error.add_note(f"{computation.method} of {annotations.path(index)}")
            raise

    running: dict[Future[Any], int] = {}
    rest = iter(todo)
    with (
        Progress("proposals", earlier + len(todo), earlier, show=progress) as bar,
        ThreadPoolExecutor(workers, "proposals") as pool,
    ):
        try:
            while True:
                while len(running) < 2 * workers and (index := next(rest, None)) is not None:
                    running[pool.submit(one, index)] = index
                if not running:
                    break
                failure: BaseException | None = None
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=running.__getitem__):  # of several failures the first image's is told
                    index = running.pop(future)
                    failure = failure or future.exception()
                    if future.exception() is None and (found := future.result()) is not None:
                        journal.append(index, *found)
                        bar.step()
                if failure is not None:  # once what is done beside it is kept
                    raise failure
        except BaseException:
            for future in running:
                future.cancel()
            raise


def finish(annotations: Annotations, computation: Computation, processes: int = 1) -> ProposalStore:
    """Make the store of what all processes have computed; `processes` is how many there were.

    Raises:
        DataError: images that cannot be read, or that are not here, where others computed them; all others are kept.
    """
    unreadable, absent = [], missing(computation)
    for index in absent:
        try:
            read_image(annotations.path(index))
        except DataError as error:
            unreadable.append(error)
    if unreadable:
        more = f"\nSo it is with {len(unreadable) - 1} more images." if len(unreadable) > 1 else ""
        raise DataError(f"{unreadable[0]}{more}\nAll other proposals are kept: the same command goes on from there.")
    if absent and processes > 1:
        raise DataError(
            f"{computation.path.parent}: the proposals of {len(absent)} of {len(computation.images.ids)} images, which "
            f"other processes computed, are not in this folder. All {processes} processes must write to one folder "
            "that their machines share: choose such a one with --output. What is here is kept"
        )
    merge(computation)
    return ProposalStore.open(computation.path)


def default_store_path(
    annotations: Annotations,
    split: str,
    method: str = "selective_search",
    options: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Path:
    """Where the proposals of a split are kept, unless somebody says otherwise.

    `proposals/SPLIT-METHOD-HASH.proposals` in the data set's folder, the hash being that of the options; where it is
    not there, whole or begun, and that folder cannot be written to, in `data/proposals/NAME-HASH` of the working
    directory.

    Args:
        annotations: the split.
        split: its name.
        method: of the proposals.
        options: of the method; for "rpn" the parameters as they stand in the store.
        folder: another folder for the file.
    """
    parameters = to_json(options or {}) if method == "rpn" else resolve_options(method, options)
    name = f"{split}-{method}-{_short_hash(json.dumps(parameters, sort_keys=True))}{SUFFIX}"
    if folder is not None:
        return Path(folder) / name
    root = Path(annotations.root)
    if not any(os.path.dirname(file) for file in annotations.files[:1]):
        root = root.parent  # COCO's: a folder of images only, and nothing else shall be in it
    own = root / "proposals"
    if (own / name).exists() or any(own.glob(f".{name}.part*")) or _is_writable(own if own.exists() else root):
        return own / name
    place = os.path.abspath(root)
    return Path("data") / "proposals" / f"{os.path.basename(place)}-{_short_hash(place)}" / name


def _is_own(annotations: Annotations, computation: Computation) -> bool:
    """Whether the store's place is the one that `default_store_path` gives it, and nobody's choice."""
    split = computation.path.name.split(f"-{computation.method}-")[0]
    return computation.path == default_store_path(annotations, split, computation.method, computation.parameters)


def _by_same_means(store: ProposalStore, computation: Computation) -> bool:
    return (store.method, store.parameters) == (computation.method, computation.parameters)


def say_what(journal: Journal, means: str) -> None:
    """Print what is about to be computed, into which file and by what means."""
    computation, done = journal.computation, int(journal.done.sum())
    by = describe(computation.method, computation.parameters)
    before = f" ({done:,} of them are there already)" if done else ""
    print(f"proposals of {len(journal.done):,} images{before} by {by}, {means}\n  into {computation.path}", flush=True)


def _is_writable(folder: Path) -> bool:
    """Whether this user may write there, and anybody should: what is marked read-only is left alone by root too."""
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def say_waiting(path: Path) -> None:
    """Print that another process is at it."""
    print(f"proposals: another process is computing {path}; waiting for it ({time.strftime('%H:%M')})", flush=True)
