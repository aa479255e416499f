"""What is refused before it is opened, and names that must stay below their folder."""

from __future__ import annotations

import gzip
import os
import socket
from pathlib import Path

import pytest

from detkit.data import input_files
from detkit.data.input_files import is_inside, list_folder, read_bytes, short_repr, walk
from detkit.errors import DataError


def test_plain_and_packed_files_are_read_without_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"[]", b"\xef\xbb\xbf[]", gzip.compress(b"[]"), gzip.compress(b"[") + gzip.compress(b"]")):
        path.write_bytes(content)
        assert read_bytes(path) == b"[]"
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(tmp_path / "link") == b"[]"


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe would block for ever, and /dev/zero would fill the memory."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "zero", "socket"):
            with pytest.raises(DataError, match=f"^{name}: is a pipe, a socket or a device; give a regular file"):
                read_bytes(name)
    with pytest.raises(DataError, match=r"is a folder; give a file"):
        read_bytes(tmp_path)


def test_names_that_cannot_be_looked_up(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("nothing", "file/x"):
        with pytest.raises(DataError, match=f"{name}: annotation does not exist"):
            read_bytes(tmp_path / name, "annotation")
    for name in ("a\0b", "x" * 5000, "loop"):
        with pytest.raises(DataError, match="cannot be opened") as caught:
            read_bytes(tmp_path / name)
        assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_damaged_and_growing_gzip_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(b'{"images": [], "annotations": []}' * 9)
    damaged = bytearray(packed)
    damaged[20] ^= 255
    path = tmp_path / "x.json.gz"
    for content in (packed[:-9], bytes(damaged), packed[:12]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.json\.gz: cannot be read"):
            read_bytes(path)
    monkeypatch.setattr(input_files, "SMALL", 1000)
    path.write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(DataError, match=r"x\.json\.gz: unpacks to more than 10[0-9],[0-9]{3} bytes"):
        read_bytes(path)


def test_folders(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).touch()
    assert list_folder(tmp_path) == ["a", "b"]
    with pytest.raises(DataError, match="nowhere: folder does not exist"):
        list_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a': folder cannot be read"):
        list_folder(tmp_path / "a")


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a").touch()
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "b").touch()
    (root / "link").symlink_to(tmp_path / "far")
    for name in ("up", "again"):
        (root / "inner" / name).symlink_to(root)
    assert sorted(walk(str(root))) == [str(root / "inner" / "b"), str(root / "link" / "a")]


@pytest.mark.parametrize("name", ["a", "a.jpg", "train/a", "a..b", ".hidden", "a b"])
def test_names_inside(name: str) -> None:
    assert is_inside(name)


@pytest.mark.parametrize("name", ["", "..", "../a", "a/../../b", "/a", "\\a", "..\\a", "C:\\a", "C:a", "a\0"])
def test_names_that_leave_the_folder(name: str) -> None:
    assert not is_inside(name)


def test_short_repr() -> None:
    assert short_repr("a\n\x1b[31mb") == r"'a\n\x1b[31mb'"
    assert len(short_repr("x" * 10**6)) < 250 and len(short_repr(10**1000)) < 250
