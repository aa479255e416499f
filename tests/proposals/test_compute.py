"""Proposals of a split: computed once, kept, found again, and made whole when the data set has grown."""

from __future__ import annotations

import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from detkit.errors import ConfigError, DataError
from detkit.proposals import ProposalMethod, ProposalStore, SlidingWindows
from detkit.proposals.compute import ProposalTask, compute, default_store_path, finish, load_or_compute, store_path
from detkit.proposals.store import Images
from tests.proposals.stores import write_store

NAMES = list("abcdefg")
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="no fork")


@dataclass(frozen=True)
class Search(ProposalMethod):
    """Stands for selective search: random boxes of a seed and the pixels."""

    mode: str = "fast"
    seed: int = 0
    #: What was asked for, and what shall happen before the answer.
    calls: ClassVar[list[str]] = []
    before: ClassVar[Callable[[int], None]]

    def __call__(self, image: np.ndarray, image_id: Any = None) -> np.ndarray:
        Search.before(len(self.calls))
        self.calls.append(image_id)
        random = np.random.default_rng((self.seed, int(image.sum())))
        corners = np.sort(random.random((random.integers(0, 5), 2, 2)) * [image.shape[1], image.shape[0]], axis=1)
        return corners.reshape(-1, 4)


@pytest.fixture(autouse=True)
def calls() -> list[str]:
    Search.calls.clear()
    Search.before = lambda call: None
    return Search.calls


def task(path: Path, names: Any = NAMES, broken: str = "", **options: Any) -> ProposalTask:
    """The proposals of images that are drawn from their names; those that are `broken` cannot be read."""

    def read(index: int) -> np.ndarray:
        if names[index] in broken:
            raise DataError(f"{names[index]}.png: cannot be read")
        return np.random.default_rng(ord(names[index])).integers(0, 256, (30, 40, 3), np.uint8)

    images = Images.of(list(names), [40] * len(names), [30] * len(names))
    return ProposalTask(path, images, read, **({"method": Search()} | options))


def same(a: ProposalStore, b: ProposalStore) -> bool:
    return [*a] == [*b] and all(np.array_equal(a[image_id], b[image_id]) for image_id in a)


def test_computed_once_then_found(tmp_path: Path, calls: list[str], capsys: Any) -> None:
    path = tmp_path / "new" / "train.proposals"
    store = load_or_compute(task(path))
    said = capsys.readouterr().out
    assert "proposals of 7 images by Search (mode fast, seed 0)" in said and str(path) in said
    assert list(store) == NAMES and len(calls) == 7
    assert store.method == f"{__name__}.Search" and store.parameters == {"mode": "fast", "seed": 0}
    assert 0 in store.counts and store.counts.sum() > 3  # none at all is an answer, too
    again = load_or_compute(task(path))
    assert len(calls) == 7 and capsys.readouterr().out == "" and again.path == path
    assert [p.name for p in path.parent.iterdir()] == ["train.proposals"]


def test_neither_threads_nor_the_rest_of_the_split_change_the_boxes(tmp_path: Path) -> None:
    random = np.random.default_rng()
    Search.before = lambda call: time.sleep(random.random() / 50)
    one, *others = (load_or_compute(task(tmp_path / str(n)), workers=n, progress=False) for n in (1, 2, 5))
    assert all(same(one, other) for other in others)
    alone = load_or_compute(task(tmp_path / "alone", "c"), progress=False)
    np.testing.assert_array_equal(alone["c"], one["c"])
    assert not same(one, load_or_compute(task(tmp_path / "seed", method=Search(seed=1)), progress=False))


def test_sliding_windows_read_no_image(tmp_path: Path) -> None:
    windows = SlidingWindows(scales=(20,), ratios=(1,), stride=20)
    store = load_or_compute(task(tmp_path / "s", broken="abcdefg", method=windows))
    assert [sorted(store[name].tolist()) for name in NAMES] == [
        [[0, 0, 20, 20], [0, 10, 20, 30], [20, 0, 40, 20], [20, 10, 40, 30]]
    ] * 7


def test_what_cannot_be_read_is_told_after_all_else_is_kept(tmp_path: Path, calls: list[str]) -> None:
    path = tmp_path / "s"
    with pytest.raises(DataError) as error:
        load_or_compute(task(path, broken="cf"))
    assert re.search(
        r"c\.png: cannot be read\nThe same holds for 1 more images\.\nAll other proposals are kept", str(error.value)
    )
    assert len(calls) == 5 and not path.exists()
    store = load_or_compute(task(path))
    assert len(calls) == 7 and same(store, load_or_compute(task(tmp_path / "at_once")))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_stopped_it_goes_on(tmp_path: Path, calls: list[str], error: type, capsys: Any) -> None:
    def fail(call: int) -> None:
        if call == 4:
            raise error("that was it")

    Search.before = fail
    with pytest.raises(error, match="that was it") as caught:
        load_or_compute(task(tmp_path / "s"), workers=1)
    if error is RuntimeError:
        assert caught.value.__notes__ == ["Search (mode fast, seed 0) of image 'e'"]
    Search.before = lambda call: None
    capsys.readouterr()
    load_or_compute(task(tmp_path / "s"), workers=1)
    assert "7 images (4 of them are there already)" in capsys.readouterr().out
    assert sorted(calls) == NAMES


@needs_fork
def test_killed_it_goes_on_and_computes_nothing_twice(tmp_path: Path, calls: list[str]) -> None:
    context = multiprocessing.get_context("fork")
    computed, hanging, path = context.Value("i", 0), context.Value("i", 0), tmp_path / "s"

    def hang_at_the_third(call: int) -> None:
        with computed.get_lock(), hanging.get_lock():
            hangs = call >= 2
            hanging.value += hangs
            computed.value += not hangs
        if hangs:
            time.sleep(600)

    Search.before = hang_at_the_third
    for _ in range(2):
        hanging.value = 0
        process = context.Process(target=load_or_compute, args=(task(path),), kwargs={"workers": 2})
        process.start()
        until = time.monotonic() + 60
        while hanging.value < 2 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(1.5)  # what is computed is written although the rest takes long
        process.kill()
        process.join(20)
    before = computed.value
    with task(path).writer() as writer:
        assert 4 <= before < 7 and writer.done.sum() == before and not path.exists()
    Search.before = lambda call: None
    store = load_or_compute(task(path))
    assert len(calls) == 7 - before
    assert same(store, load_or_compute(task(tmp_path / "at_once")))


@needs_fork
def test_several_processes_at_once_compute_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    computed, job = context.Value("i", 0), task(tmp_path / "s", grow=True)

    def slow(call: int) -> None:
        time.sleep(0.2)
        with computed.get_lock():
            computed.value += 1

    Search.before = slow
    processes = [context.Process(target=load_or_compute, args=(job,), kwargs={"workers": 1}) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4 and computed.value == 7
    assert [each.name for each in tmp_path.iterdir()] == ["s"]
    Search.before = lambda call: None
    assert same(load_or_compute(job), load_or_compute(task(tmp_path / "alone")))


def test_stores_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "s"
    load_or_compute(task(path))
    with pytest.raises(DataError, match=r"by Search \(mode fast.*\); asked for is Search \(mode quality.*Delete it"):
        load_or_compute(task(path, method=Search("quality")))
    with pytest.raises(DataError, match=r"asked for is SlidingWindows"):
        load_or_compute(task(path, method=SlidingWindows()))
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(DataError, match="damaged"):
        load_or_compute(task(path))
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        load_or_compute(task(tmp_path / "t"), workers=0)


def test_images_that_other_processes_kept_elsewhere(tmp_path: Path) -> None:
    job = task(tmp_path / "own" / "s")
    with job.writer() as writer:
        compute(job, writer, [0, 2, 4, 6], workers=1, progress=False)
        with pytest.raises(DataError, match=r"own: the proposals of 3 of 7 images.*All 2 processes.*--output"):
            finish(job, writer, processes=2)
    assert (tmp_path / "own" / ".s.part0").exists()


# -- a data set that grows -----------------------------------------------------------------------


def test_added_images_are_computed_and_the_others_kept(tmp_path: Path, calls: list[str], capsys: Any) -> None:
    path = tmp_path / "s"
    before = dict(load_or_compute(task(path, "bc"), workers=1))
    capsys.readouterr()
    store = load_or_compute(task(path, "abcd", grow=True), workers=1)
    assert "proposals of 4 images (2 of them are there already)" in capsys.readouterr().out
    assert list(store) == list("abcd") and sorted(calls) == list("abcd")
    assert all(np.array_equal(store[name], before[name]) for name in "bc")
    assert [each.name for each in tmp_path.iterdir()] == ["s"]
    store = load_or_compute(task(path, "be", grow=True))
    assert list(store) == list("beacd") and len(calls) == 5  # none is dropped: another list may want it again
    load_or_compute(task(path, "abcde", grow=True))
    assert len(calls) == 5


def test_a_stop_half_way_harms_nothing(tmp_path: Path, calls: list[str]) -> None:
    path = tmp_path / "s"
    load_or_compute(task(path, "bc"))
    content = path.read_bytes()
    grown = task(path, "abcd", grow=True)
    with grown.writer() as writer:
        assert writer.todo() == [0, 3]
        writer.add(3, [[0, 0, 7, 7]], (40, 30))
        # Meanwhile a run on the shorter list finds its store, and leaves the work of the other alone.
        load_or_compute(task(path, "bc", grow=True))
    assert path.read_bytes() == content
    store = load_or_compute(grown)
    assert len(calls) == 3 and store["d"].tolist() == [[0, 0, 7, 7]]


@pytest.mark.parametrize(
    ("names", "size", "grow", "message"),
    [
        ("abc", (40, 30), False, "1 have none.*if the data set has changed, delete it"),  # the user has named it
        ("cd", (40, 30), True, "2 have none"),  # nothing is common
        ("ac", (41, 30), True, "1 have none, 1 are of another size"),
    ],
)
def test_which_stores_are_refused_and_left_alone(
    tmp_path: Path, calls: list[str], names: str, size: tuple[int, int], grow: bool, message: str
) -> None:
    store = write_store(tmp_path / "s", list("ab"), [[], []], size, f"{__name__}.Search", {"mode": "fast", "seed": 0})
    content = store.path.read_bytes()
    with pytest.raises(DataError, match=message):
        load_or_compute(task(tmp_path / "s", names, grow=grow))
    assert store.path.read_bytes() == content and not calls


# -- where they are kept -------------------------------------------------------------------------


def test_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = default_store_path(tmp_path, "train", Search())
    assert path.parent == tmp_path / "proposals" and path == store_path(path.parent, "train", Search("fast"))
    assert re.fullmatch(r"train-Search-[0-9a-f]{8}\.proposals", path.name)
    others = {
        default_store_path(tmp_path, split, method)
        for split, method in (("val", Search()), ("train", Search(seed=1)), ("train", SlidingWindows()))
    }
    assert len(others | {path}) == 4
    monkeypatch.setattr("os.access", lambda path, mode: False)
    elsewhere = default_store_path(tmp_path, "train", Search())
    assert re.fullmatch(rf"data/proposals/{tmp_path.name}-[0-9a-f]{{8}}", str(elsewhere.parent))
    assert elsewhere.name == path.name


@pytest.mark.parametrize("there", ["{}", ".{}.part3"])
def test_what_is_in_a_read_only_folder_is_used(tmp_path: Path, there: str) -> None:
    path = default_store_path(tmp_path, "train", Search())
    path.parent.mkdir()
    (path.parent / there.format(path.name)).write_bytes(b"")
    path.parent.chmod(0o555)
    try:
        assert default_store_path(tmp_path, "train", Search()) == path
        assert default_store_path(tmp_path, "train", Search(seed=1)).parent != path.parent
    finally:
        path.parent.chmod(0o755)
