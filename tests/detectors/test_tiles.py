from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detkit.detectors.tiles import TileSettings, detect_by_tiles, tiles_of
from detkit.errors import ConfigError
from detkit.types import Batch, Detections


class Finder:
    """Finds rectangles of one colour each: red value = number of the object, green value = label."""

    def __init__(self, largest: int = 10**6) -> None:
        self.largest, self.calls = largest, []

    def detect(self, batch: Batch) -> list[Detections]:
        self.calls.append([tuple(sample["image"].shape[-2:]) for sample in batch])
        return [self._one(sample["image"]) for sample in batch]

    def _one(self, image: Tensor) -> Detections:
        rows = []
        for number in image[0].unique().tolist():
            y, x = torch.where(image[0] == number)
            box = [x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1]
            if number and max(box[2] - box[0], box[3] - box[1]) <= self.largest:
                rows.append((box, 0.5 + len(x) / 10**6, int(image[1, y[0], x[0]])))
        boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
        scores = torch.tensor([row[1] for row in rows])
        return Detections({"boxes": boxes, "scores": scores, "labels": torch.tensor([row[2] for row in rows]).long()})


def image_of(objects: list[tuple[int, int, int, int]], size: tuple[int, int] = (300, 400)) -> Tensor:
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate(objects, 1):
        image[0, y1:y2, x1:x2], image[1, y1:y2, x1:x2] = number, number % 2 + 1
    return image


@given(st.integers(1, 500), st.integers(1, 500), st.integers(32, 200), st.floats(0, 0.9))
def test_tiles_cover_the_image_and_overlap_as_asked(height: int, width: int, size: int, overlap: float) -> None:
    tiles = tiles_of(height, width, TileSettings(size, overlap))
    covered = torch.zeros(height, width, dtype=torch.bool)
    for x1, y1, x2, y2 in tiles:
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        assert x2 - x1 == min(size, width) and y2 - y1 == min(size, height)
        covered[y1:y2, x1:x2] = True
    assert covered.all() and len(set(tiles)) == len(tiles)
    columns = sorted({tile[0] for tile in tiles})
    for left, right in pairwise(columns):
        assert left + size - right >= int(size * overlap)


def test_objects_at_the_seams_are_found_once_and_whole() -> None:
    objects = [(10, 10, 40, 40), (90, 20, 120, 60), (150, 90, 200, 130), (60, 200, 100, 290), (370, 270, 400, 300)]
    found = detect_by_tiles(Finder().detect, [{"image": image_of(objects)}], TileSettings(128, 0.4))[0]
    assert sorted(map(tuple, found["boxes"].int().tolist())) == sorted(objects)
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


def test_an_object_larger_than_a_tile_is_found_in_the_image_as_a_whole() -> None:
    found = detect_by_tiles(Finder().detect, [{"image": image_of([(20, 20, 380, 250)])}], TileSettings(100))[0]
    assert found["boxes"].tolist() == [[20, 20, 380, 250]]


def test_parts_that_no_tile_has_whole_are_joined() -> None:
    # 100 pixels wide, in tiles of 128 that overlap by 64: whole in none of them if only parts up to 90 are found.
    finder = Finder(largest=90)
    found = detect_by_tiles(finder.detect, [{"image": image_of([(50, 10, 150, 40)])}], TileSettings(128, 0.5))[0]
    assert found["boxes"].tolist() == [[50, 10, 150, 40]]


@pytest.mark.parametrize("overlap", [0.0, 0.2])
def test_parts_that_meet_at_a_seam_are_joined(overlap: float) -> None:
    objects = [(60, 10, 140, 40), (200, 50, 240, 150), (250, 60, 380, 300)]
    finder = Finder(largest=95)  # which keeps the last one, and the whole image, from helping
    found = detect_by_tiles(finder.detect, [{"image": image_of(objects)}], TileSettings(100, overlap))[0]
    assert sorted(map(tuple, found["boxes"].int().tolist()))[:2] == objects[:2]


def test_parts_of_other_heights_stay_apart() -> None:
    objects = [(60, 10, 100, 40), (200, 200, 210, 210), (100, 35, 140, 90)]  # the first and the third meet at x = 100
    found = detect_by_tiles(Finder(largest=45).detect, [{"image": image_of(objects)}], TileSettings(100, 0.0))[0]
    assert (60, 10, 100, 40) in map(tuple, found["boxes"].int().tolist())


def test_neighbours_of_one_class_stay_apart() -> None:
    objects = [(100, 10, 126, 40), (200, 200, 210, 210), (130, 10, 156, 40)]  # the first and the third
    found = detect_by_tiles(Finder().detect, [{"image": image_of(objects)}], TileSettings(128, 0.3))[0]
    assert sorted(map(tuple, found["boxes"].int().tolist())) == sorted(objects)


def test_images_that_fit_are_detected_together_and_without_a_change() -> None:
    small = [{"image": image_of([(5, 5, 20, 30)], size)} for size in ((100, 90), (128, 128))]
    large = {"image": image_of([(5, 5, 20, 30)])}
    finder = Finder()
    found = detect_by_tiles(finder.detect, [small[0], large, small[1]], TileSettings(128))
    assert finder.calls[0] == [(100, 90), (128, 128)] and finder.calls[1] == [(300, 400)]
    assert all(len(call) <= 3 and set(call) == {(128, 128)} for call in finder.calls[2:])
    assert [result["boxes"].tolist() for result in found] == [[[5, 5, 20, 30]]] * 3


def test_proposals_go_to_the_tiles_they_lie_in() -> None:
    seen: list[Tensor] = []

    def detect(batch: Batch) -> list[Detections]:
        seen.extend(sample["proposals"] for sample in batch)
        empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
        return [Detections(empty) for _ in batch]

    proposals = torch.tensor([[10.0, 10.0, 30.0, 30.0], [110.0, 10.0, 150.0, 30.0], [0.0, 0.0, 200.0, 100.0]])
    sample = {"image": torch.zeros(3, 100, 200, dtype=torch.uint8), "proposals": proposals}
    found = detect_by_tiles(detect, [sample], TileSettings(100, 0.2))[0]
    assert len(found["boxes"]) == 0
    assert torch.equal(seen[0], proposals)
    assert seen[1].tolist() == [[10, 10, 30, 30], [0, 0, 100, 100]]  # x from 0 to 100: half of the last one
    assert seen[2].tolist() == [[30, 10, 70, 30], [0, 0, 100, 100]]  # x from 80
    assert seen[3].tolist() == [[10, 10, 50, 30], [0, 0, 100, 100]]  # x from 100


def test_wrong_settings_are_told() -> None:
    for wrong in ((31, 0.2), (100, 0.95), (100, -0.1)):
        with pytest.raises(ConfigError, match="must be at least"):
            TileSettings(*wrong)
