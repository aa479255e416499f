"""A folder of classes: what is read, what is held out, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.classification import ClassFolder
from detkit.classification.class_folder import read_class_folder
from detkit.errors import ConfigError, DataError

MakeFolder = Callable[..., Path]


def test_the_folders_are_the_classes(make_folder: MakeFolder) -> None:
    root = make_folder({"train/dog": 2, "train/cat": 3, "val/cat": 1})
    data = ClassFolder(str(root), transforms=[])
    data.setup()
    assert (data.class_names, data.category_ids, data.test_split) == (["cat", "dog"], [1, 2], "val")
    train = data.dataset("train")
    assert [(train[i]["image_id"], train[i]["label"]) for i in range(5)] == [
        *((f"cat/{i}.png", 1) for i in range(3)),
        *((f"dog/{i}.png", 2) for i in range(2)),
    ]
    sample = train[1]  # made in one colour
    assert torch.equal(sample["image"], torch.tensor([0, 10, 7], dtype=torch.uint8).view(3, 1, 1).expand(3, 30, 21))
    assert len(data.dataset("val")) == len(data.dataset("test")) == 1
    assert data.summary(("train", "val")) == [
        "train: 5 images of 2 classes, 2 to 3 each",
        "val: 1 images of 2 classes, 0 to 1 each",
    ]


def test_training_samples_are_flipped_half_of_the_time(make_folder: MakeFolder, tmp_path: Path) -> None:
    from PIL import Image

    root = make_folder({"train/cat": 0, "train/dog": 0})
    for name in ("cat", "dog"):
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(root / "train" / name / "a.png")
    train = ClassFolder(str(root), val=None).dataset("train")
    plain = torch.arange(48, dtype=torch.uint8).view(4, 4, 3).permute(2, 0, 1)
    flipped = [torch.equal(train[0, seed]["image"], plain.flip(2)) for seed in range(100)]
    assert all(f or torch.equal(train[0, seed]["image"], plain) for seed, f in enumerate(flipped))
    assert 30 < sum(flipped) < 70


def test_albumentations_on_images_without_boxes(make_folder: MakeFolder) -> None:
    root = make_folder({"train/cat": 1, "train/dog": 1})
    crop = {"class_path": "albumentations.RandomCrop", "init_args": {"height": 12, "width": 10}}
    train = ClassFolder(str(root), val=None, transforms=[crop]).dataset("train")
    assert train[1]["image"].shape == (3, 12, 10)
    with pytest.raises(ConfigError, match=r"no BasicTransform 'albumentations\.Nothing'"):
        ClassFolder(str(root), val=None, transforms=[{"class_path": "albumentations.Nothing"}]).setup("fit")


def test_class_names_of_ones_own(make_folder: MakeFolder) -> None:
    root = make_folder({"train/cat": 1, "train/dog": 2, "test/dog": 1})
    data = ClassFolder(str(root), val=None, test="test", class_names=["dog", "fox", "cat"])
    assert data.examples("train").labels.tolist() == [3, 1, 1]
    assert data.examples("test").labels.tolist() == [1]
    assert data.test_split == "test"
    assert data.examples("val") is None and data.val_dataloader() == []
    assert data.summary(("train",))[1] == "warning: train: no image of fox, so it cannot be learnt"


def test_a_share_of_each_class_is_held_out(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 10, "dog": 20, "fox": 2, "owl": 1})
    options = {"train": ".", "val": None, "val_fraction": 0.3}
    data = ClassFolder(str(root), **options)
    train, val = data.dataset("train"), data.dataset("val")
    assert np.bincount(val.examples.labels, minlength=5)[1:].tolist() == [3, 6, 1, 0]
    ids = [[d[i]["image_id"] for i in range(len(d))] for d in (train, val)]
    assert sorted(ids[0] + ids[1]) == sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))
    assert all(
        d[i]["label"] == 1 + data.class_names.index(d[i]["image_id"].split("/")[0])
        for d in (train, val)
        for i in range(3)
    )
    # Whatever else differs, a later test sees the same images.
    again = ClassFolder(str(root), seed=5, **options)
    assert again.test_split == "val"
    held = again.dataset("test")
    assert [held[i]["image_id"] for i in range(len(held))] == ids[1]


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({}, {}, r"photos/train: no such folder; each class needs a folder .*train/cat"),
        ({"train": 3}, {}, "photos/train: no class folders in it"),
        ({"train/cat": 0, "train/dog": 0}, {}, r"photos/train: no image in its folders \(.*jpg"),
        ({"train/cat": 1, "train/dog": 1}, {}, "photos/val: no such folder"),
        ({"train/cat": 1, "val/dog": 1}, {}, "photos/val: 'dog' is no class; the classes are cat"),
        ({"train/cat": 1, "train/dog": 1}, {"class_names": ["cat"]}, "photos/train: 'dog' is no class"),
    ],
)
def test_broken_folders(make_folder: MakeFolder, counts: dict[str, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClassFolder(str(make_folder(counts)), **options).setup("fit")


def test_what_is_no_image_is_left_out(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 1})
    for name in ("notes.txt", ".hidden.png", "UPPER.PNG"):
        (root / "cat" / name).write_bytes((root / "cat/0.png").read_bytes())
    assert sorted(read_class_folder(str(root))[0].files) == ["cat/0.png", "cat/UPPER.PNG"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0, "val": None}, "val_fraction must be within 0 and below 1"),
        ({"val_fraction": 0.1}, "val_fraction 0.1 goes with val: null; here val is 'val'"),
    ],
)
def test_options_that_cannot_be(make_folder: MakeFolder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassFolder(str(make_folder({"train/cat": 1})), **options)


def test_links_are_followed_once_and_odd_files_are_not_opened(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"cat": 1, "dog": 1})
    (root / "cat").rename(tmp_path / "elsewhere")
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    for name in ("loop", "again"):
        (tmp_path / "elsewhere" / name).symlink_to(tmp_path / "elsewhere")
    os.mkfifo(root / "dog" / "pipe.png")
    examples, names = read_class_folder(str(root))
    assert names == ["cat", "dog"] and examples.files.tolist() == ["cat/0.png", "dog/0.png", "dog/pipe.png"]
    assert examples.image(0).shape[2] == 3
    with pytest.raises(DataError, match=r"dog/pipe\.png: is a pipe"):
        examples.image(2)


@pytest.mark.parametrize("name", [b"a\nb", b"\xff\xfe", b"\x1b[31m"])
def test_class_names_that_cannot_be_printed(make_folder: MakeFolder, name: bytes) -> None:
    root = make_folder({"train/cat": 1})
    os.mkdir(os.path.join(os.fsencode(root / "train"), name))
    with pytest.raises(DataError, match=r"class name '.*' has a control character, or is no text") as caught:
        ClassFolder(str(root), val=None)
    assert str(caught.value).isprintable()
