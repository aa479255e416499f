"""Faster R-CNN as a whole: batches, images of every sort, one pass for losses and detections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import detkit
from detkit.errors import ImageTypeError

from .conftest import MAX_POOLING, PYRAMID, Sample, Small, assert_same, sample

LOSSES = ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"]
ONE_MAP: dict[str, Any] = {}
ALL = pytest.mark.parametrize("options", [ONE_MAP, PYRAMID, MAX_POOLING], ids=["map", "pyramid", "paper"])


def backward(model: detkit.FasterRCNN, batch: list[Sample]) -> dict[str, Tensor]:
    """Losses of a batch, which are finite, as are their gradients; nothing is left without one."""
    model.zero_grad()
    losses = model.losses(batch)
    assert list(losses) == LOSSES
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    return losses


def check(model: detkit.FasterRCNN, found: list[dict[str, Tensor]], batch: list[Sample]) -> None:
    """Detections are inside their image, sorted, of the right types, and of known classes."""
    assert len(found) == len(batch)
    for one, given in zip(found, batch, strict=True):
        boxes, scores, labels = one["boxes"], one["scores"], one["labels"]
        height, width = given["image"].shape[1:]
        assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
        assert boxes.shape == (len(scores), 4) and len(labels) == len(scores)
        assert boxes.isfinite().all() and scores.isfinite().all()
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2) * (1 + 1e-6)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert torch.equal(scores, scores.sort(descending=True).values)
        assert ((labels >= 1) & (labels <= model.num_classes)).all()


@ALL
@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one(detecting: Small, options: dict[str, Any]) -> None:
    model = detecting(**options)
    batch = [sample(64, 96), sample(64, 96), sample(128, 192)]
    together = model.detect(batch)
    check(model, together, batch)
    assert all(len(found["boxes"]) > 2 for found in together)
    for one, found in zip(batch, together, strict=True):
        assert_same(found, model.detect([one])[0])


@ALL
@torch.no_grad()
def test_a_large_image_does_not_notice_the_small_ones_beside_it(detecting: Small, options: dict[str, Any]) -> None:
    """Only images that are padded see the padding: one that fills the batch is as alone."""
    model = detecting(**options)
    batch = [sample(50, 30), sample(96, 96), sample(20, 64)]
    model.preprocessing = model.preprocessing.at(96, 96)
    found = model.detect(batch)
    check(model, found, batch)
    assert_same(found[1], model.detect(batch[1:2])[0])
    assert len(found[1]["boxes"]) > 2


@ALL
@torch.no_grad()
def test_losses_of_a_batch_are_those_of_its_images_together(
    small: Small, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loss is over the number of samples in the batch, so equal images count equally."""
    model = small(**options).eval()
    for stage in ("proposals.region_proposal_network", "heads.roi_heads"):
        monkeypatch.setattr(f"detkit.{stage}.sample", first_ones)
    batch = [sample(64, 64, [[5.0, 5, 40, 40]]), sample(64, 64, [[20.0, 10, 60, 60], [1, 1, 20, 30]], [2, 3])]
    together = model.losses(batch)
    alone = [model.losses([one]) for one in batch]
    for name in LOSSES:
        torch.testing.assert_close(together[name], (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-6)


def first_ones(labels: Tensor, size: int, fraction: float) -> Any:
    """A sample without chance and of the same size for each image."""
    from detkit.training import Samples

    order = torch.cat((torch.where(labels > 0)[0][:4], torch.where(labels == 0)[0]))[:12]
    assert len(order) == 12
    return Samples(order, labels[order] > 0, torch.ones(12, dtype=torch.bool))


@ALL
@pytest.mark.parametrize("objects", [True, False], ids=["some objects", "no object"])
def test_images_with_and_without_objects(small: Small, options: dict[str, Any], objects: bool) -> None:
    model = small(**options)
    batch = [sample(64, 64), sample(80, 64, [[10.0, 10, 50, 60]] * objects), sample(64, 90)]
    losses = backward(model.train(), batch)
    assert losses["loss_objectness"] > 0 and losses["loss_classifier"] > 0
    assert (losses["loss_rpn_box_reg"] > 0) == (losses["loss_box_reg"] > 0) == objects
    assert (model.sampler_stats["roi_foreground"] > 0) == objects
    check(model, model.eval().detect(batch), batch)


@ALL
@pytest.mark.parametrize("size", [(1, 1), (20, 400), (400, 20), (1, 300), (2, 2)])
def test_images_of_extreme_shape(detecting: Small, options: dict[str, Any], size: tuple[int, int]) -> None:
    model = detecting(**options)
    height, width = size
    batch = [sample(height, width, [[0.0, 0, width, height]]), sample(64, 64, [[5.0, 5, 40, 50]])]
    for given in (batch, batch[:1]):
        backward(model.train(), given)
        with torch.no_grad():
            check(model, model.eval().detect(given), given)


@ALL
def test_images_with_no_proposal_left(small: Small, options: dict[str, Any]) -> None:
    model = small(**options, rpn__min_size=1000.0)
    batch = [sample(64, 64, [[5.0, 5, 40, 50]]), sample(64, 64)]
    losses = backward(model.train(), batch)
    assert losses["loss_classifier"] > 0  # the objects themselves are regions still
    assert model.sampler_stats["roi_foreground"] == 0.5 and model.sampler_stats["proposal_recall_50"] == 0
    for training in (True, False):
        found = model.train(training).detect(batch)
        assert [one["boxes"].shape for one in found] == [(0, 4)] * 2
        assert [one["labels"].dtype for one in found] == [torch.int64] * 2
    with torch.no_grad():
        assert list(model.losses(batch)) == LOSSES  # as validation computes them
        losses = model.losses(batch[1:])
    assert losses["loss_classifier"] == losses["loss_box_reg"] == 0


@ALL
@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "l2", "giou"])
def test_every_box_loss_and_a_single_class(small: Small, options: dict[str, Any], kind: str) -> None:
    model = small(**options, rpn__box_loss=kind, roi__box_loss=kind, class_names=["cell"])
    batch = [sample(64, 64, [[5.0, 5, 40, 50]]), sample(64, 64)]
    backward(model.train(), batch)
    check(model, model.eval().detect(batch), batch)


def test_crowds_and_difficult_objects(small: Small) -> None:
    boxes, labels = [[5.0, 5, 40, 40], [30, 30, 60, 60], [0, 40, 20, 64]], [1, 2, 3]
    hard = torch.tensor([False, True, False])
    crowd = torch.tensor([False, False, True])
    batch = [sample(64, 64, boxes, labels, difficult=hard, crowd=crowd)]
    for learn, found, ignored in ((False, [1], [1, 2]), (True, [1, 2], [2])):
        model = small(train_on_difficult=learn)
        images = model.prepare(batch)
        wanted, names, regions = model.targets(batch, images)
        assert names[0].tolist() == found
        assert wanted[0].tolist() == [boxes[i - 1] for i in found]
        assert regions[0].tolist() == [boxes[i] for i in ignored]
        backward(model, batch)


@pytest.mark.parametrize("training", [True, False])
def test_losses_and_detections_share_a_pass_and_leave_the_mode_alone(detecting: Small, training: bool) -> None:
    model = detecting()
    model.train(training)
    model.backbone.body["0"].eval()  # also where parts differ
    modes = [module.training for module in model.modules()]
    batch = [sample(64, 64, [[5.0, 5, 40, 50]])]
    passes: list[int] = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    model.rpn.head.register_forward_hook(lambda *_: passes.append(2))
    encoded = model.encode(batch)
    torch.manual_seed(5)
    losses = model.losses(batch, encoded)
    found = model.detect(batch, encoded)
    assert passes == [1, 2]
    assert [module.training for module in model.modules()] == modes
    if not training:  # in training the second pass would meet other running statistics
        torch.manual_seed(5)
        again = model.losses(batch)
        assert all(torch.equal(losses[name], again[name]) for name in LOSSES)
        assert_same(found[0], model.detect(batch)[0], 0)
        assert_same(found[0], model([batch[0]["image"]])[0], 0)  # which needs nothing but images


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.rand(3, 64, 64), r"torch\.float32"),
        (torch.zeros(64, 64, 3, dtype=torch.uint8), r"\(64, 64, 3\)"),
        (np.zeros((64, 64, 3), dtype=np.uint8), "ndarray"),
    ],
)
@pytest.mark.parametrize("call", [lambda m, b: m.detect(b), lambda m, b: m.losses(b), lambda m, b: m([b[0]["image"]])])
def test_other_images_are_refused(
    small: Small, wrong: object, message: str, call: Callable[[detkit.FasterRCNN, list[Sample]], Any]
) -> None:
    with pytest.raises(ImageTypeError, match=rf"{message}.*uint8 tensor of shape \(3, H, W\)"):
        call(small(), [sample(64, 64, image=wrong)])


def test_a_few_steps_on_one_batch_lower_every_loss(small: Small) -> None:
    model = small(features__transfer="full")
    batch = [sample(64, 64, [[5.0, 5, 40, 50], [40, 30, 60, 60]], [1, 2]), sample(64, 64, [[20.0, 10, 50, 30]], [3])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history: list[dict[str, Tensor]] = []
    for _ in range(60):
        history.append(backward(model, batch))
        optimizer.step()
    first, last = ({k: sum(h[k].item() for h in part) for k in LOSSES} for part in (history[:5], history[-5:]))
    assert all(last[k] < 0.5 * first[k] for k in ("loss_objectness", "loss_rpn_box_reg", "loss_classifier")), (
        first,
        last,
    )
