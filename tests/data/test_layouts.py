"""Data sets as people have them: each of the shared inputs, and what detkit.data.open makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import detkit
from detkit.data.layouts import find_layout
from detkit.errors import DataError

Field = Callable[[str], Path]
#: Boxes of the images that most of the inputs have, of red and blue.
RED, BLUE = [20, 20, 60, 60], [70, 30, 110, 80]


@pytest.fixture
def field(shared: Callable[[str], Path], tmp_path: Path) -> Field:
    """`field("voc_spaces")` -> a copy of that input."""

    def copy(name: str) -> Path:
        return shutil.copytree(shared(f"fixtures/field/{name}"), tmp_path / name)

    return copy


def kinds(data: detkit.data.DetectionDataModule, split: str = "train") -> list[str]:
    """The kinds of findings, without those about images that are alike."""
    annotations = data.annotations(split)
    assert annotations is not None
    return [finding.kind for finding in annotations.findings if finding.kind != "alike"]


def boxes(data: detkit.data.DetectionDataModule, image_id: str | int, split: str = "train") -> dict[str, list[float]]:
    """Class -> box of an image."""
    annotations = data.annotations(split)
    assert annotations is not None
    fields = annotations.fields(annotations.image_ids.tolist().index(image_id))
    names = [data.class_names[label - 1] for label in fields["labels"]]
    return dict(zip(names, fields["boxes"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("name", "image_id", "found"),
    [
        ("base", 1, []),
        ("coco_bom", 1, []),
        ("coco_crowdstr", 1, ["flag"]),
        ("coco_dupannid", 1, []),
        ("coco_nosize", 1, ["no_size"] * 3),
        ("coco_rf_dup", 1, ["unused_category"]),
        ("coco_rf_layout", 1, ["unused_category"]),
        ("coco_segonly", 1, ["from_outline"]),
        ("coco_winsep", 1, []),
        ("roboflow_voc", "train/a", []),
        ("same_folder", "a", []),
        ("voc_ext", "a", []),
        ("voc_nested", "cam1/a", []),
        ("voc_spaces", "car 1", []),
        ("voc_spaces_err", "car 1", []),
        ("voc_stems", "a", []),
        ("val_swapped", 1, []),
    ],
)
def test_what_can_be_understood_is_read_and_told(
    field: Field, name: str, image_id: str | int, found: list[str]
) -> None:
    data = detkit.data.open(str(field(name)), split=[1, 0, 0])
    assert kinds(data) == found
    assert sorted(data.class_names) == ["blue", "red"]
    if name not in ("base", "val_swapped"):
        assert boxes(data, image_id) == {"red": RED, "blue": BLUE}
    annotations = data.annotations("train")
    assert not annotations.crowd.any() and all(Path(annotations.path(i)).is_file() for i in range(len(annotations)))
    data.setup("fit")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco_bigid", r"ann\.json: image 0 .*: id: expected 'int' <= "),
        ("voc_negatives", r"neg\.xml: annotation file does not exist; .* --data\.missing_annotations empty"),
        ("voc_norm", r"a\.xml: the coordinates look normalised \(the largest of all boxes is 0\.62\)"),
        ("broken_last", "no data set is known here"),
    ],
)
def test_what_cannot_be_understood_stops_with_a_message(field: Field, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        detkit.data.open(str(field(name))).setup("fit")


def test_images_without_annotation_file_are_empty_on_request(field: Field) -> None:
    data = detkit.data.open(str(field("voc_negatives")), missing_annotations="empty")
    assert data.annotations("train").counts.tolist() == [2, 2, 0]


def test_a_box_is_not_cut_by_a_size_that_is_wrong(field: Field) -> None:
    data = detkit.data.open(str(field("voc_size")))
    assert kinds(data) == ["other_size", "other_size"]
    assert [250, 180, 350, 280] in data.annotations("train").fields(0)["boxes"].tolist()


def test_two_boxes_in_an_object(field: Field) -> None:
    data = detkit.data.open(str(field("voc_two_boxes")))
    assert data.annotations("train").boxes.tolist() == [RED, BLUE]
    assert kinds(data) == ["several_boxes"]


@pytest.mark.parametrize(("exif", "found"), [("auto", 3), ("apply", 0), ("ignore", 0)])
def test_orientations_that_the_size_does_not_settle(field: Field, exif: str, found: int) -> None:
    data = detkit.data.open(str(field("voc_exif")), exif=exif)
    assert kinds(data) == ["exif"] * found
    images = {name: data.annotations("train").image(index) for index, name in enumerate(["a", "b", "sq"])}
    stored = {
        name: detkit.data.image_io.read_image(data.annotations("train").path(i), exif="ignore")
        for i, name in enumerate(images)
    }
    assert all(np.array_equal(images[name], stored[name]) == (exif == "ignore") for name in images)


def test_an_encoding_that_is_declared_is_read(field: Field) -> None:
    folder = field("voc_gbk")
    assert detkit.data.open(str(folder)).class_names == ["红"]
    file = folder / "Annotations" / "a.xml"
    file.write_bytes(file.read_bytes().replace(b'<?xml version="1.0" encoding="GBK"?>', b""))
    with pytest.raises(DataError, match=r"a\.xml: is not written in UTF-8 .*save it as UTF-8, for example by: iconv"):
        detkit.data.open(str(folder))


def test_the_file_name_decides_between_two_images(field: Field) -> None:
    folder = field("voc_stems")
    data = detkit.data.open(str(folder))
    assert data.annotations("train").path(0).endswith("a.png")
    file = folder / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("a.png", "b.png"))
    with pytest.raises(DataError, match=r"its image may be a\.jpg or a\.png .*'b\.png' is neither"):
        detkit.data.open(str(folder)).setup("fit")


@pytest.mark.parametrize("name", ["coco_infoonly", "voc_test_noxml"])
def test_a_set_without_annotations_is_for_prediction(field: Field, name: str) -> None:
    folder = str(field(name))
    options = {"class_names": ["red", "blue"], "num_workers": 0}
    data = detkit.data.open(folder, **options | ({"split": [0.4, 0.3, 0.3]} if name == "coco_infoonly" else {}))
    if name == "voc_test_noxml":
        data.setup("predict")
        assert sum(map(len, data.predict_dataloader())) == 2
    with pytest.raises(DataError, match="is annotated, so there is nothing to compare with"):
        data.setup("test" if name == "voc_test_noxml" else "fit")


def test_each_file_has_its_own_category_ids(field: Field) -> None:
    data = detkit.data.open(str(field("val_swapped")))
    assert data.class_names == ["red", "blue"]
    assert (data.category_ids_of("train"), data.category_ids_of("val"), data.category_ids_of("test")) == (
        [1, 2],
        [2, 1],
        [2, 1],
    )


def test_two_layouts_that_fit_are_an_error(field: Field) -> None:
    folder = field("same_folder")
    folder.joinpath("table.csv").write_text("image,xmin,ymin,xmax,ymax,class\na.jpg,1,2,3,4,red\n")
    with pytest.raises(
        DataError, match=r"may be read as VOC \(.*\) and CSV \(.*--data VOC --data\.path .* or --data CSV"
    ):
        find_layout(folder)


def test_merged_categories(field: Field) -> None:
    folder = field("coco_rf_dup")
    content = json.loads((folder / "ann.json").read_text())
    content["annotations"][0]["category_id"] = 0
    (folder / "ann.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="the categories 0 and 1 are both called 'red'"):
        detkit.data.open(str(folder))
    data = detkit.data.open(str(folder), merge_categories=True)
    assert data.class_names == ["red", "blue"]
    assert sorted(data.annotations("train").labels.tolist()) == [1, 1, 1, 2, 2, 2]
