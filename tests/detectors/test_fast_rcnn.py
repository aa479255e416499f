"""Fast R-CNN as a whole: its likeness to Faster R-CNN, proposals of every sort, one pass for losses and detections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import detkit
from detkit.boxes import box_iou
from detkit.data.dataset import image_to_tensor
from detkit.data.transforms import AlbumentationsPipeline, HorizontalFlip
from detkit.detectors import ProposalSettings
from detkit.errors import ConfigError
from detkit.features import PyramidFeatures
from detkit.settings import construct
from detkit.training import sample as draw

from .conftest import OPTIONS, Sample, Small, assert_same, sample

Build = Callable[..., detkit.FastRCNN]
COMMON = {name: value for name, value in OPTIONS.items() if not name.startswith(("rpn__", "anchors__"))}
ONE_MAP: dict[str, Any] = {}
PYRAMID: dict[str, Any] = {"features__fpn": True, "features__fpn_channels": 16}
PAPER: dict[str, Any] = {
    "roi__pooling": "max",
    "roi__head": "top",
    "box_normalization": "per_class",
    "dedup_stride": 8,
    "detection__max_candidates": 100,
    "roi__beta": 1.0,
    "roi__background_iou": (0.1, 0.5),
}
SCALES: dict[str, Any] = {**PAPER, "test_sizes": [48, 64, 128], "test_max_size": 192}
ALL = pytest.mark.parametrize("options", [ONE_MAP, PYRAMID, PAPER, SCALES], ids=["map", "fpn", "paper", "scales"])
NOTHING = torch.zeros(0, 4)


@pytest.fixture(scope="module")
def fast() -> Build:
    """`fast(**options)` -> a Fast R-CNN with scores that differ from place to place."""

    def build(**options: Any) -> detkit.FastRCNN:
        torch.manual_seed(0)
        model = construct(detkit.FastRCNN, COMMON | options)
        torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
        torch.nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
        return model.eval()

    return build


def proposals(height: int, width: int, count: int = 40) -> Tensor:
    corner = torch.rand(count, 2) * torch.tensor([width, height]) * 0.7
    extent = (0.1 + 0.9 * torch.rand(count, 2)) * torch.tensor([width, height]) * 0.6
    return torch.cat((corner, torch.minimum(corner + extent, torch.tensor([width, height]))), dim=1)


def given(height: int, width: int, boxes: list[list[float]] | None = None, **fields: Any) -> Sample:
    """A sample with proposals: some near its objects, some anywhere."""
    made = sample(height, width, boxes, **fields)
    near = made["boxes"].repeat(6, 1) + torch.randn(6 * len(made["boxes"]), 4)
    return {"proposals": torch.cat((near, proposals(height, width))).clamp(min=0)} | made


def backward(model: detkit.FastRCNN, batch: list[Sample]) -> dict[str, Tensor]:
    """Losses of a batch, which are finite, as are their gradients; nothing is left without one."""
    model.zero_grad()
    losses = model.losses(batch)
    assert list(losses) == ["loss_classifier", "loss_box_reg"]
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    return losses


# -- its likeness ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"roi__pooling": "max", "roi__head": "top"}], ids=["mlp", "paper"])
@torch.no_grad()
def test_faster_rcnn_is_fast_rcnn_whose_proposals_come_from_an_rpn(
    detecting: Small, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = detecting(**options)
    fast = construct(detkit.FastRCNN, COMMON | options).eval()
    state = {name: value for name, value in faster.state_dict().items() if not name.startswith("rpn.")}
    fast.load_state_dict(state)
    batch = [sample(64, 96, [[5.0, 5, 40, 50]]), sample(100, 80, [[10.0, 20, 60, 70]], [3])]
    encoded = faster.encode(batch)
    for i, found in enumerate(faster.propose(batch, encoded)):
        batch[i]["proposals"] = encoded.images.to_original(found.boxes, i)
    ours, theirs = fast.detect(batch), faster.detect(batch)
    assert all(len(found["boxes"]) > 2 for found in ours)
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
    torch.manual_seed(3)
    losses = fast.losses(batch)
    monkeypatch.setattr("detkit.heads.roi_heads.sample", lambda *args: torch.manual_seed(3) and draw(*args))
    losses, expected = fast.losses(batch), faster.losses(batch)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_all_have_the_shared_options_and_help_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    from detkit.cli.lightning_cli import run

    regions = ("roi.batch_size", "roi.svd_ranks")
    own = {
        "RCNN": ("svm.c", "crop.size", "feature_files.budget", "box.ridge", "max_per_set"),
        "FastRCNN": ("proposals.max_boxes", "box_normalization", *regions),
        "FasterRCNN": ("anchors.sizes", "training_scheme", *regions),
    }
    for detector, names in own.items():
        with pytest.raises(SystemExit):
            run("fit", ["--model.help", detector])
        rows = capsys.readouterr().out.partition("Help for")[2].split("\n  --model.")[1:]
        assert len(rows) > 50
        for row in rows:
            words = row.partition("(type:")[0].split()[1:]
            assert [word for word in words if word.islower() and not word.startswith(("--", "{", "["))], row
        options = [row.split()[0].rstrip(",") for row in rows]
        assert {*names, "backbone", "optim.lr", "protocol"} <= set(options)
        assert not [name for name in options if name.startswith("_") or name == "shared"]


def test_hyper_parameters_are_all_of_both_classes(fast: Build) -> None:
    model = fast(proposals=ProposalSettings(max_boxes=(7, 5)), optim__lr=0.25)
    assert model.hparams["proposals"]["max_boxes"] == [7, 5] and model.hparams["optim"]["lr"] == 0.25
    assert (
        model.hparams["proposals"]["method"]["init_args"]["mode"] == "fast" and model.hparams["roi"]["batch_size"] == 16
    )
    assert not [name for name in model.hparams if name.startswith("_") or name in ("shared", "optimizer")]
    again = construct(detkit.FastRCNN, model.hparams)
    assert again.hparams == model.hparams


# -- batches -----------------------------------------------------------------------------------


@ALL
@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one(fast: Build, options: dict[str, Any]) -> None:
    model = fast(**options)
    batch = [given(64, 96), given(64, 96), given(128, 192)]
    together = model.detect(batch)
    assert all(len(found["boxes"]) > 2 for found in together)
    for one, found in zip(batch, together, strict=True):
        assert_same(found, model.detect([one])[0])
        height, width = one["image"].shape[1:]
        assert (found["boxes"] >= 0).all() and (found["boxes"] <= torch.tensor([width, height] * 2) * 1.000001).all()


@ALL
@pytest.mark.parametrize("objects", [True, False], ids=["objects", "no object"])
@pytest.mark.parametrize("count", [40, 1, 0])
def test_images_with_and_without_objects_and_proposals(
    fast: Build, options: dict[str, Any], objects: bool, count: int
) -> None:
    model = fast(**options)
    boxes = [[5.0, 5, 40, 50], [30, 20, 60, 60]] if objects else []
    batch = [sample(64, 64, boxes) | {"proposals": proposals(64, 64, count)}, given(64, 80)]
    for used in (batch, batch[:1]):
        losses = backward(model.train(), used)
        if objects:  # the ground truth is among the regions
            assert model.sampler_stats["roi_foreground"] > 0
        else:
            assert losses["loss_box_reg"] == 0
        with torch.no_grad():
            found = model.eval().detect(used)[0]
        assert found["boxes"].shape == (len(found["scores"]), 4)
        assert count > 0 or len(found["boxes"]) == 0


def test_sixty_four_regions_of_an_image_a_quarter_of_them_foreground(
    fast: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fast(roi__batch_size=64, roi__background_iou=(0.1, 0.5)).train()
    chosen: list[Any] = []

    def spy(labels: Tensor, *rest: Any) -> Any:
        chosen.append((labels, draw(labels, *rest)))
        return chosen[-1][1]

    monkeypatch.setattr("detkit.heads.roi_heads.sample", spy)
    truth = [[5.0, 5, 40, 50]]
    many = torch.tensor(truth).repeat(50, 1) + torch.randn(50, 4)
    apart = torch.tensor([[50.0, 52, 63, 63]]).repeat(30, 1)  # an IoU of 0: no background either
    hard = torch.tensor([[20.0, 20, 60, 60]]).repeat(30, 1)
    batch = [
        sample(64, 64, truth) | {"proposals": torch.cat((many, apart, hard, proposals(64, 64, 200)))},
        sample(64, 64, truth) | {"proposals": torch.cat((many[:3], apart, hard))},
    ]
    model.losses(batch)
    (_, first), (labels, second) = chosen
    assert (first.positive & first.valid).sum() == 16 and (~first.positive & first.valid).sum() == 48
    assert (labels[3:33] == -1).all() and (labels[33:63] == 0).all()
    # 3 near proposals and the object itself, 30 hard ones: a short batch.
    assert (second.positive & second.valid).sum() == 4 and (~second.positive & second.valid).sum() == 30


def test_the_best_proposals_are_used(fast: Build) -> None:
    batch = [given(64, 64)]
    for training, limit, count in ((True, 30, 30), (False, 10, 10), (True, None, 40), (False, None, 40)):
        model = fast(proposals=ProposalSettings(max_boxes=(limit, 7) if training else (7, limit)))
        model.train(training)
        encoded = model.encode(batch)
        (found,) = model.propose(batch, encoded)
        assert found.valid.all()
        torch.testing.assert_close(encoded.images.to_original(found.boxes, 0), batch[0]["proposals"][:count])


def test_in_test_each_proposal_counts_once(fast: Build) -> None:
    boxes = proposals(64, 64)
    batch = [sample(64, 64) | {"proposals": torch.cat((boxes, boxes + 0.01))}]
    plain, dedup = fast(roi__pooling="max"), fast(roi__pooling="max", dedup_stride=8)
    for model, count in ((plain, 80), (dedup.train(), 80)):
        assert len(model.propose(batch, model.encode(batch))[0].boxes) == count
    found = dedup.eval().propose(batch, dedup.encode(batch))[0].boxes
    assert len(found) <= 40
    assert {tuple(box) for box in found.tolist()} <= {tuple(box) for box in boxes.tolist()}


# -- scales ------------------------------------------------------------------------------------


@torch.no_grad()
def test_one_scale_alone_is_no_pyramid(fast: Build) -> None:
    batch = [given(64, 96), given(120, 64)]
    one = fast(test_sizes=[64], test_max_size=96)
    assert isinstance(one.encode(batch).features, PyramidFeatures)
    for a, b in zip(one.detect(batch), fast().detect(batch), strict=True):
        assert_same(a, b)


@torch.no_grad()
def test_scales_are_those_of_the_images(fast: Build) -> None:
    model = fast(test_sizes=[32, 64, 96], test_max_size=128)
    encoded = model.encode([sample(64, 64), sample(50, 100)])
    assert encoded.images.sizes == [(32, 32), (32, 64)]
    factors = encoded.features.factors
    assert factors[:, 0].tolist() == [[1.0] * 4, [2.0] * 4, [3.0] * 4]
    assert factors[:, 1].tolist() == [[1.0] * 4, [2.0] * 4, [2.0] * 4]  # 192 pixels would be too long
    assert not isinstance(model.train().encode([sample(64, 64)]).features, PyramidFeatures)


# -- one pass ----------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("training", [True, False])
def test_losses_and_detections_share_a_pass_and_leave_the_mode_alone(
    fast: Build, options: dict[str, Any], training: bool
) -> None:
    model = fast(**options)
    model.train(training)
    model.backbone.body["0"].eval()
    modes = [module.training for module in model.modules()]
    batch = [given(64, 64, [[5.0, 5, 40, 50]])]
    passes: list[int] = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    encoded = model.encode(batch)
    torch.manual_seed(5)
    losses = model.losses(batch, encoded)
    found = model.detect(batch, encoded)
    assert len(passes) == (3 if "test_sizes" in options and not training else 1)
    assert [module.training for module in model.modules()] == modes
    if not training:
        torch.manual_seed(5)
        again = model.losses(batch)
        assert all(torch.equal(losses[name], again[name]) for name in losses)
        assert_same(found[0], model.detect(batch)[0], 0)


def test_a_few_steps_on_one_batch_lower_the_losses(fast: Build) -> None:
    model = fast().train()
    batch = [given(64, 64, [[5.0, 5, 40, 50], [40, 30, 60, 60]], labels=[1, 2]), given(64, 64)]
    shift = torch.tensor([5.0, -3, 5, -3])  # all proposals near an object are off in one direction
    batch[0]["proposals"] = torch.cat((batch[0]["boxes"].repeat(10, 1) + shift, batch[0]["proposals"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        history.append(backward(model, batch))
        optimizer.step()
    for name in history[0]:
        first, last = (sum(h[name].item() for h in part) for part in (history[:5], history[-5:]))
        assert last < 0.6 * first, name


# -- proposals follow their image --------------------------------------------------------------


@pytest.mark.parametrize(
    "transform",
    [
        HorizontalFlip(p=1.0),
        AlbumentationsPipeline([{"class_path": "HorizontalFlip", "init_args": {"p": 1.0}}]),
        AlbumentationsPipeline([{"class_path": "Resize", "init_args": {"height": 120, "width": 160}}]),
        AlbumentationsPipeline([{"class_path": "VerticalFlip", "init_args": {"p": 1.0}}]),
    ],
    ids=["flip", "albumentations' flip", "resize", "upside down"],
)
def test_iou_of_proposals_and_boxes_stays_under_flips_and_resizing(fast: Build, transform: Any) -> None:
    made = given(60, 80, [[5.0, 5, 40, 50], [30, 20, 70, 58]])
    made["proposals"] = made["proposals"].clamp(max=60).round()
    wide = (made["proposals"][:, 2:] - made["proposals"][:, :2] >= 2).all(1)
    before = box_iou(made["boxes"], made["proposals"][wide])
    item = {name: made[name].numpy() for name in ("boxes", "labels", "difficult", "crowd", "area")}
    item |= {"image": made["image"].permute(1, 2, 0).numpy(), "proposals": made["proposals"][wide].numpy()}
    item = transform(item, 0)
    boxes, moved = torch.as_tensor(item["boxes"]), torch.as_tensor(item["proposals"])
    assert not torch.allclose(boxes, made["boxes"])
    torch.testing.assert_close(box_iou(boxes, moved), before, rtol=0, atol=1e-4)
    # And under the detector's own resizing, 80 pixels to 64.
    batch = [{"image": image_to_tensor(item["image"]), "boxes": boxes, "proposals": moved}]
    model = fast(image__min_size=64, image__max_size=64)
    encoded = model.encode(batch)
    (found,) = model.propose(batch, encoded)
    torch.testing.assert_close(box_iou(encoded.images.to_batch(boxes, 0), found.boxes), before, rtol=0, atol=1e-3)


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_normalization": "batch"}, "box_normalization.*'batch'.* per_class, fixed"),
        ({"dedup_stride": 0}, "dedup_stride: 0"),
        ({"test_sizes": [900], "test_max_size": 800}, "min_size 900 .* image.max_size 800"),
        ({"roi__svd_ranks": {"fc9": 3}}, "no layer 'fc9'"),
    ],
)
def test_options_that_cannot_work(fast: Build, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fast(**options)
