"""What a fit logs, in which precision it runs, and which weights it may be initialised from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import detkit
from detkit.data import Shapes

from .conftest import PYRAMID, Small, differing

pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`")


def test_losses_health_and_metric_are_logged(small: Small, shapes: Callable[..., Shapes], trainer: Any) -> None:
    model = small()
    runner = trainer(max_epochs=1, log_every_n_steps=1)
    passes: list[bool] = []
    model.backbone.register_forward_hook(lambda *_: passes.append(model.training))
    runner.fit(model, datamodule=shapes())
    logged = {name: value.item() for name, value in runner.callback_metrics.items()}
    losses = ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"]
    for stage in ("train", "val"):
        assert logged[f"{stage}/loss"] == pytest.approx(sum(logged[f"{stage}/{name}"] for name in losses), rel=1e-4)
    for name in ("rpn_foreground", "rpn_background", "roi_foreground", "roi_background", "roi_mean_best_iou"):
        assert logged[f"train/{name}"] >= 0
    assert 0 <= logged["train/proposal_recall_50"] <= 1
    assert {"val/map", "val/map_50", "val/map_75", "val/mar_100"} <= set(logged)
    assert passes == [True] * 4 + [False] * 2  # validation has losses and detections from one pass
    assert model.last_metrics["protocol"].startswith("COCO")
    assert list(model.last_metrics["map_per_class"]) == model.class_names

    (tested,) = runner.test(model, datamodule=shapes(), verbose=False)
    assert "test/map_50" in tested and not any(name.startswith("test/loss") for name in tested)
    predicted = runner.predict(model, datamodule=shapes())
    assert [len(batch) for batch in predicted] == [2, 1]


def test_bf16_mixed_trains(small: Small, shapes: Callable[..., Shapes], trainer: Any) -> None:
    model = small(**PYRAMID, protocol="voc07")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    types: set[torch.dtype] = set()
    model.backbone.register_forward_hook(lambda module, given, maps: types.update(m.dtype for m in maps))
    runner = trainer(max_epochs=1, precision="bf16-mixed", limit_train_batches=2, limit_val_batches=1)
    runner.fit(model, datamodule=shapes())
    assert torch.bfloat16 in types  # it was mixed indeed
    assert model.last_metrics["protocol"].lower().startswith("voc07")
    assert runner.callback_metrics["train/loss"].isfinite() and runner.callback_metrics["val/loss"].isfinite()
    assert all(v.dtype != torch.bfloat16 for v in model.state_dict().values())
    assert {"rpn.head.cls_logits.weight", "roi_heads.box_head.fc6.weight"} <= set(differing(before, model.state_dict()))


def test_torchvisions_detectors_can_be_fine_tuned(shapes: Callable[..., Shapes], trainer: Any, tmp_path: Path) -> None:
    arch = "fasterrcnn_mobilenet_v3_large_320_fpn"
    modes: list[bool] = []
    factory = getattr(torchvision.models.detection, arch)
    theirs = factory(weights=None, weights_backbone=None, num_classes=6)
    data = shapes()
    model = detkit.FasterRCNN.from_torchvision(
        arch,
        theirs.state_dict(),
        data.class_names,
        image__min_size=64,
        image__max_size=64,
        features__freeze_batch_norm=True,
        features__transfer="partial",
        features__trainable_stages=2,
        optim__lr=0.01,
        optim__warmup_steps=0,
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.rpn.register_forward_hook(lambda *_: modes.append(model.rpn.training and model.training))
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(model, datamodule=data)
    assert modes == [True]  # though it came in eval mode
    changed = differing(before, model.state_dict())
    assert {name.split(".")[0] for name in changed} == {"backbone", "rpn", "roi_heads"}
    body = {int(name.split(".")[2]) for name in changed if name.startswith("backbone.body")}
    assert body and min(body) >= 7  # the last two of five stages
    runner.save_checkpoint(tmp_path / "tuned.ckpt")
    assert not differing(model.state_dict(), detkit.load(tmp_path / "tuned.ckpt").state_dict())
