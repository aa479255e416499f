"""Recall of proposals against torchvision's IoU, and the metric's ways with batches, ids and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_convert, box_iou

from detkit.errors import ConfigError, DataError
from detkit.evaluation.proposal_metric import ProposalRecall
from detkit.evaluation.proposal_recall import proposal_recall
from tests.evaluation.test_distributed import as_bits, some_images

COUNTS = (1, 3, 10)


def random_images(seed: int) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Proposals and targets of images; some have none of the one or the other."""
    return [(found["boxes"], target) for found, target in some_images(5, seed)]


def plain(images: list[tuple[torch.Tensor, dict[str, Any]]], classes: int) -> dict[str, Any]:
    best, labels = [], []
    for proposals, target in images:
        keep = ~(target["difficult"] | target["crowd"])
        iou = box_iou(target["boxes"][keep].double(), proposals.double())
        best.append(torch.stack([torch.nn.functional.pad(iou[:, :n], (0, 1)).amax(1) for n in COUNTS], dim=1))
        labels.append(target["labels"][keep])
    overlaps, label = torch.cat(best), torch.cat(labels)
    recall = torch.stack([(overlaps >= t).double().mean(0) for t in np.linspace(0.5, 0.95, 10)])
    abo = torch.stack([overlaps[label == k].mean(0) for k in range(1, classes + 1)])
    return {
        "recall": recall,
        "average_recall": recall.mean(0),
        "recall_50": (overlaps >= 0.5).double().mean(0),
        "recall_70": (overlaps >= 0.7).double().mean(0),
        "abo": abo,
        "mabo": abo.nanmean(0),
    }


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_equal_to_torchvisions_iou(seed: int) -> None:
    images = random_images(seed)
    expected = plain(images, classes=3)
    metric = ProposalRecall(["cat", "dog", "cow"], COUNTS)
    metric.update(*map(list, zip(*images[:2], strict=True)))
    metric.update(*map(list, zip(*images[2:], strict=True)))
    result = metric.compute()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=1e-12, equal_nan=True)

    def flat(parts: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        boxes = box_convert(torch.cat(parts).double(), "xyxy", "xywh").numpy()
        return boxes, np.cumsum([0, *map(len, parts)])

    boxes, offsets = flat([target["boxes"] for _, target in images])
    proposals, proposal_offsets = flat([boxes for boxes, _ in images])
    labels, difficult, crowd = (
        torch.cat([t[key] for _, t in images]).numpy() for key in ("labels", "difficult", "crowd")
    )
    from_arrays = proposal_recall(
        boxes, labels, offsets, proposals, proposal_offsets, 3, COUNTS, ignored=difficult | crowd
    )
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(from_arrays, name), value, rtol=0, atol=1e-12)


def test_worked_by_hand() -> None:
    target = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10]]),
        "labels": torch.tensor([1, 2, 2]),
        "difficult": torch.tensor([False, False, True]),
    }
    proposals = torch.tensor([[0.0, 0, 10, 6], [20, 20, 30, 25], [0, 0, 10, 9]])
    metric = ProposalRecall(["cat", "dog", "cow"], counts=(1, 2, 3), iou_thresholds=(0.5, 0.9))
    metric.update([proposals], [target])
    result = metric.compute()
    nan = float("nan")
    assert result["recall"].tolist() == [[0.5, 1, 1], [0, 0, 0.5]]
    assert result["average_recall"].tolist() == [0.25, 0.5, 0.75]
    assert result["recall_70"].tolist() == [0, 0, 0.5]
    torch.testing.assert_close(
        result["abo"], torch.tensor([[0.6, 0.6, 0.9], [0, 0.5, 0.5], [nan, nan, nan]]).double(), equal_nan=True
    )
    torch.testing.assert_close(result["mabo"], torch.tensor([0.3, 0.55, 0.7]).double())
    assert (result["num_images"], result["num_objects"], result["num_proposals"].tolist()) == (1, 2, [1, 2, 3])
    assert result["counts"].tolist() == [1, 2, 3] and result["classes"].tolist() == [1, 2, 3]


def test_proposals_with_scores_are_put_in_order() -> None:
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([1])}
    boxes = torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 10]])
    for scores, expected in (([0.9, 0.1], 0), ([0.1, 0.9], 1)):
        metric = ProposalRecall(counts=[1])
        metric.update([{"boxes": boxes, "scores": torch.tensor(scores)}], [target])
        result = metric.compute()
        assert result["mabo"].tolist() == [expected]
        assert result["abo"].shape == (1, 1) and result["recall"].shape == (10, 1)  # not squeezed


def test_images_count_once() -> None:
    images = random_images(1)
    once, twice = ProposalRecall(counts=COUNTS), ProposalRecall(counts=COUNTS)
    once.update(*map(list, zip(*images, strict=True)))
    for pair in (*images[::-1], *images):
        twice.update(*([part] for part in pair))
    with pytest.warns(UserWarning, match="5 images came again"):
        assert as_bits(twice.compute()) == as_bits(once.compute())
    twice.reset()
    assert twice.compute()["num_images"] == 0


def test_without_objects_all_is_nan() -> None:
    metric = ProposalRecall(["cat"], COUNTS)
    empty = metric.compute()
    metric.update([torch.zeros(4, 4)], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}])
    result = metric.compute()
    for numbers in (empty, result):
        assert all(numbers[name].isnan().all() for name in ("recall", "average_recall", "recall_50", "abo", "mabo"))
    assert empty["num_proposals"].isnan().all() and result["num_proposals"].tolist() == [1, 3, 4]


TARGET = {"boxes": torch.zeros(1, 4), "labels": torch.tensor([1]), "image_id": 7}


@pytest.mark.parametrize(
    ("proposals", "message"),
    [
        (torch.zeros(3), r"image 7: proposals of shape \(3,\)"),
        (torch.full((1, 4), float("nan")), "image 7: proposals that are not finite"),
        ({"scores": torch.zeros(1)}, "image 7: proposals have no 'boxes'"),
        ({"boxes": torch.zeros(2, 4), "scores": torch.zeros(1)}, "image 7: 2 proposals but scores of shape"),
    ],
)
def test_wrong_proposals_are_refused(proposals: Any, message: str) -> None:
    metric = ProposalRecall(["cat"])
    with pytest.raises(DataError, match=message):
        metric.update([proposals], [TARGET])
    with pytest.raises(DataError, match="one of each"):
        metric.update([], [TARGET])
    with pytest.raises(DataError, match="image 7: target has the label 2"):
        metric.update([torch.zeros(0, 4)], [TARGET | {"labels": torch.tensor([2])}])
    assert metric.compute()["num_images"] == 0


@pytest.mark.parametrize("counts", [(), (0, 1), (2, 1), (1, 1)])
def test_counts_must_ascend(counts: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="numbers of proposals"):
        ProposalRecall(counts=counts)


@pytest.mark.parametrize("thresholds", [(), (0.0,), (1.1,)])
def test_thresholds_must_be_ious(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="IoU thresholds"):
        ProposalRecall(iou_thresholds=thresholds)
