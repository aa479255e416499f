from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from detkit.data.annotations import Annotations, AnnotationsBuilder
from detkit.data.checks import Check, check_annotations, duplicate_boxes, quick_checks

NAMES = ["cat", "dog"]
Row = tuple[tuple[float, float, float, float], int]


def annotations(*images: list[Row], prefix: str = "a", crowd: bool = False) -> Annotations:
    builder = AnnotationsBuilder("data")
    for number, rows in enumerate(images):
        image = builder.image(f"{prefix}{number}", f"{prefix}{number}.jpg", 200, 100)
        for box, label in rows:
            builder.box(image, box, label, crowd=crowd)
    return builder.build()


GOOD: list[Row] = [((10, 10, 60, 60), 1), ((100, 20, 150, 90), 2)]


def kinds(found: list[Check]) -> list[tuple[str, str, int | None]]:
    return [(check.split, check.finding.kind, check.image) for check in found]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    splits = {"train": annotations(GOOD, []), "val": annotations(GOOD, prefix="b")}
    assert check_annotations(splits, NAMES, 100) == [] and quick_checks(splits, NAMES, 100) == {}


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("tiny", [*GOOD, ((5, 5, 8, 8.9), 1)]),
        ("whole_image", [*GOOD, ((0, 0, 200, 99.9), 1)]),
        ("same_box", [*GOOD, ((10, 10, 60, 60), 1)]),
        ("near_box", [*GOOD, ((10, 11, 60, 61), 1)]),
        ("many_objects", [*GOOD, ((20, 50, 90, 70), 1), ((120, 20, 190, 60), 2)]),
    ],
)
def test_kinds_of_boxes(kind: str, rows: list[Row]) -> None:
    splits = {"train": annotations(GOOD), "val": annotations([], rows, GOOD, prefix="b")}
    found = check_annotations(splits, NAMES, 3)
    assert kinds(found) == [("val", kind, 1)]
    assert found[0].finding.file == "data/b1.jpg"


def test_the_same_box_of_another_class_is_no_duplicate() -> None:
    splits = {"train": annotations([*GOOD, ((10, 10, 60, 60), 2)])}
    assert check_annotations(splits, NAMES) == [] and quick_checks(splits, NAMES, None) == {}


def test_classes_and_crowds() -> None:
    found = check_annotations({"train": annotations(GOOD)}, ["cat", "dog", "Big-Cat", "big cat", " big cat"])
    assert [check.finding.kind for check in found] == ["alike_classes", *["no_training_box"] * 3]
    assert "'Big-Cat' (no box), 'big cat' (no box), ' big cat' (no box)" in found[0].finding.message
    splits = {"train": annotations([((5, 5, 30, 30), 1)]), "val": annotations([((5, 5, 30, 30), 2)], prefix="b")}
    message = check_annotations(splits, ["cat", "Cat"])[0].finding.message  # each with an image, of whatever set
    assert "'cat' (1 box, such as in a0.jpg), 'Cat' (1 box, such as in b0.jpg)" in message
    found = check_annotations({"train": annotations(GOOD), "val": annotations(GOOD, prefix="b", crowd=True)}, NAMES)
    assert [(check.split, check.finding.kind, check.finding.count) for check in found] == [("val", "crowds", 2)]


def test_an_image_that_is_used_twice() -> None:
    part = annotations(GOOD, GOOD, [])
    part = dataclasses.replace(part, files=np.array(["x.jpg", "./x.jpg", "y.jpg"]))
    (check,) = check_annotations({"train": part}, NAMES)
    assert check.finding.kind == "file_twice" and check.image == 1
    assert check.finding.message == "is the image of 'a0' and 'a1'"


def test_sets_that_overlap_by_file_or_by_id() -> None:
    train, val = annotations(GOOD, GOOD), annotations(GOOD, GOOD, prefix="b")
    same_file = dataclasses.replace(val, files=np.array(["b0.jpg", "a1.jpg"]))
    assert kinds(check_annotations({"train": train, "val": same_file}, NAMES)) == [("val", "in_two_sets", 1)]
    same_id = dataclasses.replace(val, image_ids=np.array(["a0", "b1"]))
    assert kinds(check_annotations({"train": train, "val": same_id}, NAMES)) == [("val", "in_two_sets", 0)]
    numbers = [dataclasses.replace(part, image_ids=np.array([1, 2])) for part in (train, val)]
    assert check_annotations({"train": numbers[0], "val": numbers[1]}, NAMES) == []  # COCO counts in each file


@st.composite
def crowded(draw: st.DrawFn) -> Annotations:
    def rows() -> list[Row]:
        corner = st.sampled_from([0.0, 1.0, 2.0, 30.0])
        box = st.tuples(corner, corner, st.sampled_from([60.0, 61.0, 90.0]), st.sampled_from([50.0, 51.0]))
        return draw(st.lists(st.tuples(box, st.integers(1, 2)), max_size=8))

    return annotations(*(rows() for _ in range(3)))


@given(crowded())
@settings(max_examples=50)
def test_duplicates_are_those_of_torchvisions_iou(part: Annotations) -> None:
    boxes = torch.from_numpy(part.boxes.astype(np.float64))
    iou = box_iou(boxes, boxes)
    owner = np.repeat(np.arange(3), part.counts)
    expected = [
        (i, j)
        for i in range(len(boxes))
        for j in range(i + 1, len(boxes))
        if owner[i] == owner[j] and part.labels[i] == part.labels[j] and iou[i, j] > 0.9
    ]
    assert [pair[:2] for pair in duplicate_boxes(part)] == expected
    exact = {j for i, j in expected if iou[i, j] > 1 - 1e-9}
    assert len(quick_checks({"train": part}, NAMES, None).get("train", [])) == len(exact)
