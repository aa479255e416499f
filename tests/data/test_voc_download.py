from __future__ import annotations

import functools
import hashlib
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision.datasets import voc as torchvision_voc

from detkit.data import VOC
from detkit.data.voc import VOC_CLASSES
from detkit.data.voc_download import archives_of
from detkit.data.voc_xml import VOCObject
from detkit.errors import DataError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def archive(make_voc: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small archive in the place of VOC2007's, served by this machine."""
    images = {"000001": [VOCObject("cat", (1, 2, 20, 22), False)], "000002": []}
    sets = {"train": ["000001"], "val": ["000002"], "trainval": ["000001", "000002"]}
    folder = make_voc(images, sets, "made/VOCdevkit/VOC2007")
    path = tmp_path / "small.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder, "VOCdevkit/VOC2007")
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    entry = dict(torchvision_voc.DATASET_YEAR_DICT["2007"])
    entry |= {
        "url": f"http://127.0.0.1:{server.server_port}/small.tar",
        "md5": hashlib.md5(path.read_bytes()).hexdigest(),
    }
    monkeypatch.setitem(torchvision_voc.DATASET_YEAR_DICT, "2007", entry)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield path
    server.shutdown()
    server.server_close()


def open_voc(path: Path) -> VOC:
    return VOC(str(path), train="2007/train", val="2007/val", test=None, download=True, num_workers=0)


@pytest.mark.parametrize("name", ["data", "data/VOCdevkit"])
def test_fetched_once_and_used(archive: Path, tmp_path: Path, name: str) -> None:
    data = open_voc(tmp_path / name)
    assert data.class_names == list(VOC_CLASSES)  # known before anything is fetched
    assert not (tmp_path / "data").exists()
    data.setup("fit")
    assert [len(batch) for batch in data.train_dataloader()] == [1]
    assert not list((tmp_path / "data").glob(".voc-*"))
    archive.unlink()
    open_voc(tmp_path / name).setup("fit")


def test_stopped_while_unpacking_is_unpacked_again(archive: Path, tmp_path: Path) -> None:
    open_voc(tmp_path / "data").prepare_data()
    image = tmp_path / "data" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000002.png"
    image.unlink()
    (tmp_path / "data" / ".voc-2007.unfinished").touch()
    open_voc(tmp_path / "data").prepare_data()
    assert image.is_file()


def test_corrupt_archive(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-2000] + b"x" * 2000)
    data = open_voc(tmp_path / "data")
    with pytest.raises(DataError, match=r"small\.tar: cannot be downloaded, or is corrupt"):
        data.prepare_data()
    assert not (tmp_path / "data" / "VOCdevkit").exists()


def test_no_connection(archive: Path, tmp_path: Path) -> None:
    archive.unlink()
    with pytest.raises(DataError, match="cannot be downloaded"):
        open_voc(tmp_path / "data").prepare_data()


def test_which_archives() -> None:
    assert archives_of(["2007/trainval+2012/trainval", "2007/test"]) == ["2007", "2007-test", "2012"]
    assert archives_of(["VOC2007/cat_test"]) == ["2007-test"]
    with pytest.raises(DataError, match="name the year"):
        archives_of(["train"])
    with pytest.raises(DataError, match="never published"):
        archives_of(["2012/test"])
