"""The store of proposals: what is read back, what is refused, and what survives a kill."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detkit.errors import DataError
from detkit.proposals.store import ProposalStore
from detkit.proposals.store_format import Images, encode, finest_scale
from detkit.proposals.store_journal import Computation, Journal, merge
from detkit.proposals.store_writer import write_store

IMAGES = Images.of(["b", "a", "ünd/c.jpg", "\udcff"], [40, 30, 8000, 1], [30, 40, 6000, 1])
BOXES = [
    np.array([[0, 0, 40, 30], [1.125, 2, 3, 29.875]], np.float32),
    np.zeros((0, 4), np.float32),
    np.array([[7999, 5999, 8000, 6000], [0.125, 0.25, 0.375, 0.5], [0, 0, 8000, 6000]], np.float32),
    np.array([[0, 0, 1, 1]], np.float32),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some" / "train.proposals"
    write_store(path, IMAGES, BOXES, "selective_search", {"mode": "fast", "sizes": (1, 2), "seed": None})
    return path


def test_what_is_written_is_read(path: Path) -> None:
    store = ProposalStore.open(path)
    assert list(store) == ["b", "a", "ünd/c.jpg", "\udcff"] and len(store) == 4
    for image_id, boxes in zip(store, BOXES, strict=True):
        assert store[image_id].dtype == np.float32 and image_id in store
        np.testing.assert_array_equal(store[image_id], boxes)
    assert store.widths.tolist() == [40, 30, 8000, 1] and store.heights.tolist() == [30, 40, 6000, 1]
    assert store.counts.tolist() == [2, 0, 3, 1]
    assert (store.method, store.version, store.scale) == ("selective_search", 1, 8)
    assert store.parameters == {"mode": "fast", "sizes": [1, 2], "seed": None}
    assert list(path.parent.iterdir()) == [path]
    store.verify()
    store["b"][:] = 7  # a copy: the next reader is not to see it
    np.testing.assert_array_equal(store["b"], BOXES[0])


def test_ids_that_are_not_there(path: Path, tmp_path: Path) -> None:
    store = ProposalStore.open(path)
    for wrong in ("", "c", "z" * 50, 1, None, 2.0, ("b",)):
        assert wrong not in store
        with pytest.raises(KeyError):
            store[wrong]
    numbers = tmp_path / "numbers"
    write_store(numbers, Images.of([30, 10, 20], [5] * 3, [5] * 3), [[[0, 0, i, i]] for i in (3, 1, 2)], "x", {})
    store = ProposalStore.open(numbers)
    assert [store[i][0, 2] for i in (10, 20, 30)] == [1, 2, 3] and list(store) == [30, 10, 20]
    assert store[np.int64(20)][0, 2] == 2 and type(next(iter(store))) is int
    assert 15 not in store and "10" not in store


def test_a_set_without_any_box(tmp_path: Path) -> None:
    write_store(tmp_path / "s", Images.of([1, 2], [5, 5], [5, 5]), [[], np.zeros((0, 4))], "x", {})
    store = ProposalStore.open(tmp_path / "s")
    store.verify()
    assert store[1].shape == store[2].shape == (0, 4)


@given(
    st.integers(1, 8191),
    st.integers(1, 8191),
    st.lists(st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 4), max_size=20),
)
def test_boxes_stay_in_the_image_and_move_by_less_than_a_unit(width: int, height: int, rows: list) -> None:
    boxes = np.array(rows, np.float32).reshape(-1, 4)
    scale = finest_scale(Images.of([0], [width], [height]))
    found = encode(boxes, (width, height), scale) / scale
    assert scale == 8 and (found[:, 2:] > found[:, :2]).all() and (found >= 0).all()
    assert (found <= [width, height, width, height]).all()
    clipped = np.clip(boxes, 0, [width, height, width, height])
    wide = clipped[(clipped[:, 2:] - clipped[:, :2] > 1 / scale).all(1)]
    assert all(np.abs(found - row).max(1).min() <= 0.5 / scale for row in wide)


def test_scales() -> None:
    longest = (1, 8191, 8192, 16383, 16384, 32768, 65535)
    assert [finest_scale(Images.of(["a"], [9], [side])) for side in longest] == [8, 8, 4, 4, 2, 1, 1]
    with pytest.raises(DataError, match="image 'a' is 65536 x 9"):
        finest_scale(Images.of(["a"], [65536], [9]))
    with pytest.raises(DataError, match="far larger than its annotation"):
        encode([[0, 0, 1, 1]], (9000, 10), 8)


@pytest.mark.parametrize("boxes", [[[0, 0, np.nan, 1]], [[0, 0, np.inf, 1]], [[0, 0, 1]], [0, 0, 1, 1]])
def test_boxes_that_are_none(boxes: list) -> None:
    with pytest.raises(DataError, match="finite numbers of shape"):
        encode(boxes, (10, 10), 8)


@pytest.mark.parametrize(
    ("ids", "message"), [(["a", "a"], "twice"), ([0.5, 1], "numbers or all strings"), ([1, 2, 3], "3 image ids, 2")]
)
def test_images_that_are_none(ids: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Images.of(ids, [1, 1], [1, 1])


def test_pickled_it_is_a_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    pickled = pickle.dumps(ProposalStore.open(path.name))
    assert len(pickled) < 300
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(pickle.loads(pickled)["b"], BOXES[0])


# -- what does not fit ---------------------------------------------------------------------------


def test_a_store_that_fits(path: Path) -> None:
    store = ProposalStore.open(path)
    store.check(*IMAGES)
    store.check(["a"], [30], [40])  # more in the store than in the data set
    store.check([], [], [])


@pytest.mark.parametrize(
    ("ids", "widths", "message"),
    [
        (
            ["a", "b", "x", "y"],
            [30, 40, 1, 1],
            r"4 images: 2 have none, 0 are of another size \(such as 'x'\), and 2 of",
        ),
        (["a", "b"], [31, 40], r"0 have none, 1 are of another size \(such as 'a'\), and 2 of the store's 4"),
        ([1, 2], [30, 40], r"2 images: 2 have none, .* and 4 of the store's 4"),
        (["a", "q"], [31, 40], r"1 have none, 1 are of another size \(such as 'q' and 'a'\), and 3 of"),
    ],
)
def test_a_store_that_does_not_fit(path: Path, ids: list, widths: list, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        ProposalStore.open(path).check(ids, widths, [40, 30, 1, 1][: len(ids)])
    assert str(path) in str(error.value) and "detkit propose" in str(error.value)


# -- files that are none -------------------------------------------------------------------------


def test_cut_short_anywhere(path: Path, tmp_path: Path) -> None:
    whole, cut = path.read_bytes(), tmp_path / "cut"
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cut short") as error:
            ProposalStore.open(cut)
        assert str(cut) in str(error.value) and "detkit propose" in str(error.value)
    cut.write_bytes(whole + b"\0")
    with pytest.raises(DataError, match="too long"):
        ProposalStore.open(cut)


def test_a_flipped_bit_anywhere(path: Path, tmp_path: Path) -> None:
    whole, bad = bytearray(path.read_bytes()), tmp_path / "bad"
    silent = 0
    for place in range(0, len(whole), 3):
        whole[place] ^= 4
        bad.write_bytes(whole)
        try:
            store = ProposalStore.open(bad)
            store.verify()
            silent += 1
            assert all((store[i] == b).all() for i, b in zip(store, BOXES, strict=True))
        except DataError as error:
            assert str(bad) in str(error) and "delete it" in str(error)
        whole[place] ^= 4
    assert silent < 64 / 3 + 1  # the padding between header and arrays


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip", b"\x93NUMPY", b"\0" * 500, b"detkit-proposalz" + b"x" * 99])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(DataError, match=r"other: is no store of proposals.*delete it"):
        ProposalStore.open(tmp_path / "other")


def test_no_file_a_folder_and_a_newer_version(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"none: no such store .*detkit propose"):
        ProposalStore.open(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read"):
        ProposalStore.open(tmp_path)
    monkeypatch.setattr("detkit.proposals.store_writer.VERSION", 2)
    write_store(path, IMAGES, BOXES, "x", {})
    with pytest.raises(DataError, match="version 2, this detkit reads version 1"):
        ProposalStore.open(path)


# -- computing it piece by piece -----------------------------------------------------------------


def computation(folder: Path, **parameters: object) -> Computation:
    return Computation.of(folder / "s.proposals", IMAGES, "x", {"k": (1, 2), **parameters})


def fill(journal: Journal, rows: list[int]) -> None:
    for row in rows:
        journal.append(row, BOXES[row], (int(IMAGES.widths[row]), int(IMAGES.heights[row])))


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The bytes of a store that one process computed in order."""
    job = computation(tmp_path / "whole")
    with Journal(job) as journal:
        fill(journal, [0, 1, 2, 3])
        merge(job)
    assert [p.name for p in job.path.parent.iterdir()] == ["s.proposals"]
    return job.path.read_bytes()


def test_a_journal_gives_the_store_that_is_written_at_once(tmp_path: Path, whole: bytes) -> None:
    write_store(tmp_path / "at_once", IMAGES, BOXES, "x", {"k": [1, 2]})
    assert (tmp_path / "at_once").read_bytes() == whole


def test_order_and_processes_do_not_matter(tmp_path: Path, whole: bytes) -> None:
    job = computation(tmp_path)
    with Journal(job, rank=0) as first, Journal(job, rank=12) as second:
        assert first.todo(0, 2) == [0, 2] and second.todo(1, 2) == [1, 3]
        fill(second, [3, 1])
        fill(first, [2, 0])
        merge(job)
    assert job.path.read_bytes() == whole and not job.parts()


def test_cut_at_any_byte_it_goes_on(tmp_path: Path, whole: bytes) -> None:
    job = computation(tmp_path)
    ends = []
    with Journal(job) as journal:
        ends.append(journal.path.stat().st_size)
        for row in (2, 0, 3):
            fill(journal, [row])
            ends.append(journal.path.stat().st_size)
    part, order = journal.path.read_bytes(), [2, 0, 3]
    for length in range(len(part) + 1):
        journal.path.write_bytes(part[:length])
        kept = order[: max(sum(end <= length for end in ends) - 1, 0)]
        with Journal(job) as journal:
            assert np.flatnonzero(journal.done).tolist() == sorted(kept)
            assert journal.todo() == [row for row in range(4) if row not in kept]
            fill(journal, journal.todo())
            merge(job)
        assert job.path.read_bytes() == whole
        job.path.unlink()


def test_a_damaged_record_and_what_follows_is_computed_again(tmp_path: Path, whole: bytes) -> None:
    job = computation(tmp_path)
    with Journal(job) as journal:
        fill(journal, [0, 1])
        place = journal.path.stat().st_size + 20
        fill(journal, [2, 3])
    content = bytearray(journal.path.read_bytes())
    content[place] ^= 1
    journal.path.write_bytes(content)
    with Journal(job) as journal:
        assert journal.todo() == [2, 3]
        fill(journal, [3, 2])
        merge(job)
    assert job.path.read_bytes() == whole


def test_parts_of_another_number_of_processes_are_taken_over(tmp_path: Path, whole: bytes) -> None:
    job = computation(tmp_path)
    for rank, row in ((0, 0), (1, 1), (2, 2)):
        with Journal(job, rank) as journal:
            fill(journal, [row])
    with Journal(job) as journal:
        assert journal.todo() == [3]
        with pytest.raises(DataError, match="1 of 4 images have no proposals yet"):
            merge(job)
        fill(journal, [3])
        merge(job)
    assert job.path.read_bytes() == whole and not job.parts()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda job: job._replace(parameters={"k": 3}), r"parameters \{'k': 3\} instead of \{'k': \[1, 2\]\}"),
        (lambda job: job._replace(method="y"), r"\(y\)"),
        (lambda job: job._replace(images=Images.of(IMAGES.ids, [9] * 4, [9] * 4)), "other images"),
    ],
)
def test_a_part_of_another_computation(tmp_path: Path, other: object, message: str) -> None:
    job = computation(tmp_path)
    for rank in (0, 3):
        with Journal(other(job), rank=rank) as journal:
            fill(journal, [3])
        before = journal.path.read_bytes()
        with pytest.raises(DataError, match=message) as error:
            Journal(job)
        assert str(journal.path) in str(error.value) and "delete it" in str(error.value)
        assert journal.path.read_bytes() == before
        job.remove_parts()
    journal.path.write_bytes(b"something")
    with pytest.raises(DataError, match="something else"):
        Journal(job, rank=3)


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written there"):
        Journal(computation(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be written"):
        write_store(tmp_path / "file" / "s", IMAGES, BOXES, "x", {})


def test_boxes_that_are_none_name_the_image(tmp_path: Path) -> None:
    with Journal(computation(tmp_path)) as journal, pytest.raises(DataError, match=r"image 'a': boxes of shape \(3,\)"):
        journal.append(1, [1, 2, 3], (30, 40))


def test_who_comes_second_waits_and_starts_afresh(tmp_path: Path, whole: bytes) -> None:
    job, waited, found = computation(tmp_path), threading.Event(), []

    def second() -> None:
        with Journal(job, on_wait=waited.set) as journal:
            found.append((job.path.exists(), journal.todo()))

    with Journal(job) as journal:
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(20)
        fill(journal, [0, 1, 2, 3])
        merge(job)
    thread.join(20)
    assert found == [(True, [0, 1, 2, 3])] and job.path.read_bytes() == whole


def _compute(folder: Path, slow: int, rows: Connection) -> None:
    job = computation(folder)
    with Journal(job) as journal:
        for row in journal.todo():
            fill(journal, [row])
            rows.send(row)
            if row == slow:
                time.sleep(600)
        merge(job)
    rows.send(None)


def test_what_is_being_written_is_one_processs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, age in ((".s.other.7.new", 60), (".s.gone.8.new", 2 * 86400), (".t.gone.8.new", 2 * 86400)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    renamed: list[str] = []
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda a, b: renamed.append(Path(a).name) or replace(a, b))
    for host, pid in (("one", 5), ("two", 5), ("two", 6)):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        write_store(tmp_path / "s", IMAGES, BOXES, "x", {})
    assert renamed == [".s.one.5.new", ".s.two.5.new", ".s.two.6.new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".s.other.7.new", ".t.gone.8.new", "s"]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_killed_half_way(tmp_path: Path, whole: bytes) -> None:
    job, rows = computation(tmp_path), []
    context = multiprocessing.get_context("fork")
    for slow in (1, 99):
        here, there = context.Pipe()
        process = context.Process(target=_compute, args=(tmp_path, slow, there))
        process.start()
        while (row := here.recv()) is not None:
            rows.append(row)
            if row == slow:
                process.kill()
                break
        process.join(20)
    assert process.exitcode == 0 and rows == [0, 1, 2, 3]
    assert job.path.read_bytes() == whole and not job.parts()


def test_workers_read_side_by_side(path: Path) -> None:
    store, wrong = ProposalStore.open(path), []

    def read() -> None:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            wrong.extend(i for i, b in zip(store, BOXES, strict=True) if not np.array_equal(store[i], b))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
