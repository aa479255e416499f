"""Targets normalised class by class: what is learnt, what is detected, and where the statistics are kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detkit.boxes import BoxCodec, box_iou
from detkit.features import ImageBatch
from detkit.heads import RoIHeads
from detkit.training import BoxStatistics
from detkit.types import Regions

from .conftest import classifier, losses_of, some_boxes
from .test_roi_heads import fixed_sample

MEAN = torch.tensor([[0.0] * 4, [0.1, -0.2, 0.3, 0.4], [0.0, 0.1, -0.1, 0.2], [-0.3, 0.0, 0.2, 0.1]])
STD = torch.tensor([[1.0] * 4, [0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.2, 0.1], [0.5, 0.4, 0.3, 0.2]])


def normalizing(**settings: object) -> RoIHeads:
    heads = classifier(**settings)
    heads.normalize_per_class(3)
    heads.normalizer.set(BoxStatistics(MEAN, STD, torch.tensor([0, 5, 6, 7])))
    return heads


def test_the_loss_equals_a_plain_reading_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smooth L1 (beta 1) of normalised deltas of the object's own class, over the number of regions."""
    truths, labels = torch.tensor([[20.0, 20, 100, 90], [110, 60, 180, 190]]), torch.tensor([3, 1])
    proposals = torch.cat((truths.repeat(8, 1) + torch.randn(16, 4) * 6, some_boxes(15)))
    heads = normalizing(box_loss="smooth_l1", beta=1.0)
    monkeypatch.setattr("detkit.heads.roi_heads.sample", fixed_sample)
    losses, _ = losses_of(heads, [proposals], [truths], [labels])
    regions, total = torch.cat((proposals, truths)), torch.zeros(())
    foreground = 0
    for roi in regions:
        iou = box_iou(truths, roi[None])[:, 0]
        if iou.max() < 0.5:
            continue
        truth, label = truths[iou.argmax()], int(labels[iou.argmax()])
        foreground += 1
        size, wanted = roi[2:] - roi[:2], truth[2:] - truth[:2]
        shift = ((truth[:2] + truth[2:]) / 2 - (roi[:2] + roi[2:]) / 2) / size
        target = (torch.cat((shift, (wanted / size).log())) - MEAN[label]) / STD[label]
        predicted = heads.box_predictor(roi[None] / 100)[1][0, label]
        total += F.smooth_l1_loss(predicted, target, reduction="sum")
    assert foreground > 10
    torch.testing.assert_close(losses["loss_box_reg"], total / len(regions), rtol=1e-4, atol=1e-5)


def test_detections_undo_the_normalisation() -> None:
    class Told(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = torch.tensor([[0.1, 0.3, 0.4, 0.2]]).log()
            return logits, torch.tensor([1.0, -1, 2, 0.5]).expand(1, 4, 4)

    heads = normalizing(nms_threshold=1.0)
    heads.box_predictor = Told()
    region = torch.tensor([[40.0, 30, 90, 70]])
    (found,) = heads.detect(
        [], Regions.of([region]), ImageBatch(torch.zeros(1, 3, 128, 256), [(100, 200)], [(100, 200)])
    ).per_image()
    assert found["labels"].tolist() == [2, 1, 3]
    for box, label in zip(found["boxes"], found["labels"].tolist(), strict=True):
        dx, dy, dw, dh = (torch.tensor([1.0, -1, 2, 0.5]) * STD[label] + MEAN[label]).tolist()
        x, y = 65 + dx * 50, 50 + dy * 40
        half = torch.tensor([50 * torch.tensor(dw).exp() / 2, 40 * torch.tensor(dh).exp() / 2])
        expected = torch.cat((torch.tensor([x, y]) - half, torch.tensor([x, y]) + half))
        torch.testing.assert_close(box, expected.clamp(min=0).minimum(torch.tensor([200.0, 100, 200, 100])))


@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
def test_perfect_predictions_have_no_loss(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truths, labels = torch.tensor([[20.0, 20, 100, 90]]), torch.tensor([2])
    proposals = torch.tensor([[25.0, 15, 110, 90], [18, 20, 90, 95]])
    heads = normalizing(box_loss=kind)
    monkeypatch.setattr("detkit.heads.roi_heads.sample", fixed_sample)

    class Perfect(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            deltas = (BoxCodec().encode(truths, x * 100) - MEAN[2]) / STD[2]
            return torch.zeros(len(x), 4), deltas[:, None].expand(-1, 4, 4)

    heads.box_predictor = Perfect()
    losses, _ = losses_of(heads, [proposals], [truths], [labels])
    assert losses["loss_box_reg"] < 1e-5


def test_statistics_are_kept_beside_the_weights() -> None:
    heads, other = normalizing(), classifier()
    other.normalize_per_class(3)
    assert not other.normalizer.known
    other.load_state_dict(heads.state_dict())
    assert other.normalizer.known
    assert torch.equal(other.normalizer.std, STD) and torch.equal(other.normalizer.mean, MEAN)
    assert not [name for name, _ in heads.named_parameters() if "normalizer" in name]
    assert not [name for name in classifier().state_dict() if "normalizer" in name]
