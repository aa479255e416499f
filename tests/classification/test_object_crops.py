"""The objects of a detection data set: which ones, and how they are cut out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.classification import ObjectCrops, object_crops
from detkit.data import VOC, Annotations, ImageFolder
from detkit.data.voc_xml import VOCObject
from detkit.errors import ConfigError, DataError

GREY = (124, 116, 104)
"""ImageNet's mean colour, which stands for what lies outside an image."""


@pytest.fixture
def voc(make_voc: Callable[..., Path]) -> Path:
    """Images "a" (a cat, a difficult dog, a dog at the corner) and "b" (nothing) and "c" (a cat)."""
    cat, small_cat = VOCObject("cat", (10, 4, 30, 24), False), VOCObject("cat", (1, 1, 8, 8), False)
    dogs = [VOCObject("dog", (0, 0, 9, 9), True), VOCObject("dog", (0, 0, 28, 14), False)]
    sets = {"train": ["a", "b", "c"], "val": ["c"], "none": ["b"]}
    return make_voc({"a": [cat, *dogs], "b": [], "c": [small_cat]}, sets)


def crops(voc: Path, source: dict[str, Any] | None = None, **options: Any) -> ObjectCrops:
    return ObjectCrops(VOC(str(voc), **({"test": None} | (source or {}))), **({"transforms": []} | options))


def pixels(voc: Path, name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(voc / "JPEGImages" / f"{name}.png"))).permute(2, 0, 1)


def test_one_sample_for_each_object_that_counts(voc: Path) -> None:
    data = crops(voc)
    data.setup()
    train = data.dataset("train")
    assert [(train[i]["image_id"], train[i]["label"]) for i in range(3)] == [("a#1", 1), ("a#3", 2), ("c#1", 1)]
    assert len(train) == 3
    assert (data.class_names, data.category_ids, data.test_split) == (["cat", "dog"], [1, 2], "val")
    assert len(data.dataset("val")) == len(data.dataset("test")) == 1


def test_without_context_a_box_of_the_crops_size_is_the_box(voc: Path) -> None:
    train = crops(voc, crop_size=20, context=0).dataset("train")
    assert torch.equal(train[0]["image"], pixels(voc, "a")[:, 4:24, 10:30])


def test_what_lies_outside_has_the_mean_colour(voc: Path) -> None:
    crop = crops(voc, crop_size=28, context=4).dataset("train")[1]["image"]
    # 28 of 20: 40 % more around the box, which touches the upper left corner; rows and columns 0 to 2 see nothing.
    assert all(torch.equal(crop[c, :2], torch.full((2, 28), GREY[c], dtype=torch.uint8)) for c in range(3))
    assert all(torch.equal(crop[c, :, :2], torch.full((28, 2), GREY[c], dtype=torch.uint8)) for c in range(3))
    assert not (crop[:, 6:, 6:] == torch.tensor(GREY).view(3, 1, 1)).all(0).any()


def test_crops_are_those_of_warp(voc: Path) -> None:
    from detkit.features.warping import warp

    for mode in ("warp", "square"):
        train = crops(voc, crop_size=33, context=5, mode=mode).dataset("train")
        mean = torch.tensor((0.485, 0.456, 0.406)).mul(255).view(3, 1, 1)
        boxes = torch.tensor([[10.0, 4.0, 30.0, 24.0], [0.0, 0.0, 28.0, 14.0]])
        expected = warp(pixels(voc, "a").float() - mean, boxes, 33, 5, mode) + mean
        for i in range(2):
            assert (train[i]["image"] - expected[i]).abs().max() <= 0.501


def test_context_in_proportion_to_the_papers(voc: Path) -> None:
    assert [crops(voc, crop_size=size).context for size in (32, 64, 227)] == [2, 5, 16]


def test_an_image_is_read_once_where_the_crops_can_be_kept(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Annotations.image

    def counted(annotations: Annotations, index: int) -> np.ndarray:
        read.append(str(annotations.image_id(index)))
        return original(annotations, index)

    monkeypatch.setattr(Annotations, "image", counted)
    train = crops(voc).dataset("train")
    kept = [train[i]["image"] for i in (1, 0, 2, 1, 0)]
    assert read == ["a", "c"]
    train[0]["image"].zero_()
    assert torch.equal(train[0]["image"], kept[1])  # what is done to a sample leaves the kept crop as it is
    monkeypatch.setattr(object_crops, "KEPT", 3 * 3 * 32 * 32 - 1)
    other = crops(voc).dataset("train")
    assert all(torch.equal(a, b) for a, b in zip(kept, [other[i]["image"] for i in (1, 0, 2, 1, 0)], strict=True))
    assert read == ["a", "c", "a", "a", "c", "a", "a"]


def test_class_names_in_another_order(voc: Path) -> None:
    data = crops(voc, class_names=["dog", "bird", "cat"])
    assert data.examples("train").labels.tolist() == [3, 1, 3]
    with pytest.raises(DataError, match="dog of VOC is no class; the classes are cat"):
        crops(voc, class_names=["cat"]).setup("fit")


def test_what_cannot_be(voc: Path) -> None:
    with pytest.raises(ConfigError, match="a crop of 32 pixels has no room for 16 pixels of context"):
        crops(voc, context=16)
    with pytest.raises(ConfigError, match="crop mode: there is no 'round'"):
        crops(voc, mode="round")
    with pytest.raises(ConfigError, match="ImageFolder has no classes"):
        ObjectCrops(ImageFolder(str(voc)))
    with pytest.raises(DataError, match="ObjectCrops: the train set has no images"):
        crops(voc, {"train": "none"}).setup("fit")


def test_the_source_is_prepared(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, called = crops(voc), []
    monkeypatch.setattr(data.source, "prepare_data", lambda: called.append(True))
    data.prepare_data()
    assert called == [True]


def test_no_validation_set(voc: Path) -> None:
    data = crops(voc, {"val": None})
    data.setup("fit")
    assert data.val_dataloader() == []
