"""R-CNN as a detector: what a step learns from, how fast, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import detkit
from detkit.boxes import box_iou
from detkit.data import VOC
from detkit.detectors import ProposalSettings
from detkit.errors import ConfigError
from detkit.features import warping
from detkit.settings import construct
from tests.detectors.conftest import Sample, assert_same, sample

from .rcnn_parts import boxes_in, detecting, rcnn, with_proposals

pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`")


def given(height: int, width: int, boxes: list[list[float]] | None = None, count: int = 30, **fields: Any) -> Sample:
    """A sample with proposals: some near its objects, some anywhere."""
    made = sample(height, width, boxes, **fields)
    near = made["boxes"].repeat(8, 1) + torch.randn(8 * len(made["boxes"]), 4)
    return {"proposals": torch.cat((near, boxes_in(height, width, count))).clamp(min=0)} | made


def drawn_for(model: detkit.RCNN, batch: list[Sample]) -> tuple[list[Tensor], list[Tensor]]:
    """Of each image the boxes that a step sees, and their classes."""
    rois, labels = model._sample(batch, model.encode(batch))
    return rois, list(labels.split([len(r) for r in rois]))


def test_thirty_two_foreground_and_ninety_six_background_of_all_images_together() -> None:
    model = rcnn(sampling__batch_size=128, proposals=ProposalSettings(max_boxes=(None, None))).train()
    truth = [[5.0, 5, 40, 50], [30, 30, 60, 62]]
    rich = given(64, 64, truth, labels=[2, 5], count=200)
    rich["proposals"] = torch.cat((rich["proposals"], rich["boxes"].repeat(20, 1)))
    poor = sample(64, 80, [[10.0, 10, 30, 30]], labels=[4]) | {"proposals": boxes_in(64, 80, 100)}
    batch = [rich, poor, sample(64, 64) | {"proposals": boxes_in(64, 64, 50)}]
    seen = set()
    for _ in range(5):
        rois, labels = drawn_for(model, batch)
        every = torch.cat(labels)
        assert len(every) == 128 and (every > 0).sum() == 32
        # Not a share of each image: the one without objects gives background only.
        assert not labels[2].any() and len(labels[2]) > 0
        seen.add(tuple(len(part) for part in labels))
        for one, boxes, found in zip(batch, rois, labels, strict=True):
            known = torch.cat((one["boxes"], one["proposals"]))
            assert (box_iou(boxes, known).amax(1) > 0.9999).all()
            if not len(one["boxes"]):
                continue
            iou, nearest = box_iou(boxes, one["boxes"]).max(1)
            assert torch.equal(found, torch.where(iou >= 0.5, one["labels"][nearest], 0))
    assert len(seen) > 1


def test_ground_truth_is_joined_to_the_proposals() -> None:
    model = rcnn(sampling__batch_size=1000).train()
    made = sample(64, 64, [[5.0, 5, 40, 50], [50, 50, 60, 60]], labels=[3, 1])
    (boxes,), (labels,) = drawn_for(model, [made | {"proposals": torch.zeros(0, 4)}])
    assert boxes.tolist() == made["boxes"].tolist() and labels.tolist() == [3, 1]


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
@pytest.mark.parametrize("learn", [False, True])
def test_difficult_objects_and_crowds_are_neither(kind: str, learn: bool) -> None:
    model = rcnn(sampling__batch_size=1000, train_on_difficult=learn).train()
    marked = torch.tensor([False, True])
    made = sample(64, 64, [[0.0, 0, 20, 20], [30, 30, 64, 64]], labels=[3, 1], **{kind: marked})
    inside = torch.tensor([[30.0, 30, 64, 64], [31, 31, 62, 64], [40, 40, 50, 50]])
    across = torch.tensor([[20.0, 20, 38, 64]])  # less than half of it in the region
    made["proposals"] = torch.cat((inside, across))
    (boxes,), (labels,) = drawn_for(model, [made])
    known = {tuple(box): label for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)}
    expected = {(0.0, 0, 20, 20): 3, (20.0, 20, 38, 64): 0}
    if kind == "difficult" and learn:
        expected |= {tuple(box): 1 for box in inside[:2].tolist()} | {tuple(inside[2].tolist()): 0}
    assert known == expected


def test_the_loss_is_that_of_a_softmax_over_the_warped_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = rcnn(image__min_size=48, image__max_size=96).eval()  # no dropout, were there any
    torch.nn.init.normal_(model.roi_heads.cls_score.weight, std=0.5)
    batch = [given(64, 80, [[5.0, 5, 40, 50]], labels=[2]), given(60, 70, [[20.0, 20, 60, 50]], labels=[4])]
    images = model.encode(batch)
    rois, labels = model._sample(batch, images)
    assert images.sizes[0] == (48, 60)
    monkeypatch.setattr(model, "_sample", lambda *_: (rois, labels))
    losses = model.losses(batch)
    assert list(losses) == ["loss_classifier"]
    expected = []
    for one, boxes, classes in zip(batch, rois, labels.split([len(r) for r in rois]), strict=True):
        pixels = (one["image"] / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
            [0.229, 0.224, 0.225]
        )[:, None, None]
        height, width = (int(s * 48 / min(pixels.shape[1:])) for s in pixels.shape[1:])
        pixels = torch.nn.functional.interpolate(pixels[None], (height, width), mode="bilinear")[0]
        for box, label in zip(boxes, classes.tolist(), strict=True):
            crop = warping.warp(pixels, box[None], 32, 4)
            probabilities = model.roi_heads.cls_score(model.network(crop).fc7).softmax(1)[0]
            expected.append(-probabilities[label].log())
    torch.testing.assert_close(losses["loss_classifier"], torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
    assert model.sampler_stats["roi_foreground"] == (labels > 0).sum() > 0
    assert model.sampler_stats["roi_background"] == (labels == 0).sum() > 0


@pytest.mark.parametrize("backbone", ["lenet5", "tiny", "mobilenet_v2"])
@pytest.mark.parametrize("batch", ["nothing", "one image of nothing", "one region"])
def test_steps_with_little_to_learn_from(backbone: str, batch: str) -> None:
    model = rcnn(backbone=backbone).train()
    kept = {name: value.clone() for name, value in model.named_buffers()}
    nothing = sample(64, 64) | {"proposals": torch.zeros(0, 4)}
    one = sample(64, 64) | {"proposals": torch.tensor([[3.0, 3, 30, 30]])}
    used = {"nothing": [nothing, nothing], "one image of nothing": [nothing, one], "one region": [one]}[batch]
    loss = model.losses(used)["loss_classifier"]
    assert loss.isfinite() and (batch != "nothing" or loss == 0)
    loss.backward()
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        assert value.isfinite().all(), name
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(torch.equal(value, kept[name]) for name, value in model.named_buffers() if "running" in name)
    assert all(module.training for module in model.network.modules())


def test_the_new_layer_learns_ten_times_and_biases_twice_as_fast() -> None:
    model = rcnn(
        optim__lr=0.001,
        optim__bias_lr_factor=2.0,
        optim__decay_biases=False,
        optim__weight_decay=0.0005,
        optim__momentum=0.8,
    )
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {}
    for group in model.parameter_groups():
        assert group["momentum"] == 0.8
        for p in group["params"]:
            rates[names[id(p)]] = (group["lr"], group["weight_decay"])
    assert rates.keys() == set(names.values())
    for name, (lr, decay) in rates.items():
        factor = (10 if "cls_score" in name else 1) * (2 if name.endswith("bias") else 1)
        assert lr == pytest.approx(0.001 * factor), name
        assert decay == (0 if name.endswith("bias") else 0.0005), name
    assert rates["roi_heads.cls_score.bias"][0] == pytest.approx(0.02)
    only = rcnn(backbone="tiny", features__transfer="frozen", optim__lr=0.1, head_lr_factor=3.0)
    plain = detkit.RCNN(class_names=["cat"], backbone="tiny")
    assert {group["lr"] for group in plain.parameter_groups()} == {1e-3, 1e-2}  # the paper's
    (group,) = only.parameter_groups()[:1]
    assert group["lr"] == pytest.approx(0.3)
    assert {id(p) for g in only.parameter_groups() for p in g["params"]} == set(map(id, only.roi_heads.parameters()))


def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    model = rcnn().train()
    batch = [given(64, 64, [[5.0, 5, 40, 50], [40, 30, 60, 60]], labels=[1, 2]), given(64, 64)]
    batch[0]["image"][:, 5:50, 5:40] //= 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        model.zero_grad()
        loss = model.losses(batch)["loss_classifier"]
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) < 0.5 * sum(history[:5])


@pytest.mark.parametrize("classifier", ["svm", "softmax"])
@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one(classifier: str) -> None:
    model = detecting(classifier=classifier, detection__score_threshold=0.1)
    batch = [given(64, 96), given(64, 96), given(128, 100)]
    together = model.detect(batch)
    assert all(len(found["boxes"]) > 2 for found in together)
    for one, found in zip(batch, together, strict=True):
        assert_same(found, model.detect([one])[0])
        height, width = one["image"].shape[1:]
        assert (found["boxes"] >= 0).all() and (found["boxes"] <= torch.tensor([width, height] * 2)).all()


@torch.no_grad()
def test_all_variants_from_one_reading() -> None:
    model = detecting(detection__score_threshold=0.1)
    batch = [given(64, 80), given(70, 64)]
    passes: list[int] = []
    model.network.register_forward_hook(lambda *_: passes.append(1))
    variants = model.roi_heads.variants
    found = model.detect_variants(batch, variants)
    assert len(passes) == len(batch) and [str(v) for v in variants][-1] == "SVM + boxes"
    for variant, detections in zip(variants, found, strict=True):
        # The same weights in a detector that was made for this variant alone.
        alone = detecting("none", **variant._asdict(), detection__score_threshold=0.1)
        alone.load_state_dict(model.state_dict())
        assert alone.roi_heads.variant == variant
        for a, b in zip(detections, alone.detect(batch), strict=True):
            assert_same(a, b)
    boxes = [found[i][0]["boxes"] for i in range(4)]
    assert not torch.equal(boxes[0], boxes[1]) and not torch.equal(boxes[2], boxes[3])


@pytest.mark.parametrize("count", [0, 1, 30])
@pytest.mark.parametrize("objects", [True, False], ids=["objects", "no object"])
@torch.no_grad()
def test_images_with_and_without_objects_and_proposals(objects: bool, count: int) -> None:
    boxes = [[5.0, 5, 40, 50]] if objects else []
    batch = [sample(64, 64, boxes) | {"proposals": boxes_in(64, 64, count)}]
    for model in (detecting(), detecting("none")):
        (found,) = model.detect(batch)
        assert found["boxes"].shape == (len(found["scores"]), 4) and len(found["labels"]) == len(found["scores"])
        assert (len(found["scores"]) == 0) == (count == 0)
        assert model.losses(batch)["loss_classifier"].isfinite()


@torch.no_grad()
def test_the_best_proposals_are_used_in_test_and_in_training() -> None:
    limits = ProposalSettings(max_boxes=(3, 2))
    model = detecting(proposals=limits, detection__nms_threshold=1.0, sampling__batch_size=100)
    made = given(64, 64)
    (found,) = model.detect([made])
    cut = {**made, "proposals": made["proposals"][:2]}
    assert_same(found, model.detect([cut])[0])
    (boxes,), _ = drawn_for(model.train(), [made])
    torch.testing.assert_close(boxes, made["proposals"][:3])


def test_a_single_class(drawn: Path, trainer: Any, tmp_path: Path) -> None:
    data = with_proposals(VOC(str(drawn), class_names=["star"], other_classes="drop", num_workers=0))
    model = rcnn(class_names=["star"])
    runner = trainer(max_epochs=1, default_root_dir=str(tmp_path))
    runner.fit(model, datamodule=data)
    assert model.roi_heads.svms.trained.tolist() == [True] and str(model.roi_heads.variant) == "SVM + boxes"
    (found,) = model.eval().predict([data.dataset("val")[0]["image"]])
    assert set(found["labels"].tolist()) <= {1}


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_fit_and_a_test_in_every_precision(
    shapes: Callable[..., Any], trainer: Any, tmp_path: Path, precision: str
) -> None:
    data, model = with_proposals(shapes()), rcnn()
    before = {name: value.clone() for name, value in model.network.backbone.state_dict().items()}
    trainer(max_epochs=1, default_root_dir=str(tmp_path), precision=precision).fit(model, datamodule=data)
    after = model.network.backbone.state_dict()
    assert not any(torch.equal(value.to(after[name].dtype), after[name]) for name, value in before.items())
    assert str(model.roi_heads.variant) == "SVM + boxes"
    trainer(precision=precision).test(model, datamodule=data, verbose=False)
    assert 0 <= model.last_metrics["map"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier": "tree"}, "classifier: there is no 'tree'"),
        ({"sampling__batch_size": 0}, r"sampling\.batch_size: 0"),
        ({"sampling__positive_fraction": 0.0}, "positive_fraction"),
        ({"sampling__foreground_iou": 7.0}, r"sampling\.foreground_iou: 7.0 must"),
        ({"svm__c": 0.0}, "^svm.c: 0.0 must be above 0$"),
        ({"svm__positive_weight": -1.0}, "^svm.positive_weight: -1.0 must be above 0"),
        ({"svm__passes": 0}, "^svm.passes: 0 must be at least 1$"),
        ({"svm__negative_iou": -1.0}, "^svm.negative_iou: -1.0 must be above 0 and at most 1$"),
        ({"box__min_iou": 1.5}, "^box.min_iou: 1.5 must be at least 0 and below 1$"),
        ({"box__ridge": 0.0}, "^box.ridge: 0.0 must be above 0$"),
        ({"feature_files__budget": -1.0}, "^feature_files.budget: -1.0 must be above 0$"),
        ({"detection__score_threshold": -1.0}, "detection.score_threshold: -1.0"),
        ({"detection__nms_threshold": 3.0}, "detection.nms_threshold: 3.0"),
        ({"detection__max_detections": 0}, "detection.max_detections: 0"),
        ({"detection__max_candidates": -1}, "detection.max_candidates: -1"),
        ({"max_per_set": 0}, "max_per_set: 0"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rcnn(**options)


def test_hyper_parameters_are_all_of_every_class() -> None:
    model = rcnn(svm__c=0.5, optim__lr=0.25)
    groups = model.hparams
    assert groups["svm"]["c"] == 0.5 and groups["optim"]["lr"] == 0.25 and groups["box"]["ridge"] == 1000.0
    assert groups["detection"]["nms_threshold"] == 0.3 and groups["image"]["min_size"] is None
    assert not [name for name in model.hparams if name.startswith("_") or name in ("shared", "optimizer")]
    assert construct(detkit.RCNN, model.hparams).hparams == model.hparams
