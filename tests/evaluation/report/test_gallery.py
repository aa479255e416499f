"""Which images are shown, and what is drawn on them."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from detkit.evaluation.analysis import Analysis, analyse
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.report.gallery import (
    LONGEST_SIDE,
    Mark,
    Picture,
    assess_images,
    best_images,
    make_picture,
    worst_images,
)
from tests.evaluation.report.pages import named
from tests.evaluation.sets import Box, Found, Thing

LEFT, RIGHT, FAR = (0.0, 0.0, 40.0, 40.0), (60.0, 0.0, 40.0, 40.0), (0.0, 60.0, 20.0, 20.0)
NAMES = ["cat", "dog"]


def shifted(box: Box, by: float) -> Box:
    return (box[0] + by, *box[1:])


def set_of_each_kind() -> EvaluationSet:
    """Costs at a threshold of 0.5: a 0, b 1.7, c 0, d 1, e 1.6, f 0, g 0.9, h 0."""
    return named(
        [
            ("a", ([Thing(LEFT, 1), Thing(RIGHT, 2)], [Found(LEFT, 1, 0.9), Found(RIGHT, 2, 0.8)])),
            ("b", ([Thing(LEFT, 1), Thing(RIGHT, 2)], [Found(LEFT, 1, 0.9), Found(FAR, 1, 0.7)])),
            ("c", ([Thing(LEFT, 1)], [Found(LEFT, 1, 0.95), Found(FAR, 1, 0.4)])),
            ("d", ([Thing(LEFT, 1)], [Found(LEFT, 1, 0.3)])),
            ("e", ([Thing(LEFT, 1)], [Found(LEFT, 2, 0.6)])),
            ("f", ([], [])),
            ("g", ([Thing(LEFT, 1)], [Found(LEFT, 1, 0.99), Found(LEFT, 1, 0.9)])),
            ("h", ([Thing(LEFT, 1, crowd=True), Thing(RIGHT, 1, difficult=True)], [Found(LEFT, 1, 0.9)])),
        ]
    )


@pytest.fixture
def assessed() -> tuple[EvaluationSet, Analysis]:
    s = set_of_each_kind()
    return s, analyse(s, NAMES, score_threshold=0.5)


def test_an_image_costs_its_missed_objects_and_the_scores_of_its_errors(
    assessed: tuple[EvaluationSet, Analysis],
) -> None:
    s, analysis = assessed
    assessment = assess_images(s, analysis)
    assert assessment.cost.tolist() == pytest.approx([0, 1.7, 0, 1, 1.6, 0, 0.9, 0])
    assert [s.image_ids[i] for i in worst_images(assessment)] == ["b", "e", "d", "g"]
    assert [s.image_ids[i] for i in worst_images(assessment, 2)] == ["b", "e"]
    # a's hits are 0.8 above nothing, c's 0.55 above its error; f and h have nothing to find.
    assert [s.image_ids[i] for i in best_images(assessment)] == ["a", "c"]
    assert assessment.margin[[0, 2]].tolist() == pytest.approx([0.8, 0.55])
    assert picture(s, analysis, "b").summary == "1 of 2 objects found, 1 background"
    assert picture(s, analysis, "f").summary == "no objects to find"


def test_equal_images_come_in_the_order_of_their_ids() -> None:
    bad, good = ([Thing(LEFT, 1)], []), ([Thing(RIGHT, 1)], [Found(RIGHT, 1, 0.8)])
    s = named([(2, bad), (3, good), (10, bad), (11, good), ("1", bad), ("4", good)])
    assessment = assess_images(s, analyse(s, NAMES))
    assert [s.image_ids[i] for i in worst_images(assessment)] == [2, 10, "1"]
    assert [s.image_ids[i] for i in best_images(assessment)] == [3, 11, "4"]


def test_scores_beyond_one_do_not_outweigh_objects() -> None:
    """Scores of an SVM are no probabilities."""
    s = named(
        [
            ("loud", ([Thing(LEFT, 1)], [Found(LEFT, 1, 900.0), Found(FAR, 1, 700.0)])),
            ("worse", ([Thing(LEFT, 1), Thing(RIGHT, 1)], [])),
            ("low", ([Thing(LEFT, 1)], [Found(LEFT, 1, -0.2), Found(FAR, 1, -0.25)])),
        ]
    )
    assessment = assess_images(s, analyse(s, NAMES, score_threshold=-1.0))
    assert assessment.cost.tolist() == [1, 2, 0]
    assert best_images(assessment) == []  # an error without cost is an error still


def texts(marks: list[Mark]) -> dict[str, str]:
    return {mark.text: mark.kind for mark in marks}


def picture(
    s: EvaluationSet, analysis: Analysis, image_id: str, images: dict[str, Path] | None = None, **more: int
) -> Picture:
    return make_picture(assess_images(s, analysis), s.image_ids.index(image_id), images or {}, **more)


def test_each_box_is_labelled_with_its_kind(assessed: tuple[EvaluationSet, Analysis]) -> None:
    found = {image_id: picture(*assessed, image_id) for image_id in "abdegh"}
    assert texts(found["a"].truth) == {"cat": "found", "dog": "found"}
    assert texts(found["a"].detections) == {"cat 0.90": "hit", "dog 0.80": "hit"}
    assert texts(found["b"].truth) == {"cat": "found", "dog · missed": "missed"}
    assert texts(found["b"].detections) == {"cat 0.90": "hit", "cat 0.70 · background": "background"}
    assert texts(found["d"].truth) == {"cat · score 0.30 too low": "below"}
    assert texts(found["d"].detections) == {}
    assert texts(found["e"].truth) == {"cat · not found": "missed"}
    assert texts(found["e"].detections) == {"dog 0.60 · classification": "classification"}
    assert texts(found["g"].detections) == {"cat 0.99": "hit", "cat 0.90 · duplicate": "duplicate"}
    assert texts(found["h"].truth) == {"cat · crowd": "ignored", "cat · difficult": "ignored"}
    assert texts(found["h"].detections) == {"cat 0.90 · ignored": "ignored"}


def test_a_photo_is_small_upright_and_its_boxes_fit(tmp_path: Path) -> None:
    image = PILImage.new("RGB", (900, 1800), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees: upright it is 1800 x 900
    image.save(tmp_path / "a.jpg", exif=exif)
    s = named([("a", ([Thing((900, 450, 900, 450), 1)], []))])
    drawn = picture(s, analyse(s, NAMES), "a", {"a": tmp_path / "a.jpg"})
    assert (drawn.width, drawn.height) == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert drawn.photo is not None
    photo = PILImage.open(io.BytesIO(base64.b64decode(drawn.photo.partition(",")[2])))
    assert photo.size == (LONGEST_SIDE, LONGEST_SIDE // 2)
    mark = drawn.truth[0]
    assert (mark.x, mark.y, mark.width, mark.height) == (240, 120, 240, 120)
    assert drawn.problem == ""


@pytest.mark.parametrize("kind", ["no mapping", "unknown", "missing", "folder", "text", "empty", "cut short", "raises"])
def test_an_image_that_cannot_be_read_is_drawn_as_empty_ground(tmp_path: Path, kind: str) -> None:
    s = named([("a", ([Thing((0, 0, 100, 50), 1)], []))])
    path = tmp_path / "a.png"
    if kind == "text":
        path.write_text("no image")
    if kind == "empty":
        path.touch()
    if kind == "cut short":
        whole = io.BytesIO()
        PILImage.effect_noise((64, 64), 50).save(whole, "PNG")
        path.write_bytes(whole.getvalue()[:1000])
    if kind == "folder":
        path.mkdir()

    def look_up(image_id: object) -> Path:
        raise KeyError(image_id)

    images = {"no mapping": {}, "unknown": {"b": path}, "raises": look_up}.get(kind, {"a": path})
    drawn = make_picture(assess_images(s, analyse(s, NAMES)), 0, images)
    assert drawn.photo is None
    problem = {"missing": "is missing"}.get(kind, "cannot be read" if path.exists() else "is not known")
    assert problem in drawn.problem
    assert drawn.width == LONGEST_SIDE
    assert drawn.width / drawn.height == pytest.approx(2, rel=0.05)
    assert len(drawn.truth) == 1


def test_a_crowded_image_stays_legible_and_light(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    things = [Thing((*rng.uniform(0, 400, 2).tolist(), 30, 30), 1) for _ in range(200)]
    found = [Found(thing.box, 1, 0.5 + i / 1000) for i, thing in enumerate(things[:90])]
    s = named([("a", (things, found))])
    drawn = picture(s, analyse(s, NAMES, score_threshold=0.1), "a")
    assert len(drawn.truth) == len(drawn.detections) == 80
    assert drawn.left_out == 120 + 10
    labels = [mark.label for mark in drawn.truth if mark.label]
    assert 5 < len(labels) <= 24
    assert [mark for mark in drawn.detections if mark.label] == []  # hits are only labelled where they are few
    for x, y, width, height in labels:
        assert x >= 0 and y >= 0 and x + width <= drawn.width and y + height <= drawn.height
    shared = sum(
        max(min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]), 0)
        * max(min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]), 0)
        for i, a in enumerate(labels)
        for b in labels[:i]
    )
    assert shared <= 0.3 * sum(width * height for _, _, width, height in labels)


def test_boxes_beyond_the_image_are_cut(tmp_path: Path) -> None:
    PILImage.new("L", (10, 10)).save(tmp_path / "a.png")
    wild = [Found((-50, -50, 1000, 1000), 1, 0.9), Found((50, 50, 5, 5), 1, 0.8), Found((3, 3, 0, 0), 1, 0.7)]
    s = named([("a", ([Thing((0, 0, 10, 10), 1)], wild))])
    drawn = picture(s, analyse(s, NAMES, score_threshold=0.0), "a", {"a": tmp_path / "a.png"})
    assert (drawn.width, drawn.height) == (LONGEST_SIDE, LONGEST_SIDE)
    for mark in drawn.detections:
        assert 0 <= mark.x < mark.x + mark.width <= LONGEST_SIDE
        assert 0 <= mark.y < mark.y + mark.height <= LONGEST_SIDE


def test_the_name_says_id_and_file(tmp_path: Path) -> None:
    s = named([(7, ([Thing(LEFT, 1)], [])), ("x", ([Thing(LEFT, 1)], [])), (None, ([Thing(LEFT, 1)], []))])
    images = {7: tmp_path / "0007.jpg", "x": tmp_path / "x.jpg"}
    assessment = assess_images(s, analyse(s, NAMES))
    names = [make_picture(assessment, i, images).name for i in range(3)]
    assert names == ["7 (0007.jpg)", "x", "image without an id"]


def test_without_a_threshold_everything_is_shown() -> None:
    s = set_of_each_kind()
    assert not math.isnan(analyse(s, NAMES).score_threshold)
    assert assess_images(s, analyse(s, NAMES, score_threshold=0.0)).shown.all()
