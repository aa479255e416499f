"""Detections of the second stage: thresholds, suppression, refinement, and whose pixels they are in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detkit.features import ImageBatch
from detkit.types import Regions

from .conftest import NOTHING, classifier, some_boxes


class Table(nn.Module):
    """Answers with given probabilities (R, K) of the classes and deltas (R, K + 1, 4)."""

    def __init__(self, probabilities: list[list[float]], deltas: Tensor | None = None) -> None:
        super().__init__()
        known = torch.tensor(probabilities)
        self.logits = torch.cat((1 - known.sum(1, keepdim=True), known), dim=1).log()
        self.deltas = torch.zeros(*self.logits.shape, 4) if deltas is None else deltas

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits, self.deltas


def batch(size: tuple[int, int] = (100, 200), original: tuple[int, int] | None = None) -> ImageBatch:
    return ImageBatch(torch.zeros(1, 3, 128, 256), [size], [original or size])


def test_scores_above_the_threshold_best_first() -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20], [50, 0, 70, 20], [100, 0, 120, 20]])
    heads = classifier(Table([[0.3, 0.1], [0.05, 0.9], [0.049, 0.2]]), score_threshold=0.05)
    (found,) = heads.detect([], Regions.of([boxes]), batch()).per_image()
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.3, 0.2, 0.1, 0.05])[: len(found["scores"])])
    assert found["labels"].tolist()[:4] == [2, 1, 2, 2]
    assert found["boxes"][:4].tolist() == boxes[[1, 0, 2, 0]].tolist()
    assert (found["scores"] > 0.05).all()
    assert [found[k].dtype for k in ("boxes", "scores", "labels")] == [torch.float32, torch.float32, torch.int64]


def test_suppression_is_per_class() -> None:
    near = torch.tensor([[0.0, 0, 100, 100], [0, 0, 100, 90], [0, 0, 100, 30]])
    heads = classifier(Table([[0.6, 0.3], [0.7, 0.2], [0.5, 0.1]]), nms_threshold=0.5)
    (found,) = heads.detect([], Regions.of([near]), batch()).per_image()
    kept = list(zip(found["labels"].tolist(), found["boxes"][:, 3].tolist(), strict=True))
    assert kept == [(1, 90), (1, 30), (2, 100), (2, 30)]


def test_at_most_so_many_over_all_classes() -> None:
    boxes = torch.stack([torch.tensor([10.0 * i, 0, 10 * i + 9, 9]) for i in range(5)])
    heads = classifier(Table([[0.1 + i / 100, 0.3 - i / 100] for i in range(5)]), max_detections=6)
    (found,) = heads.detect([], Regions.of([boxes]), batch()).per_image()
    assert found["labels"].tolist() == [2, 2, 2, 2, 2, 1]
    torch.testing.assert_close(found["scores"], torch.tensor([0.3, 0.29, 0.28, 0.27, 0.26, 0.14]))


def test_boxes_are_refined_by_the_deltas_of_their_class_and_clipped() -> None:
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1] = torch.tensor([5.0, 0, 0, 0])  # 5 / 10 of the width to the right
    deltas[0, 2] = torch.tensor([0.0, -10, 0, 5 * torch.log(torch.tensor(2.0))])  # up by its height, then twice as high
    heads = classifier(Table([[0.3, 0.6]], deltas))
    (found,) = heads.detect([], Regions.of([torch.tensor([[10.0, 10, 50, 30]])]), batch()).per_image()
    torch.testing.assert_close(found["boxes"], torch.tensor([[10.0, 0, 50, 20], [30, 10, 70, 30]]))


def test_boxes_are_in_pixels_of_the_original_image() -> None:
    heads = classifier(Table([[0.9, 0.05]]))
    (found,) = heads.detect(
        [], Regions.of([torch.tensor([[20.0, 30, 500, 60]])]), batch((100, 200), original=(50, 400))
    ).per_image()
    torch.testing.assert_close(found["boxes"], torch.tensor([[40.0, 15, 400, 30]]))


def test_boxes_that_clipping_leaves_nothing_of_are_dropped() -> None:
    boxes = torch.tensor([[210.0, 10, 250, 50], [199.995, 0, 230, 20], [100, 0, 199, 20]])
    (found,) = classifier(Table([[0.9], [0.8], [0.7]])).detect([], Regions.of([boxes]), batch()).per_image()
    assert found["boxes"].tolist() == [[100, 0, 199, 20]]


def test_the_best_of_each_class_are_those_of_each_image() -> None:
    """An image with fewer regions than that takes none of another's."""
    apart = torch.stack([torch.tensor([20.0 * i, 0, 20 * i + 9, 9]) for i in range(3)])
    heads = classifier(Table([[0.5], [0.7], [0.8], [0.9]]), max_candidates=2)
    two = ImageBatch(torch.zeros(2, 3, 128, 128), [(100, 100)] * 2, [(100, 100)] * 2)
    first, second = heads.detect([], Regions.of([apart[:1], apart]), two).per_image()
    torch.testing.assert_close(first["scores"], torch.tensor([0.5]))
    torch.testing.assert_close(second["scores"], torch.tensor([0.9, 0.8]))


def test_images_of_a_batch_do_not_mix() -> None:
    proposals = [some_boxes(7, 90), NOTHING, some_boxes(4, 90)]
    heads = classifier(score_threshold=0.0, nms_threshold=1.0)
    three = ImageBatch(torch.zeros(3, 3, 128, 128), [(100, 100)] * 3, [(100, 100), (50, 50), (200, 200)])
    together = heads.detect([], Regions.of(proposals), three).per_image()
    assert [len(found["boxes"]) for found in together] == [21, 0, 12]
    assert together[1]["boxes"].shape == (0, 4)
    for i in range(3):
        one = ImageBatch(torch.zeros(1, 3, 128, 128), [(100, 100)], three.original_sizes[i : i + 1])
        (alone,) = heads.detect([], Regions.of(proposals[i : i + 1]), one).per_image()
        for key, value in alone.items():
            torch.testing.assert_close(together[i][key], value)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        (1, [(1, 0), (2, 2)]),
        (2, [(1, 0), (2, 2), (2, 1)]),
        *((many, [(1, 0), (1, 2), (2, 2), (2, 1)]) for many in (3, 99)),
    ],
)
def test_only_the_best_of_each_class_enter_suppression(candidates: int, expected: list[tuple[int, int]]) -> None:
    """Fast R-CNN's test: of two near boxes one is suppressed, but it has taken another one's place."""
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 19], [100, 0, 120, 20]])
    table = Table([[0.5, 0.1], [0.4, 0.2], [0.3, 0.3]])
    (found,) = classifier(table, max_candidates=candidates).detect([], Regions.of([boxes]), batch()).per_image()
    rows = [boxes.tolist().index(box) for box in found["boxes"].tolist()]
    assert sorted(zip(found["labels"].tolist(), rows, strict=True)) == sorted(expected)
    (nothing,) = classifier(max_candidates=candidates).detect([], Regions.of([NOTHING]), batch()).per_image()
    assert nothing["boxes"].shape == (0, 4)


def test_a_region_is_refined_by_its_most_probable_class() -> None:
    """What `refine` gives are the best detections of the regions where nothing is suppressed or left out."""
    heads = classifier(score_threshold=0.0, nms_threshold=1.0)
    proposals = some_boxes(9, 90)
    refined = heads.refine([], Regions.of([proposals]))
    assert refined.boxes.shape == (9, 4) and refined.labels.dtype == torch.int64
    wide = ImageBatch(torch.zeros(1, 3, 1, 1), [(10**6, 10**6)], [(10**6, 10**6)])
    for i in range(9):
        alone = heads.detect([], Regions.of([proposals[i : i + 1]]), wide).per_image()[0]
        assert len(alone["scores"]) == 3
        assert refined.labels[i] == alone["labels"][0]
        torch.testing.assert_close(refined.scores[i], alone["scores"][0])
        torch.testing.assert_close(refined.boxes[i].clamp(min=0), alone["boxes"][0])
    none = heads.refine([], Regions.of([NOTHING]))
    assert none.boxes.shape == (0, 4) and none.labels.shape == (0,)
