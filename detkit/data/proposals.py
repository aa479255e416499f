"""The proposals of a split: where they are kept, and computing them where they are missing."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import Annotations
from detkit.data.image_io import read_image
from detkit.errors import ConfigError, DataError
from detkit.files import plain
from detkit.progress import Progress
from detkit.proposals.store import ProposalStore
from detkit.proposals.store_format import Images
from detkit.proposals.store_journal import Computation, Journal, merge

SUFFIX = ".proposals"
#: What needs no network; the method "rpn" is the command line's.
FUNCTIONS = {"selective_search": "selective_search", "sliding_window": "sliding_windows"}


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

    Args:
        annotations: the split.
        path: the store.
        method: "selective_search" or "sliding_window".
        options: of its function; what is not given has the function's default.
        workers: threads; None for one a core.
        progress: say that and how far it computes.

    Raises:
        DataError: the store at `path` does not fit the split, or holds other proposals; or an image cannot be read,
            which is said after all others are done and kept.
        ConfigError: an unknown method or option.
    """
    computation = plan(annotations, path, method, resolve_options(method, options))
    found = find(computation)
    if found is not None:
        return found
    with Journal(computation, on_wait=lambda: _say_waiting(computation.path)) as journal:
        found = find(computation)  # another process may have made it while this one waited
        if found is None:
            compute(annotations, journal, journal.todo(), workers=workers, progress=progress)
            merge(computation)
    computation.remove_parts()
    return found or ProposalStore.open(path)


def plan(
    annotations: Annotations, path: str | os.PathLike[str], method: str, parameters: Mapping[str, Any]
) -> Computation:
    """What has to be computed for a split."""
    images = Images.of(annotations.image_ids, annotations.widths, annotations.heights)
    return Computation.of(path, images, method, parameters)


def find(computation: Computation) -> ProposalStore | None:
    """The store, read through once and held against what it should be; None if it is not there.

    Raises:
        DataError: it does not fit, holds other proposals, or is damaged.
    """
    if not computation.path.exists():
        return None
    store = ProposalStore.open(computation.path)
    store.check(*computation.images)
    if (store.method, store.parameters) != (computation.method, computation.parameters):
        raise DataError(
            f"{computation.path}: holds proposals by {describe(store.method, store.parameters)}; asked for is "
            f"{describe(computation.method, computation.parameters)}. Delete it, or choose another place"
        )
    store.verify()
    return store


def compute(
    annotations: Annotations,
    journal: Journal,
    todo: Sequence[int],
    *,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Compute the images `todo` of a split, an image a thread, each kept as soon as it is done.

    What is found does not depend on the number of threads, nor on the order of the images.

    Raises:
        DataError: images that cannot be read, after all others are done.
    """
    computation = journal.computation
    workers = cores() if workers is None else workers
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    total, earlier = len(annotations), int(journal.done.sum())
    if progress:
        resumed = f"{earlier:,} of them are done, " if earlier else ""
        by = describe(computation.method, computation.parameters)
        print(f"proposals: {total:,} images by {by}; {resumed}{workers} threads\n  into {computation.path}", flush=True)

    def one(index: int) -> tuple[np.ndarray, tuple[int, int]]:
        size = (int(annotations.widths[index]), int(annotations.heights[index]))
        image_id, path = annotations.image_id(index), annotations.path(index)
        return propose(path, size, image_id, computation.method, computation.parameters)

    unreadable: list[DataError] = []
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
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    try:
                        boxes, size = future.result()
                    except DataError as error:
                        unreadable.append(error)
                        continue
                    journal.append(index, boxes, size)
                    bar.step()
        except BaseException:
            for future in running:
                future.cancel()
            raise
    if unreadable:
        more = f"\n{len(unreadable) - 1} more images cannot be read either" if len(unreadable) > 1 else ""
        raise DataError(
            f"{unreadable[0]}{more}\nThe other proposals are kept: once that is mended, the same command goes on."
        )


def propose(
    path: str, size: tuple[int, int], image_id: str | int, method: str, options: Mapping[str, Any]
) -> tuple[np.ndarray, tuple[int, int]]:
    """The boxes (P, 4) of an image file, best first, and the image's own (width, height).

    Args:
        path: the image.
        size: (width, height) by its annotation.
        image_id: chance, where the method has any, is drawn for it and the option `seed`.
        method: as in `load_or_compute`.
        options: all of the method's.
    """
    function, options = function_of(method), dict(options)
    if method == "sliding_window":
        return function(size[::-1], **options), size
    image = read_image(path, size)
    if options.get("seed") is not None:
        options["seed"] = image_seed(options["seed"], image_id)
    return function(image, **options), (image.shape[1], image.shape[0])


def image_seed(seed: int, image_id: str | int) -> int:
    """The seed of one image, 0..2**32 - 1: a function of the data set's seed and the image's id."""
    word = zlib.crc32(str(image_id).encode("utf-8", "surrogatepass"))
    return int(np.random.SeedSequence((seed, word)).generate_state(1)[0])


def function_of(method: str) -> Callable[..., np.ndarray]:
    """The function behind a method.

    Raises:
        ConfigError: there is no such method.
    """
    if method not in FUNCTIONS:
        raise ConfigError(f"there is no method {method!r} of proposals; there are {', '.join(FUNCTIONS)}")
    from detkit import proposals

    return getattr(proposals, FUNCTIONS[method])


def resolve_options(method: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All options of a method: those given, else the function's defaults.

    Raises:
        ConfigError: an option that the function does not have.
    """
    parameters = list(inspect.signature(function_of(method)).parameters.values())[1:]
    defaults = {each.name: each.default for each in parameters}
    unknown = sorted(set(given or {}) - set(defaults))
    if unknown:
        raise ConfigError(f"{method} has no option {', '.join(unknown)}; it has {', '.join(defaults)}")
    options = plain(defaults | dict(given or {}))
    missing = [each.name for each in parameters if options[each.name] is inspect.Parameter.empty]
    if missing:
        raise ConfigError(f"{method} needs {', '.join(missing)}")
    return options


def default_store_path(
    annotations: Annotations,
    split: str,
    method: str = "selective_search",
    options: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Path:
    """Where the proposals of a split are kept, unless somebody says otherwise.

    `proposals/SPLIT-METHOD-HASH.proposals` in the data set's folder, the hash being that of the options; where that
    folder cannot be written to, in `data/proposals/NAME-HASH` of the working directory.

    Args:
        annotations: the split.
        split: its name.
        method: of the proposals.
        options: of the method; for "rpn" the parameters as they stand in the store.
        folder: another folder for the file.
    """
    parameters = plain(options or {}) if method == "rpn" else resolve_options(method, options)
    name = f"{split}-{method}-{_short_hash(json.dumps(parameters, sort_keys=True))}{SUFFIX}"
    if folder is not None:
        return Path(folder) / name
    root = Path(annotations.root)
    if not any(os.path.dirname(file) for file in annotations.files[:1]):
        root = root.parent  # COCO's: a folder of images only, and nothing else shall be in it
    if os.access(root / "proposals" if (root / "proposals").exists() else root, os.W_OK):
        return root / "proposals" / name
    place = os.path.abspath(root)
    return Path("data") / "proposals" / f"{os.path.basename(place)}-{_short_hash(place)}" / name


def describe(method: str, parameters: Mapping[str, Any]) -> str:
    """A method and its options in words."""
    return f"{method} ({', '.join(f'{name} {value}' for name, value in parameters.items())})" if parameters else method


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _say_waiting(path: Path) -> None:
    print(f"proposals: another process is computing {path}; waiting for it ({time.strftime('%H:%M')})", flush=True)
