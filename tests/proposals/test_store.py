"""The store of proposals: what is read back, what is refused, and what survives a kill and a full disk."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import sqlite3
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detkit.errors import DataError
from detkit.proposals import store_writer
from detkit.proposals.store import Images, ProposalStore, checksum_of, encode
from detkit.proposals.store_writer import StoreWriter
from tests.proposals.stores import fill, write_store

IMAGES = Images.of(["b", "a", "ünd/c.jpg", "\udcff"], [40, 30, 8000, 1], [30, 40, 6000, 1])
BOXES = [
    np.array([[0, 0, 40, 30], [1.125, 2, 3, 29.875]], np.float32),
    np.zeros((0, 4), np.float32),
    np.array([[7999, 5999, 8000, 6000], [0.125, 0.25, 0.375, 0.5], [0, 0, 8000, 6000]], np.float32),
    np.array([[0, 0, 1, 1]], np.float32),
]
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="no fork")


def writer(folder: Path, rank: int = 0, images: Images = IMAGES, k: Any = (1, 2), **options: Any) -> StoreWriter:
    return StoreWriter(folder / "s.proposals", images, options.pop("method", "x.Y"), {"k": k}, rank, **options)


def boxes(*rows: int) -> dict[int, np.ndarray]:
    return {row: BOXES[row] for row in rows}


def assert_whole(store: ProposalStore | None) -> None:
    assert store is not None and list(store) == IMAGES.ids.tolist()
    store.verify()
    for image_id, expected in zip(store, BOXES, strict=True):
        np.testing.assert_array_equal(store[image_id], expected)
    assert os.listdir(store.path.parent) == [store.path.name]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(writer(tmp_path / "some"), boxes(0, 1, 2, 3), finish=True)
    return tmp_path / "some" / "s.proposals"


def test_what_is_written_is_read(path: Path) -> None:
    store = ProposalStore(path)
    assert_whole(store)
    assert len(store) == 4 and store.counts.tolist() == [2, 0, 3, 1]
    assert all(store[image_id].dtype == np.float32 and image_id in store for image_id in store)
    assert store.images.sizes.tolist() == [[40, 30], [30, 40], [8000, 6000], [1, 1]]
    assert (store.method, store.parameters) == ("x.Y", {"k": [1, 2]})
    store.check(*IMAGES)
    store.check(["a"], [30], [40])  # more in the store than in the data set
    store.check([], [], [])
    store["b"][:] = 7  # a copy: the next reader is not to see it
    np.testing.assert_array_equal(store["b"], BOXES[0])


def test_ids_keep_their_type_and_order(path: Path, tmp_path: Path) -> None:
    store = ProposalStore(path)
    for wrong in ("", "c", "z" * 50, 1, None, 2.0, ("b",)):
        assert wrong not in store
        with pytest.raises(KeyError):
            store[wrong]
    numbers = write_store(tmp_path / "n", [30, 10, 20], [[[0, 0, i, i]] for i in (3, 1, 2)])
    assert [numbers[i][0, 2] for i in (10, 20, 30)] == [1, 2, 3] and list(numbers) == [30, 10, 20]
    assert numbers[np.int64(20)][0, 2] == 2 and type(next(iter(numbers))) is int
    assert 15 not in numbers and "10" not in numbers and 2**70 not in [*numbers]
    none = write_store(tmp_path / "none", [1, 2], [[], np.zeros((0, 4))])
    none.verify()
    assert none[1].shape == none[2].shape == (0, 4)


@given(
    st.integers(1, 8191),
    st.integers(1, 8191),
    st.lists(st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 4), max_size=20),
)
def test_boxes_stay_in_the_image_and_move_by_less_than_a_unit(width: int, height: int, rows: list) -> None:
    given_boxes = np.array(rows, np.float32).reshape(-1, 4)
    scale, units = encode(given_boxes, (width, height))
    found = np.frombuffer(units, "<u2").reshape(-1, 4) / scale
    assert scale == 8 and (found[:, 2:] > found[:, :2]).all() and (found >= 0).all()
    assert (found <= [width, height, width, height]).all()
    clipped = np.clip(given_boxes, 0, [width, height, width, height])
    wide = clipped[(clipped[:, 2:] - clipped[:, :2] > 1 / scale).all(1)]
    assert all(np.abs(found - row).max(1).min() <= 0.5 / scale for row in wide)


def test_large_images_have_larger_units() -> None:
    longest = (1, 8191, 8192, 16383, 16384, 32768, 65535)
    assert [encode([], (9, side))[0] for side in longest] == [8, 8, 4, 4, 2, 1, 1]
    with pytest.raises(DataError, match="is 65536 x 9; proposals are kept for images of up to 65535"):
        encode([[0, 0, 1, 1]], (65536, 9))


@pytest.mark.parametrize("wrong", [[[0, 0, np.nan, 1]], [[0, 0, np.inf, 1]], [[0, 0, 1]], [0, 0, 1, 1]])
def test_boxes_that_are_none_name_the_image(tmp_path: Path, wrong: list) -> None:
    with pytest.raises(DataError, match=r"image 'a': boxes of shape .* wanted are finite numbers of shape \(P, 4\)"):
        fill(writer(tmp_path), {1: wrong})


@pytest.mark.parametrize(
    ("ids", "message"), [(["a", "a"], "twice"), ([0.5, 1], "numbers or all strings"), ([1, 2, 3], "3 image ids, 2")]
)
def test_images_that_are_none(ids: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Images.of(ids, [1, 1], [1, 1])


# -- many readers ------------------------------------------------------------------------------


def test_pickled_it_is_a_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    pickled = pickle.dumps(ProposalStore(path.name))
    assert len(pickled) < 300
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(pickle.loads(pickled)["b"], BOXES[0])


@needs_fork
def test_threads_and_forks_read_side_by_side(path: Path) -> None:
    store, wrong = ProposalStore(path), []
    assert len(store["b"]) == 2  # the connection of this process is open when the others begin

    def read() -> None:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            wrong.extend(i for i, b in zip(IMAGES.ids.tolist(), BOXES, strict=True) if not np.array_equal(store[i], b))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for image_id, expected in zip(IMAGES.ids.tolist(), BOXES, strict=True):
            boxes = pool.apply_async(store.__getitem__, (image_id,)).get(timeout=60)
            np.testing.assert_array_equal(boxes, expected)
    for thread in threads:
        thread.join()
    assert not wrong


@needs_fork
def test_a_fork_waits_until_no_thread_is_in_sqlite(path: Path) -> None:
    """A child that inherits one of SQLite's mutexes locked would never end."""
    store, inside, left = ProposalStore(path), threading.Event(), []

    def read() -> None:
        with store._reading():
            inside.set()
            time.sleep(0.3)
            left.append(True)

    thread = threading.Thread(target=read)
    thread.start()
    assert inside.wait(60)
    child = multiprocessing.get_context("fork").Process(target=lambda: store["b"])
    child.start()
    assert left
    child.join(60)
    assert child.exitcode == 0
    thread.join()


def test_a_read_only_folder(path: Path) -> None:
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        assert_whole(ProposalStore(path))
    finally:
        path.parent.chmod(0o755)


def test_who_reads_a_store_goes_on_while_it_is_made_again(path: Path) -> None:
    store = ProposalStore(path)
    fill(writer(path.parent), {row: [] for row in range(4)}, finish=True)
    assert_whole(store)
    assert ProposalStore(path).counts.sum() == 0


# -- what does not fit ---------------------------------------------------------------------------


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
        ProposalStore(path).check(ids, widths, [40, 30, 1, 1][: len(ids)])
    assert str(path) in str(error.value) and "detkit propose" in str(error.value)


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_damage_anywhere_is_noticed(path: Path, tmp_path: Path, how: str) -> None:
    whole, bad = path.read_bytes(), tmp_path / "bad"
    refused = 0
    for place in range(0, len(whole), 41):
        content = bytearray(whole)
        content[place] ^= 4
        bad.write_bytes(whole[:place] if how == "cut" else content)
        try:
            store = ProposalStore(bad)
            store.verify()
            assert [*store] == IMAGES.ids.tolist()  # the bit is in an unused part of the file
            assert all((store[i] == b).all() for i, b in zip(store, BOXES, strict=True))
        except DataError as error:
            refused += 1
            assert str(bad) in str(error) and "delete it" in str(error)
    assert refused == len(range(0, len(whole), 41)) if how == "cut" else refused > 5


def test_damaged_boxes_are_noticed_when_they_are_read(path: Path) -> None:
    content = path.read_bytes()
    at = content.index(np.array([8, 16, 24, 239], "<u2").tobytes()[2:])  # the second box of "b"
    path.write_bytes(content[:at] + b"\x11" + content[at + 1 :])
    store = ProposalStore(path)
    assert len(store["ünd/c.jpg"]) == 3
    with pytest.raises(DataError, match=r"s\.proposals: is damaged at image b'b'; delete it"):
        store["b"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x93NUMPY", b"\0" * 500, b"SQLite format 3\0" * 99])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(DataError, match=r"other: is no store of proposals.*delete it"):
        ProposalStore(tmp_path / "other")


def test_no_file_a_folder_another_database_and_a_newer_version(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such store .*detkit propose"):
        ProposalStore(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read"):
        ProposalStore(tmp_path)
    for file, statement, message in (
        (tmp_path / "other", "CREATE TABLE notes (text)", "is no store of proposals"),
        (path, "UPDATE meta SET version = 2", "version 2, this detkit reads version 1"),
    ):
        with sqlite3.connect(file) as connection:
            connection.execute(statement)
        connection.close()
        with pytest.raises(DataError, match=message):
            ProposalStore(file)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[("meta.images", value) for value in (2**62, -1, None, "x", b"", 3)],
        *[("meta.method", value) for value in (None, 5)],
        *[("meta.parameters", value) for value in ("[1]", "null", "NaN", None, b"\xff", "[" * 10**5)],
        *[("images.scale", value) for value in (0, -1, 1e300, None, "8", b"8")],
        *[("images.boxes", value) for value in (5, None, "text", bytes(7))],
        *[("images.image_id", value) for value in (b"\xff", "b", 5, 1.5)],
        *[("images.width", value) for value in (10**12, None, "x", -float("inf"))],
        *[("images.position", value) for value in (7, None)],
    ],
)
def test_values_of_another_kind(path: Path, column: str, value: Any) -> None:
    table, name = column.split(".")
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {table} SET {name} = ? WHERE rowid = 1", (value,))
        (*meta, _), *_ = connection.execute("SELECT * FROM meta").fetchall()
        connection.execute("UPDATE meta SET checksum = ?", (checksum_of(*meta),))
        for key, *row, boxes in connection.execute("SELECT image_id, width, height, scale, boxes FROM images"):
            with suppress(TypeError):  # boxes that are no bytes
                checksum = checksum_of(key, *row, boxes=boxes)
                connection.execute("UPDATE images SET checksum = ? WHERE image_id = ?", (checksum, key))
    connection.close()
    with pytest.raises(DataError, match=r"s\.proposals: .*(delete it|cannot be read)"):
        ProposalStore(path).verify()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: cannot be read"):
        ProposalStore(tmp_path / "pipe")


# -- computing it piece by piece -----------------------------------------------------------------


def test_order_and_processes_do_not_matter(tmp_path: Path) -> None:
    fill(writer(tmp_path, rank=12), boxes(3, 1))
    first, second = writer(tmp_path, rank=0), writer(tmp_path, rank=12)
    with first:
        assert first.todo() == [0, 2]
        fill(second, boxes(0))
        first.add(2, BOXES[2], (8000, 6000))
        with pytest.raises(DataError, match="1 of 4 images have no proposals yet"):
            first.finish()
        first.merge_parts()
        store = first.finish()
    assert_whole(store)


def test_a_list_that_has_changed_is_made_whole(tmp_path: Path) -> None:
    size = {"widths": [9] * 3, "heights": [9] * 3}
    for ids, new in (("bc", [0, 1]), ("abd", [0, 2])):
        images = Images.of(list(ids), *(each[: len(ids)] for each in size.values()))
        with writer(tmp_path, images=images, grow=True) as grown:
            assert grown.todo() == new
            for index in new:
                grown.add(index, [[0, 0, ord(ids[index]) - 90, 9]], (9, 9))
            store = grown.finish()
    assert list(store) == ["a", "b", "d", "c"] and [len(store[i]) for i in "abcd"] == [1] * 4
    store.verify()
    images = Images.of(["a", "b"], [9, 8], [9, 9])
    with writer(tmp_path, images=images, grow=True) as grown:
        assert grown.todo() == [1]  # of another size now


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"k": 3}, r"parameters \{\"k\": 3\} instead of \{\"k\": \[1, 2\]\}"),
        ({"method": "z.Y"}, r"\(z\.Y\)"),
        ({"images": Images.of(IMAGES.ids, [9] * 4, [9] * 4)}, "other images"),
        ({"images": Images.of([*IMAGES.ids[:3], "z"], [1] * 4, [1] * 4)}, "other images"),
    ],
)
@pytest.mark.parametrize("rank", [0, 3])
def test_a_part_of_another_computation(tmp_path: Path, other: dict[str, Any], message: str, rank: int) -> None:
    fill(writer(tmp_path, rank=rank, **other), boxes(3))
    part = tmp_path / f".s.proposals.part{rank}"
    with pytest.raises(DataError, match=message) as error:
        writer(tmp_path)
    assert str(part) in str(error.value) and "delete it" in str(error.value)
    with writer(tmp_path, rank=rank, **other) as opened:
        assert len(opened.todo()) == 3
    part.write_bytes(b"something that is no database" * 99)
    with pytest.raises(DataError, match=r"part\d: is damaged, or no part .*delete it"):
        writer(tmp_path)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written .*choose another folder"):
        writer(tmp_path / "file")


def test_who_comes_second_waits_and_starts_afresh(tmp_path: Path) -> None:
    waited, found = threading.Event(), []

    def second() -> None:
        with writer(tmp_path, on_wait=waited.set) as late:
            found.append(((tmp_path / "s.proposals").exists(), late.todo()))

    with writer(tmp_path) as first:
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(20)
        for row in range(4):
            first.add(row, BOXES[row], tuple(IMAGES.sizes[row].tolist()))
        store = first.finish()
    thread.join(20)
    assert found == [(True, [0, 1, 2, 3])]
    assert_whole(store)


def _compute(folder: Path, last: int, rows: Connection) -> None:
    """Compute in another process; after the row `last` it hangs, with what came after a commit in its transaction."""
    with writer(folder) as opened:
        for row in opened.todo():
            opened.add(row, BOXES[row], tuple(IMAGES.sizes[row].tolist()))
            rows.send(row)
            if row == last:
                opened.commit()
            elif row == last + 1:
                time.sleep(600)
        opened.finish()
    rows.send(None)


@needs_fork
def test_killed_half_way_it_keeps_what_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "COMMIT_INTERVAL", 1e9)
    rows, context = [], multiprocessing.get_context("fork")
    for last in (1, 99):
        here, there = context.Pipe()
        process = context.Process(target=_compute, args=(tmp_path, last, there))
        process.start()
        while (row := here.recv()) is not None:
            rows.append(row)
            if row == last + 1:
                process.kill()
                break
        process.join(20)
    assert process.exitcode == 0 and rows == [0, 1, 2, 2, 3]
    assert_whole(ProposalStore(tmp_path / "s.proposals"))


def test_cut_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    """Copies of part and journal, taken within a transaction, are what a killed process leaves."""
    with writer(tmp_path / "one") as opened:
        opened.add(2, BOXES[2], (8000, 6000))
        opened.commit()
        opened._connection.execute("PRAGMA cache_size = 1")  # pages are written before the transaction ends
        for row in (0, 3):
            opened.add(row, np.tile(BOXES[row], (4000, 1)), tuple(IMAGES.sizes[row].tolist()))
        shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert {".s.proposals.part0", ".s.proposals.part0-journal"} < set(os.listdir(tmp_path / "two"))
    with writer(tmp_path / "two") as opened:
        assert opened.todo() == [0, 1, 3]
        for row in opened.todo():
            opened.add(row, BOXES[row], tuple(IMAGES.sizes[row].tolist()))
        store = opened.finish()
    assert_whole(store)


def test_a_full_disk_keeps_what_was_committed_and_says_how_to_go_on(tmp_path: Path) -> None:
    many = Images.of(list(range(100)), [100] * 100, [100] * 100)
    big = np.tile([[0, 0, 50, 50]], (500, 1))
    with writer(tmp_path, images=many) as opened:
        opened._connection.execute("PRAGMA max_page_count = 40")
        with pytest.raises(DataError, match=r"disk is full; .* MB are free there.*kept: make room or choose"):
            for index in range(100):
                opened.add(index, big, (100, 100))
                opened.commit()
    with writer(tmp_path, images=many) as opened:
        kept = 100 - len(opened.todo())
        assert 20 < kept < 40
        for index in opened.todo():
            opened.add(index, big, (100, 100))
        store = opened.finish()
    store.verify()
    assert (store.counts == 500).all()
