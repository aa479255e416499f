"""Pictures of detections: sizes, frames, labels and every kind of image."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detkit
from detkit.drawing import colour, place_label
from detkit.errors import DataError, ImageTypeError
from detkit.types import Detections

NAMES = ["cat", "dog", "horse"]
GREY = 128


def grey(height: int = 300, width: int = 400) -> torch.Tensor:
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def found(*boxes: list[float], labels: list[int] | None = None, scores: list[float] | None = None) -> dict:
    count = len(boxes)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels if labels is not None else [1] * count, dtype=torch.int64),
        "scores": torch.tensor(scores if scores is not None else [0.9] * count),
    }


def changed(picture: Image.Image) -> np.ndarray:
    """Where something was drawn on a grey ground, (H, W) bool."""
    return (np.asarray(picture) != GREY).any(2)


def drawn_in(picture: Image.Image, rgb: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(picture) == rgb).all(2)


@pytest.mark.parametrize(
    ("size", "factor"),
    [((240, 240), 1), ((300, 400), 1), ((128, 128), 2), ((100, 500), 3), ((1, 1), 240), ((1, 3000), 1)],
)
def test_the_size_is_the_images_or_a_whole_multiple(size: tuple[int, int], factor: int) -> None:
    height, width = size
    picture = detkit.draw(grey(height, width), found([0, 0, width, height]))
    assert picture.size == (width * factor, height * factor)
    assert picture.mode == "RGB"


def test_the_image_that_came_in_is_left_alone() -> None:
    image = grey()
    detkit.draw(image, found([50, 50, 150, 150]))
    assert (image == GREY).all()
    own = Image.new("RGB", (300, 300), (GREY, GREY, GREY))
    detkit.draw(own, found([50, 50, 150, 150]))
    assert not changed(own).any()


def test_the_frame_is_on_the_first_and_last_pixels_of_the_half_open_box() -> None:
    rows, columns = np.nonzero(drawn_in(detkit.draw(grey(), found([50, 60, 150, 140])), colour(1)))
    below = rows >= 60  # the label is above
    assert (columns[below].min(), columns[below].max()) == (50, 149)
    assert rows.max() == 139


def test_a_small_image_is_drawn_where_its_objects_are_after_enlarging() -> None:
    rows, columns = np.nonzero(drawn_in(detkit.draw(grey(80, 80), found([20, 30, 40, 60])), colour(1)))
    assert (columns[rows >= 90].min(), rows.max()) == (60, 179)


def test_a_label_is_drawn_with_its_score_and_differs_by_name() -> None:
    box = [50, 60, 150, 140]
    plain = detkit.draw(grey(), {k: v for k, v in found(box).items() if k != "scores"})
    scored = detkit.draw(grey(), found(box))
    named = detkit.draw(grey(), found(box), class_names=NAMES)
    for picture in (plain, scored, named):
        assert changed(picture)[40:60, 50:60].any()  # above the box
    widths = [np.nonzero(changed(p)[50])[0].max() for p in (plain, scored, named)]
    assert widths[0] < widths[1] < widths[2]


def test_detections_of_predict_know_their_names() -> None:
    plain = found([50, 60, 150, 140])
    known, given = (
        np.asarray(detkit.draw(grey(), each, None, names))
        for each, names in ((Detections(plain, NAMES), None), (plain, NAMES))
    )
    assert np.array_equal(known, given)
    assert not np.array_equal(known, np.asarray(detkit.draw(grey(), plain)))


def test_a_label_without_a_name_is_shown_by_its_number() -> None:
    box = [50, 60, 150, 140]
    numbered = detkit.draw(grey(), found(box, labels=[4]))
    assert np.array_equal(np.asarray(numbered), np.asarray(detkit.draw(grey(), found(box, labels=[4]), None, NAMES)))


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 3), (0.5, 2), (0.6, 1), (0.95, 0)])
def test_scores_below_the_threshold_are_left_out(threshold: float, count: int) -> None:
    boxes = [[20, 60, 80, 120], [120, 60, 180, 120], [220, 60, 280, 120]]
    detections = found(*boxes, scores=[0.9, 0.5, 0.1])
    picture = changed(detkit.draw(grey(), detections, score_threshold=threshold))
    assert [picture[90, int(x1)] for x1, *_ in boxes] == [True] * count + [False] * (3 - count)


def test_detections_without_scores_are_all_drawn() -> None:
    targets = {"boxes": torch.tensor([[50.0, 60, 150, 140]]), "labels": torch.tensor([2])}
    assert drawn_in(detkit.draw(grey(), targets), colour(2)).any()


@pytest.mark.parametrize("detections", [None, found()])
def test_nothing_found_leaves_the_image_as_it_is(detections: dict | None) -> None:
    assert not changed(detkit.draw(grey(), detections)).any()
    no_object = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert not changed(detkit.draw(grey(), detections, targets=no_object)).any()


def test_targets_are_white_with_a_dark_edge_and_lie_beneath() -> None:
    targets = {"boxes": torch.tensor([[50.0, 60, 150, 140]])}
    alone = detkit.draw(grey(), None, targets=targets)
    assert drawn_in(alone, (255, 255, 255))[100, 50]
    assert drawn_in(alone, (0, 0, 0))[100, 49]
    both = detkit.draw(grey(), found([50, 60, 150, 140]), targets=targets)
    assert drawn_in(both, colour(1))[100, 50]


def test_every_kind_of_image_gives_the_same_picture(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (250, 260, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "image.png")
    images = [
        array,
        torch.from_numpy(array).permute(2, 0, 1),
        Image.fromarray(array),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
    ]
    pictures = [np.asarray(detkit.draw(image, found([20, 30, 90, 95]))) for image in images]
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures[1:])


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "LA", "RGBA", "I;16"])
def test_a_pil_image_of_any_mode_is_drawn_as_its_file_is(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (250, 260), np.uint16))
    else:
        array = np.random.default_rng(0).integers(0, 256, (250, 260, 4), np.uint8)
        image = Image.fromarray(array, "RGBA").convert("RGB" if mode in ("CMYK", "P") else "RGBA").convert(mode)
    file = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    image.save(file)
    assert image.mode == mode
    assert np.array_equal(np.asarray(detkit.draw(image, None)), np.asarray(detkit.draw(file, None)))


def test_images_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageTypeError, match=r"float32"):
        detkit.draw(torch.zeros(3, 20, 20), None)
    with pytest.raises(ImageTypeError, match=r"\(20, 20\)"):
        detkit.draw(np.zeros((20, 20), np.uint8), None)
    with pytest.raises(DataError, match=r"nothing\.jpg"):
        detkit.draw(tmp_path / "nothing.jpg", None)


@pytest.mark.parametrize(
    "box", [[-50, -40, 500, 400], [-30, 100, 60, 200], [350, 250, 460, 360], [500, 500, 600, 600], [90, 90, 90, 90]]
)
def test_a_box_beyond_the_border_keeps_its_frame_and_label_in_the_picture(box: list[float]) -> None:
    picture = detkit.draw(grey(), found(box), class_names=["hippopotamus"])
    assert picture.size == (400, 300)
    # As many pixels of the label's ground and text as where there is room.
    middle = detkit.draw(grey(), found([100, 100, 101, 101]), class_names=["hippopotamus"])
    assert changed(picture).sum() >= changed(middle).sum() - 8


@pytest.mark.parametrize("offset", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_text_is_whole_at_any_fraction_of_a_pixel(offset: float) -> None:
    def label(y: float) -> np.ndarray:
        picture = np.asarray(detkit.draw(grey(), found([100.0, y, 200, 250]), class_names=["ring"]))
        rows = np.nonzero((picture != GREY).any(2)[:, 103])[0]
        return picture[rows[0] : rows[0] + 12, 101:160]

    height = 16
    assert np.array_equal(label(height + offset), label(100.0))


def test_labels_of_objects_close_together_do_not_cover_each_other() -> None:
    size, label = (400, 300), (80, 16)
    frames = [(100, 100, 180, 200), (110, 102, 190, 198), (105, 98, 185, 205), (108, 101, 200, 190)]
    taken: list[tuple[float, float, float, float]] = []
    for frame in frames:
        x, y = place_label(label, frame, size, taken, [other for other in frames if other != frame])
        taken.append((x, y, x + label[0], y + label[1]))
    for a, b in itertools.combinations(taken, 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_a_label_stands_above_unless_a_small_object_is_there() -> None:
    size, label, frame = (400, 300), (60, 16), (100, 100, 200, 200)
    assert place_label(label, frame, size, [], []) == (100, 84)
    assert place_label(label, frame, size, [], [(100, 80, 130, 98)]) == (140, 84)
    assert place_label(label, frame, size, [], [(100, 80, 190, 98), (0, 0, 399, 299)])[1] == 201
    assert place_label(label, (100, 3, 200, 200), size, [], [])[1] == 201  # no room above
    assert place_label(label, (0, 0, 399, 299), size, [], []) == (0, 0)  # only within


def test_colours_of_twenty_classes_are_distinct() -> None:
    colours = [np.array(colour(label), int) for label in range(1, 21)]
    least = min(np.abs(a - b).max() for a, b in itertools.combinations(colours, 2))
    assert least >= 20
    near = min(np.abs(a - b).max() for a, b in itertools.pairwise(colours))
    assert near >= 100
