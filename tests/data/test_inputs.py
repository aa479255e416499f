from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.data import ImageFolder
from detkit.data.inputs import find_inputs
from detkit.errors import DataError

WriteImage = Callable[..., Path]


def ids(*inputs: str, every: int = 1) -> list[str]:
    return [each.image_id for each in find_inputs(list(inputs), every).images]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clip(here: Path) -> Path:
    """A video of 25 frames; frame i is grey of 10 * i."""
    import cv2

    path = here / "clip.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(25):
        video.write(np.full((48, 64, 3), 10 * i, np.uint8))
    video.release()
    return path


def test_what_opens_as_an_image_is_read_and_the_rest_is_counted(here: Path, write_image: WriteImage) -> None:
    for name in ("a.jpg", "B.JPEG", "c.png", "deep er/d.gif"):
        write_image(here / "in" / name)
    write_image(here / "in/jfif.jpg").rename(here / "in/photo.jfif")
    write_image(here / "in/bare.png").rename(here / "in/bare")
    for name in ("notes.txt", "more.txt", "Thumbs.db", "._a.jpg", "none"):
        (here / "in" / name).write_text("x")
    (here / "real").mkdir()
    write_image(here / "real/e.jpg")
    (here / "in/linked").symlink_to(here / "real")
    found = find_inputs("in")
    names = ["B.JPEG", "a.jpg", "bare", "c.png", "deep er/d.gif", "linked/e.jpg", "photo.jfif"]
    assert [each.image_id for each in found.images] == names
    expected = (
        "not read: 1 .db (Thumbs.db); 2 .txt (more.txt, notes.txt); 1 hidden (._a.jpg); 1 without a suffix (none)"
    )
    assert found.note() == expected


def test_several_inputs_have_the_ids_of_their_common_folder(here: Path, write_image: WriteImage) -> None:
    for name in ("one/1.jpg", "two/1.jpg", "two/deep/2.png"):
        write_image(here / name)
    assert ids("two", "one/1.jpg") == ["two/1.jpg", "two/deep/2.png", "one/1.jpg"]
    assert ids("one/1.jpg") == ids("one") == ["1.jpg"]
    assert ids("two/**/*.png") == ["2.png"] and ids("*/1.jpg") == ["one/1.jpg", "two/1.jpg"]
    again = find_inputs(["one", "one/1.jpg"])
    assert [each.image_id for each in again.images] == ["1.jpg"] and "1 named twice" in again.note()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_of_files(here: Path, write_image: WriteImage, encoding: str) -> None:
    for name in ("lists/a b.jpg", "other/ü.png"):
        write_image(here / name)
    lines = ["# two images", "a b.jpg", "", f"{here}/other/ü.png", "..\\other\\ü.png"]
    (here / "lists/list.txt").write_text("\r\n".join(lines), encoding=encoding)
    assert ids("lists/list.txt") == ["lists/a b.jpg", "other/ü.png"]
    (here / "lists/list.txt").write_text("other/ü.png\nlost.png", encoding=encoding)  # to the working directory
    data = ImageFolder("lists/list.txt", num_workers=0)
    assert [each.image_id for each in data.inputs.images] == ["other/ü.png", "lists/lost.png"]
    with pytest.raises(DataError, match=r"lost\.png: image file does not exist"):
        data.images[1]


def test_frames_of_a_video(clip: Path) -> None:
    assert ids(str(clip), every=10) == [f"clip.avi/{i:06d}" for i in (0, 10, 20)]
    images = ImageFolder(str(clip), every=5, num_workers=0).images
    for index in (0, 2, 4, 1):  # backwards, too
        assert (images[index]["image"].float().mean() - 50 * index).abs() < 3
        assert images[index]["image"].shape == (3, 48, 64) and images[index]["image"].dtype == torch.uint8


def test_a_loader_reads_the_frames_of_a_video(clip: Path) -> None:
    data = ImageFolder(str(clip), every=5, num_workers=2)  # which would wait forever for OpenCV
    samples = [sample for batch in data.predict_dataloader() for sample in batch]
    assert [round(sample["image"].float().mean().item() / 50) for sample in samples] == [0, 1, 2, 3, 4]


def test_what_is_no_input(here: Path, write_image: WriteImage) -> None:
    write_image(here / "a.jpg")
    (here / "empty.mp4").write_bytes(b"no video")
    (here / "list.txt").write_text("x.jpg\ny.jpg")
    (here / "none.txt").write_text("\n")
    (here / "doc.pdf").write_text("%PDF")
    (here / "folder").mkdir()
    (here / "folder/doc.pdf").write_text("%PDF")
    os.mkfifo(here / "pipe")
    for given, message in (
        ("nowhere", "nowhere: no such file or folder"),
        ("*.png", r"\*\.png: no image fits this pattern"),
        ("empty.mp4", "empty.mp4: no frame of this video can be read"),
        ("list.txt", "list.txt: none of its 2 files is there, such as x.jpg"),
        ("none.txt", "none.txt: names no file"),
        ("doc.pdf", "doc.pdf: not an image file; give a folder"),
        ("folder", r"no image below this folder .*; not read: 1 \.pdf \(doc\.pdf\)"),
        ("pipe", "pipe: is a pipe"),
    ):
        with pytest.raises(DataError, match=message):
            find_inputs(given)
    with pytest.raises(DataError, match="no input"):
        find_inputs([])
