from __future__ import annotations

import gzip
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data import COCO
from detkit.errors import DataError


@pytest.fixture
def folder(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "b.png", 20, 50)
    return tmp_path


def content(**changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "images": [
            {"id": 30, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 7, "file_name": "b.png", "width": 20, "height": 50},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 30, "category_id": 18, "bbox": [1, 2, 10, 20], "area": 120.5, "iscrowd": 0},
            {"id": 2, "image_id": 30, "category_id": 3, "bbox": [5, 5, 10.5, 10], "area": 80, "iscrowd": 1},
        ],
    }
    return result | changes


def annotation(**changes: Any) -> dict[str, Any]:
    return content()["annotations"][0] | changes


def image(**changes: Any) -> dict[str, Any]:
    return content()["images"][0] | changes


def load(folder: Path, data: Any, **options: Any) -> COCO:
    (folder / "x.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return COCO(
        str(folder), train_annotations="x.json", train_images="images", val_annotations=None, num_workers=0, **options
    )


def test_ids_areas_crowds_and_empty_images(folder: Path) -> None:
    data = load(folder, content())
    assert (data.class_names, data.category_ids) == (["car", "dog"], [3, 18])
    with pytest.raises(DataError, match=r"COCO: there is no test set; name one, .* by --data\.test_annotations FILE"):
        data.setup("test")
    train = data.annotations("train")
    assert train is not None and train.image_ids.tolist() == [30, 7]
    fields = train.fields(0)
    np.testing.assert_array_equal(fields["boxes"], [[1, 2, 11, 22], [5, 5, 15.5, 15]])
    assert fields["labels"].tolist() == [2, 1] and fields["crowd"].tolist() == [False, True]
    assert fields["area"].tolist() == [120.5, 80] and not fields["difficult"].any()
    summary = data.summary()
    assert summary.splits["train"].crowd == 1 and any("iscrowd" in text for text in summary.warnings)
    empty = data.dataset("train")[1]
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,) and empty["image_id"] == 7


def test_categories_are_matched_by_name(folder: Path) -> None:
    data = load(folder, content(), class_names=["dog", "car"])
    assert data.category_ids == [18, 3]
    assert data.annotations("train").fields(0)["labels"].tolist() == [1, 2]
    with pytest.raises(DataError, match=r"no category cat \(there are: car, dog\)"):
        load(folder, content(), class_names=["cat", "car"])
    with pytest.raises(
        DataError, match=r"annotation 2: 1 of 2 .* class_names does not have: 'car'; it has 'dog'.*other_classes: drop"
    ):
        load(folder, content(), class_names=["dog"])


def test_other_categories_are_left_out_on_request(folder: Path) -> None:
    data = load(folder, content(), class_names=["dog"], other_classes="drop")
    train = data.annotations("train")
    assert train is not None and train.counts.tolist() == [1, 0] and data.category_ids == [18]
    assert data.summary().splits["train"].findings == {"other_class": 1}
    unknown = content(annotations=[annotation(category_id=99)])
    with pytest.raises(
        DataError, match="annotation 1: 1 of 1 annotations are of 1 classes that the file does not have: 99"
    ):
        load(folder, unknown, class_names=["dog"], other_classes="drop").annotations("train")


@pytest.mark.parametrize(
    ("bbox", "kinds", "boxes"),
    [
        ([1, 2, 0, 5], ["degenerate"], []),
        ([1, 2, 5, 0.5], ["degenerate"], []),
        ([9, 2, -5, 5], ["inverted"], []),
        ([1, 2, 500, 5], ["clipped"], [[1, 2, 40, 7]]),
        ([50, 2, 5, 5], ["outside"], []),
        ([0, 0, 40.01, 30], [], [[0, 0, 40, 30]]),  # rounding is no finding
    ],
)
def test_bad_boxes_become_findings(folder: Path, bbox: list[float], kinds: list[str], boxes: list) -> None:
    train = load(folder, content(annotations=[annotation(id=77, bbox=bbox)])).annotations("train")
    assert [(each.kind, each.object) for each in train.findings] == [(kind, 77) for kind in kinds]
    assert train.boxes.tolist() == boxes


def test_packed_files_and_ids_as_floats(folder: Path) -> None:
    floats = content(images=[row | {"id": float(row["id"])} for row in content()["images"]])
    (folder / "x.json.gz").write_bytes(gzip.compress(json.dumps(floats).encode()))
    data = COCO(str(folder), "x.json.gz", "images", None, num_workers=0)
    assert data.annotations("train").image_ids.tolist() == [30, 7]
    assert data.annotations("train").counts.tolist() == [2, 0]


def test_thin_boxes_stay_in_evaluation(folder: Path) -> None:
    (folder / "v.json").write_text(json.dumps(content(annotations=[annotation(bbox=[1, 1, 0.5, 9])])))
    load(folder, content())
    data = COCO(str(folder), "x.json", "images", "v.json", "images", num_workers=0)
    assert len(data.annotations("val").boxes) == 1


def test_missing_area_is_the_box(folder: Path) -> None:
    train = load(folder, content(annotations=[annotation(area=None)])).annotations("train")
    assert train.area.tolist() == [200]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "the JSON is cut short"),
        ("[]", "the file is to hold an object with images, annotations and categories"),
        (content(images=[]), "'images' is empty"),
        (content(categories=[]), "'categories' is empty"),
        (
            content(annotations=[annotation(image_id=5)]),
            "annotation 1: 1 of 1 annotations are of 1 images that the file does not have: 5; it has 30, 7",
        ),
        (
            content(annotations=[annotation(category_id=5)]),
            "annotation 1: 1 of 1 annotations are of 1 classes that the file does not have: 5; it has 18, 3",
        ),
        (
            content(annotations=[{"id": 4}]),
            r"annotation 0 \(counted from 0\): object missing required field 'image_id'",
        ),
        (content(annotations=[annotation(bbox=[1, 2])]), "annotation 0 .*bbox: expected 'array' of length 4"),
        (
            content(annotations=[annotation(bbox=[1, 2, math.nan, 4])]),
            "entry 0 .*bbox is NaN, which JSON does not have",
        ),
        (content(images=[image(), image(file_name="b.png")]), "image id 30 is given twice"),
        (content(images=[image(file_name="../x.png")]), "refused"),
        (content(images=[image(file_name="/etc/passwd")]), "refused"),
        (
            content(images=[image(file_name="c.png")]),
            r"'c\.png' is not below .*images; name its folder by --data\.train_images",
        ),
        (content(images=[image(file_name=3)]), "image 30: file_name is missing or no text"),
        (content(images=[{"id": 1}]), "image 1: file_name is missing or no text"),
        (content(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "given twice"),
        (
            content(categories=[{"id": 3, "name": "a"}, {"id": 18, "name": "a"}]),
            "categories 3 and 18 are both called 'a', and both have objects; .* merge_categories: true",
        ),
        (content(categories=[{"id": 1}]), "category 1 has no name"),
        (content(categories=[{"id": 1, "name": " "}]), "category 1 has no name"),
        (content(categories=[{"id": 1, "name": "a\x1b[2J"}]), "class name 'a.x1b.*has a control character"),
        (content(images=[image(file_name="a\0.png")]), "image 30: file name 'a.x00.png' .*refused"),
        (content(images=[image(file_name="x" * 5000)]), "the image 'xxx"),
        (content(images=[image(width=10**400)]), "image 30: its size is 1000.*0 x 30 pixels"),
        (content(images=[image(width=1e300)]), "image 30: its size is 1.* x 30 pixels"),
        (content(images=[image(width=3_000_000_000)]), "image 30: its size is 3000000000 x 30"),
        (content(images=[image(width=[40])]), "image 30: width or height is no number"),
        *(
            (content(images=[image(id=odd)]), message)
            for odd, message in (
                ([1], r"image 0 .*: id: expected 'int . float . str', got 'array'"),
                ({}, "image 0 .*: id: expected .*, got 'object'"),
                (None, "image 0 .*: id: expected .*, got 'null'"),
                (True, "image 0 .*: id: expected .*, got 'bool'"),
                (10**400, "image 0 .*: id: expected 'int' <= 9223372036854775807"),
                (2**63, "image 0 .*: id: expected 'int' <= 9223372036854775807"),
                (1e300, "image 0 .*: id: expected 'float' <= 9007199254740992"),
                (7.5, "image id 7.5 is no whole number"),
                ("x" * 1001, "image 0 .*: id: expected 'str' of length <= 1000"),
                ("a\0", "image id 'a.x00' holds a NUL"),
            )
        ),
        (content(categories=[{"id": 2**63, "name": "a"}]), "category 0 .*: id: expected 'int' <= 9223372036854775807"),
        (content(categories=[{"id": [], "name": "a"}]), "category 0 .*: id: expected 'int . float', got 'array'"),
        (content(annotations=[annotation(image_id=[])]), "annotation 0 .*: image_id: expected .*, got 'array'"),
        (content(annotations=[annotation(category_id={})]), "annotation 0 .*: category_id: expected .*, got 'object'"),
        (content(annotations=[annotation(bbox=[1, 2, 1e300, 4])]), r"annotation 0 .*: bbox.2.: .*<= 1000000000.0"),
        (
            content(annotations=[annotation(bbox=None)]),
            r"annotation 0 \(counted from 0\) has no bbox, and no segmentation",
        ),
        *(
            (content(annotations=[annotation(bbox=None, segmentation={"size": size, "counts": counts})]), message)
            for size, counts, message in (
                ([30, 40], [-5, 10], "annotation 0 .* has no bbox, .*: its run lengths .*: one is negative"),
                ([30, 40], [5, 10], "annotation 0 .* has no bbox, .* 40 x 30 pixels: their sum is 15"),
                ([30, 40], "zzzzzz", "annotation 0 .* has no bbox, .* has a character that is none"),
                ([0, 0], [1], "annotation 0 .* has no bbox, .* no mask has 0 x 0 pixels"),
                (["30", "40"], [1200], "annotation 0 .* has no bbox, and no segmentation"),
                ([30, 40], 3, "annotation 0 .* has no bbox, and no segmentation"),
            )
        ),
        (content(annotations=[annotation(area=1e300)]), "annotation 0 .*: area: expected 'float. <= 1e"),
    ],
)
def test_bad_file(folder: Path, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load(folder, data)
    assert "x.json" in str(error.value) or "class name" in message
    assert str(error.value).isprintable() and len(str(error.value)) < 600


@pytest.mark.parametrize("nested", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"info":' * 100_000])
def test_nested_file(folder: Path, nested: str) -> None:
    (folder / "x.json").write_text(json.dumps(content()).replace("{", '{"info": ' + nested + ", ", 1))
    with pytest.raises(DataError, match=r"x\.json: "):
        COCO(str(folder), "x.json", "images", val_annotations=None)


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    """A large folder of images may lie elsewhere: the names in the file must stay inside, links need not."""
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "far.png").write_bytes((tmp_path / "elsewhere" / "a.png").read_bytes())
    (tmp_path / "elsewhere" / "a.png").unlink()
    (tmp_path / "elsewhere" / "a.png").symlink_to(tmp_path / "far.png")
    assert load(folder, content()).dataset("train")[0]["image"].shape == (3, 30, 40)


def test_missing_files(folder: Path) -> None:
    with pytest.raises(DataError, match=r"instances_train2017\.json: file does not exist"):
        COCO(str(folder))
    load(folder, content())
    with pytest.raises(DataError, match="image folder does not exist"):
        COCO(str(folder), train_annotations="x.json", train_images="nowhere")
    (folder / "images").rename(folder / "photos")
    found = COCO(str(folder), train_annotations="x.json").annotations("train")
    assert found.files[0] == "photos/a.png" and found.findings[0].kind == "other_name"
    (folder / "photos" / "a.png").unlink()
    with pytest.raises(DataError, match=r"the image 'a\.png' is not below .* --data\.train_images"):
        COCO(str(folder), train_annotations="x.json")


def test_coco128(shared: Callable[[str], Path]) -> None:
    data = COCO(str(shared("data/coco128")), val_annotations=None, num_workers=0, transforms=[])
    split = data.summary().splits["train"]
    assert (split.images, split.boxes, split.crowd) == (128, 939, 10)
    assert data.num_classes == 80 and data.category_ids[-1] == 90
    dataset = data.dataset("train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no image may differ in size from its annotation
        samples = [dataset[index] for index in range(len(dataset))]
    assert all(sample["image"].shape[0] == 3 for sample in samples)
    assert any((sample["image"][0] == sample["image"][1]).all() for sample in samples)  # the gray one
