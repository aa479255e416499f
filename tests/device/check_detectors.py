"""Each detector on a device: as on the CPU, without tensors of another device, and with few waits.

The device is simulated unless DETKIT_TEST_DEVICE names one: see tested_device.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

import detkit
from detkit.data import Shapes
from detkit.detectors import alternating
from detkit.detectors.base import Detector
from detkit.engine.module import LossGuard
from detkit.errors import TrainingError
from detkit.evaluation import MeanAveragePrecision
from detkit.settings import construct
from detkit.types import Batch, Detections
from tests.detectors.conftest import MAX_POOLING, OPTIONS, PYRAMID, assert_same, sample
from tests.detectors.rcnn.rcnn_parts import boxes_in, with_proposals
from tests.detectors.rcnn.rcnn_parts import detecting as rcnn

from .tested_device import DEVICE, REAL, counted_waits, on_device, trainer, waits_at_most

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

#: The most waits of the host in a training step, and in the detection of a batch of any size.
TRAINING, DETECTION = 2, 4

FPN = {name: value for name, value in PYRAMID.items() if name.startswith("features__")}
PAPER: dict[str, Any] = {
    "roi__pooling": "max",
    "roi__head": "top",
    "box_normalization": "per_class",
    "dedup_stride": 8,
    "detection__max_candidates": 100,
}
FASTER: dict[str, dict[str, Any]] = {
    "faster_mlp": {},
    "faster_conv": {"roi__head": "conv"},
    "faster_top": MAX_POOLING,
    "faster_fpn": PYRAMID,
    "faster_fpn_conv": PYRAMID | {"roi__head": "conv", "rpn__box_loss": "giou", "roi__box_loss": "giou"},
    "faster_alternating": PYRAMID | {"training_scheme": "alternating"},
}
FAST: dict[str, dict[str, Any]] = {
    "fast_mlp": {},
    "fast_fpn": FPN,
    "fast_paper": PAPER,
    "fast_sizes": PAPER | {"test_sizes": [48, 64, 128], "test_max_size": 192},
}
RCNN = {"rcnn_softmax": "none", "rcnn_svm": "all"}
ONE_PASS = [*FASTER, *FAST]
ALL = [*ONE_PASS, *RCNN]


def build(name: str) -> Detector:
    """The same name gives the same weights; scores differ from place to place, as after training."""
    if name in RCNN:
        return rcnn(RCNN[name])
    torch.manual_seed(0)
    if name in FASTER:
        model = construct(detkit.FasterRCNN, OPTIONS | FASTER[name])
        torch.nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.5)
    else:
        common = {option: value for option, value in OPTIONS.items() if not option.startswith(("rpn__", "anchors__"))}
        model = construct(detkit.FastRCNN, common | FAST[name])
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    torch.nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    if name == "fast_paper":
        model.measure_boxes((one["proposals"], one["boxes"], one["labels"]) for one in batch(2))
    return model


def batch(images: int) -> Batch:
    """Two images, or the first; with proposals, a crowd and a difficult object."""
    torch.manual_seed(1)
    flags = [torch.tensor(values) for values in ([False, True, False], [False, False, True])]
    made = [
        sample(
            64,
            96,
            [[5.0, 5, 40, 50], [50, 20, 90, 60], [0, 0, 20, 20]],
            [1, 2, 1],
            **dict(zip(("crowd", "difficult"), flags, strict=True)),
        ),
        sample(100, 80, [[10.0, 20, 60, 70]], [3]),
    ]
    for one in made:
        height, width = one["image"].shape[1:]
        near = one["boxes"].repeat(6, 1) + torch.randn(6 * len(one["boxes"]), 4)
        one["proposals"] = torch.cat((near, boxes_in(height, width, 40))).clamp(min=0)
    return made[:images]


def learn(model: Detector, images: Batch) -> dict[str, Tensor]:
    """The losses of a batch and their gradients, from the same random numbers."""
    torch.manual_seed(2)
    losses = model.train().losses(images)
    sum(losses.values()).backward()
    return losses | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ALL)
def test_a_step_is_the_cpus_and_waits_at_most_twice(name: str) -> None:
    expected = learn(build(name), batch(2))
    with on_device():
        model = build(name).to(DEVICE)
        images = model.transfer_batch_to_device(batch(2), DEVICE, 0)
        with waits_at_most(TRAINING):
            found = learn(model, images)
        assert all(value.device == DEVICE for value in found.values())
        assert all(value.device == DEVICE for value in model.sampler_stats.values())
    assert found.keys() == expected.keys()
    if REAL:  # its samplers draw other boxes
        assert all(value.isfinite().all() for value in found.values())
        return
    # Crops are resized by OpenCV on a CPU, and by PyTorch on a device.
    tolerance = {"rtol": 0.05, "atol": 0.05} if name in RCNN else {"rtol": 1e-4, "atol": 1e-5}
    for key, value in found.items():
        torch.testing.assert_close(value.cpu(), expected[key], **tolerance, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_detections_are_the_cpus_with_at_most_four_waits(name: str, images: int) -> None:
    expected = build(name).eval().detect(batch(images))
    assert all(len(each["boxes"]) > 2 for each in expected)
    with on_device():
        model = build(name).to(DEVICE).eval()
        given = model.transfer_batch_to_device(batch(images), DEVICE, 0)
        with waits_at_most(DETECTION):
            found = model.detect(given)
        if name not in RCNN:
            for each, other in zip(found, expected, strict=True):
                assert_same(each, other)
        with waits_at_most(0):  # detections are on the CPU, and so is the metric
            model.metric.update(found, given)
    metric = MeanAveragePrecision(class_names=model.class_names)
    metric.update(expected, batch(images))
    assert model.metric.compute()["map"].item() == pytest.approx(metric.compute()["map"].item(), abs=0.05)


@pytest.mark.parametrize("name", ["faster_fpn", "fast_fpn"])
@torch.no_grad()
def test_validation_waits_as_often_as_a_step_and_a_detection(name: str) -> None:
    with on_device():
        model = build(name).to(DEVICE).eval()
        images = model.transfer_batch_to_device(batch(2), DEVICE, 0)
        with waits_at_most(TRAINING + DETECTION):
            encoded = model.encode(images)
            model.losses(images, encoded)
            model.detect(images, encoded)


@pytest.mark.parametrize("name", ["faster_mlp", "faster_fpn"])
def test_predict_gives_detections_on_the_cpu(name: str) -> None:
    images = [one["image"] for one in batch(2)]
    expected = build(name).predict(images, batch_size=2)
    with on_device():
        model = build(name).to(DEVICE)
        with waits_at_most(DETECTION):
            found = model.predict(images, batch_size=2)
        tiled = model.predict(images[0], tiles=64, agnostic_nms=True, classes=["star"])
    assert type(tiled["boxes"]) is Tensor and len(tiled["boxes"])
    for each, other in zip(found, expected, strict=True):
        assert_same(each, other)


def test_losses_that_are_kept_are_read_with_one_wait() -> None:
    guard, images = LossGuard(interval=3), [{"image_id": 7}]
    with on_device():
        with waits_at_most(1):
            for value in (1.0, 2.0, 3.0):
                guard.watch({"loss_classifier": torch.full((), value, device=DEVICE)}, images)
        guard.watch({"loss_classifier": torch.full((), torch.nan, device=DEVICE)}, images)
        with pytest.raises(TrainingError, match=r"loss_classifier became NaN .* \[7\]"):
            guard.check()


# -- whole runs ----------------------------------------------------------------------------------


class StepWaits(L.Callback):
    """Counts the waits of each training step: the optimizer's and Lightning's too."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, model: L.LightningModule, *_: Any) -> None:
        assert model.device == DEVICE
        self._within = counted_waits()
        self._waits = self._within.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self._within.__exit__(None, None, None)
        assert self._waits.total() <= TRAINING, self._waits
        self.steps.append(self._waits.total())


@pytest.mark.parametrize("name", ["faster_fpn", "faster_alternating", "fast_paper", "rcnn_softmax"])
def test_a_fit_its_checkpoint_and_a_test(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = Shapes(str(tmp_path / "shapes"), 8, 3, 3, 64, batch_size=2, num_workers=0)
    data.prepare_data()
    if name not in FASTER:
        with_proposals(data)
    waits, path = StepWaits(), tmp_path / "last.ckpt"
    steps = len(alternating.SHARES) * 2
    with on_device():
        model = build(name)
        fit = trainer(max_steps=steps, callbacks=[waits])
        fit.fit(model, datamodule=data)
        assert len(waits.steps) == steps
        assert fit.callback_metrics["val/map"] >= 0
        fit.save_checkpoint(path)
        loaded = detkit.load(path, device=str(DEVICE))
        learnt = {key: value.cpu() for key, value in model.state_dict().items() if not key.startswith("rpn_backbone.")}
        kept = loaded.state_dict()
        assert [key for key, value in learnt.items() if not torch.equal(value, kept[key].cpu())] == []
        result = trainer().test(loaded, datamodule=data, verbose=False)[0]
    plain = detkit.load(path)
    found: Detections = plain.predict(batch(1)[0]["image"])
    assert type(found["boxes"]) is Tensor and 0 <= result["test/map"] <= 1


# -- mistakes that are to be seen ----------------------------------------------------------------


class WithWait(detkit.FasterRCNN):
    def losses(self, batch: Batch, encoded: Any = None) -> dict[str, Tensor]:
        losses = super().losses(batch, encoded)
        return {name: loss for name, loss in losses.items() if loss.item() > 0}


class OnTheHost(detkit.FasterRCNN):
    def losses(self, batch: Batch, encoded: Any = None) -> dict[str, Tensor]:
        weights = torch.ones(len(self.class_names))
        return {name: (loss * weights).mean() for name, loss in super().losses(batch, encoded).items()}


def test_a_planted_wait_is_seen_with_its_line() -> None:
    with on_device():
        model = construct(WithWait, OPTIONS).to(DEVICE)
        images = model.transfer_batch_to_device(batch(2), DEVICE, 0)
        planted = r"4 x [\w ]+ in tests/device/check_detectors.py:\d+"
        with pytest.raises(AssertionError, match=planted), waits_at_most(TRAINING):
            model.losses(images)


def test_a_planted_tensor_of_the_host_is_seen_with_its_line() -> None:
    with on_device():
        model = construct(OnTheHost, OPTIONS).to(DEVICE)
        images = model.transfer_batch_to_device(batch(2), DEVICE, 0)
        line = "" if REAL else r": .*shape \(5,\).* tests/device/check_detectors.py:"
        with pytest.raises(RuntimeError, match=f"on the same device{line}"):
            model.losses(images)
