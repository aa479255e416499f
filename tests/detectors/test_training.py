"""Whole fits: the same twice, the same after a stop, what a checkpoint holds, and what is logged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint

import detkit
from detkit.data import Shapes
from detkit.detectors.checkpoints import read_checkpoint
from detkit.errors import CheckpointError

from .conftest import Small, assert_same, sample

State = dict[str, torch.Tensor]
# Lightning's, of what is meant to be so: an old folder is gone on with, or checkpoints lie elsewhere.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in ("Checkpoint directory", "The dirpath has changed", "overridden `transfer_batch_to_device`")
]
FLIPS = [
    {"class_path": "HorizontalFlip", "init_args": {"p": 0.5}},
    {"class_path": "ColorJitter", "init_args": {"p": 1.0}},
]


def copy(model: torch.nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def differing(a: State, b: State) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


class Stop(L.Callback):
    """Breaks off after so many steps, as a killed run does."""

    def __init__(self, steps: int | None) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            raise InterruptedError("killed")


Fit = Callable[..., detkit.FasterRCNN]


@pytest.fixture(scope="module")
def fit(small: Small, shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer]) -> Fit:
    """`fit(folder, seed=5, resume=None, stop=None, workers=0, **trainer options)` -> the fitted detector.

    A checkpoint of every step and one of the last whole epoch are left in the folder. There is chance in every
    place there can be: order, augmentation, sizes, sampling and dropout.
    """

    def run(
        folder: Path,
        seed: int = 5,
        resume: str | None = None,
        stop: int | None = None,
        workers: int = 0,
        **options: Any,
    ) -> detkit.FasterRCNN:
        model = small(dropout=0.25, min_size=[48, 64])
        each = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        last = ModelCheckpoint(folder, "end", save_last=True, save_on_train_epoch_end=True, every_n_epochs=1)
        runner = trainer(**({"max_epochs": 2, "callbacks": [each, last, Stop(stop)]} | options))
        data = shapes(transforms=FLIPS, seed=seed, num_workers=workers)
        ckpt_path = None if resume is None else str(folder / f"{resume}.ckpt")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PL_GLOBAL_SEED", str(seed))  # as seed_everything does
            torch.manual_seed(seed)
            runner.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return model

    return run


class Whole(NamedTuple):
    """An uninterrupted run of 2 epochs of 4 steps."""

    model: detkit.FasterRCNN
    folder: Path

    @property
    def state(self) -> State:
        return self.model.state_dict()


@pytest.fixture(scope="module")
def whole(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole(fit(folder), folder)


# -- the same again ----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_bit_for_bit(whole: Whole, fit: Fit, tmp_path: Path) -> None:
    assert not differing(whole.state, fit(tmp_path).state_dict())
    first, second = (torch.load(f / "step=8.ckpt", weights_only=True) for f in (whole.folder, tmp_path))
    momenta = [c["optimizer_states"][0]["state"].values() for c in (first, second)]
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in zip(*momenta, strict=True))


def test_another_seed_gives_other_weights(whole: Whole, fit: Fit, tmp_path: Path) -> None:
    assert "roi_heads.box_head.fc6.weight" in differing(whole.state, fit(tmp_path, seed=6).state_dict())


def test_one_epoch_and_then_another_equal_two(whole: Whole, fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        fit(tmp_path, stop=5)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    assert not differing(whole.state, fit(tmp_path, resume="last").state_dict())


@pytest.mark.parametrize(("steps", "workers"), [(2, 0), (4, 0), (7, 0), (6, 1)])
def test_a_run_killed_at_any_step_goes_on_exactly(
    whole: Whole, fit: Fit, tmp_path: Path, steps: int, workers: int
) -> None:
    name = f"step={steps}"
    (tmp_path / f"{name}.ckpt").write_bytes((whole.folder / f"{name}.ckpt").read_bytes())
    resumed = fit(tmp_path, resume=name, workers=workers)
    assert (tmp_path / "step=8.ckpt").exists() and not (tmp_path / f"step={steps - 1}.ckpt").exists()
    assert not differing(whole.state, resumed.state_dict())


def test_an_exception_leaves_what_was_saved(whole: Whole, fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        fit(tmp_path, stop=3)
    here, there = (torch.load(f / "step=2.ckpt", weights_only=True)["state_dict"] for f in (tmp_path, whole.folder))
    assert not differing(here, there)
    assert differing(whole.state, here)


# -- checkpoints -------------------------------------------------------------------------------


def plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain(v) for k, v in value.items())
    return value is None or type(value) in (bool, int, float, str)


def test_a_checkpoint_holds_plain_values_and_is_enough_to_predict(whole: Whole) -> None:
    path = whole.folder / "step=8.ckpt"
    content = torch.load(path, weights_only=True)
    arguments = content["hyper_parameters"]
    assert plain(arguments) and plain(content["detkit"])
    assert arguments["min_size"] == [48, 64] and arguments["dropout"] == 0.25
    assert arguments["class_names"] == whole.model.class_names and arguments["category_ids"] == [1, 2, 3, 4, 5]
    assert not {"optimizer", "lr_scheduler"} & set(arguments)

    loaded = detkit.load(path)
    assert not loaded.training and not differing(whole.state, loaded.state_dict())
    images = [sample(64, 64)["image"], sample(50, 90)["image"]]
    for ours, theirs in zip(loaded.predict(images), whole.model.predict(images), strict=True):
        assert len(ours["boxes"]) > 0
        assert_same(ours, theirs, 0)


def test_category_ids_are_kept(small: Small, shapes: Callable[..., Shapes], trainer: Any, tmp_path: Path) -> None:
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(small(category_ids=[18, 3, 90, 7, 1]), datamodule=shapes())
    runner.save_checkpoint(tmp_path / "one.ckpt")
    assert detkit.load(tmp_path / "one.ckpt").category_ids == [18, 3, 90, 7, 1]


def test_optimizer_factories_are_not_kept(
    small: Small, shapes: Callable[..., Shapes], trainer: Any, tmp_path: Path
) -> None:
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(small(optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3)), datamodule=shapes())
    runner.save_checkpoint(tmp_path / "adam.ckpt")
    assert read_checkpoint(tmp_path / "adam.ckpt")["detkit"]["optimizer"] == "AdamW"
    detkit.load(tmp_path / "adam.ckpt")
    with pytest.raises(CheckpointError, match="AdamW, this run asks for SGD"):
        trainer(max_steps=2).fit(small(), datamodule=shapes(), ckpt_path=tmp_path / "adam.ckpt", weights_only=True)


def test_weights_that_were_begun_with_are_not_read_again(
    small: Small, shapes: Callable[..., Shapes], trainer: Any, tmp_path: Path
) -> None:
    from detkit.features.architectures import classification_network

    file = tmp_path / "tiny.pth"
    torch.save(classification_network("tiny").state_dict(), file)
    model = small(weights=str(file))
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(model, datamodule=shapes())
    runner.save_checkpoint(tmp_path / "one.ckpt")
    file.unlink()
    assert not differing(model.state_dict(), detkit.load(tmp_path / "one.ckpt").state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["detkit"].update({"class": "YOLO"}), "holds a YOLO, which is not a detector"),
        (lambda c: c["detkit"].update({"class": "Trainer"}), "holds a Trainer"),
        (lambda c: c["hyper_parameters"].update(anchors=3), "does not fit FasterRCNN.*anchors"),
        (lambda c: c["hyper_parameters"].pop("class_names"), "does not fit FasterRCNN.*class_names"),
        (lambda c: c["hyper_parameters"].update(head_channels=99), "does not fit FasterRCNN"),
        (lambda c: c["state_dict"].pop("rpn.head.cls_logits.bias"), "does not fit FasterRCNN"),
        (lambda c: c.pop("hyper_parameters"), "does not fit FasterRCNN"),
    ],
)
def test_checkpoints_that_do_not_fit(
    whole: Whole, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = torch.load(whole.folder / "step=8.ckpt", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=rf"other\.ckpt.*{message}"):
        detkit.load(tmp_path / "other.ckpt")


# -- what a fit says ---------------------------------------------------------------------------


def test_losses_health_and_metric_are_logged(small: Small, shapes: Callable[..., Shapes], trainer: Any) -> None:
    model = small()
    runner = trainer(max_epochs=1)
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


@pytest.mark.parametrize("protocol", ["voc07", "voc10"])
def test_another_protocol(small: Small, shapes: Callable[..., Shapes], trainer: Any, protocol: str) -> None:
    model = small(protocol=protocol)
    trainer().validate(model, datamodule=shapes(), verbose=False)
    assert model.last_metrics["protocol"].lower().startswith(protocol)


def test_bf16_mixed_trains(small: Small, shapes: Callable[..., Shapes], trainer: Any) -> None:
    model = small(fpn=True, fpn_channels=16, anchor_sizes=[[8.0], [16.0], [32.0], [64.0]])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    types: set[torch.dtype] = set()
    model.backbone.register_forward_hook(lambda module, given, maps: types.update(m.dtype for m in maps))
    runner = trainer(max_epochs=1, precision="bf16-mixed", limit_train_batches=2, limit_val_batches=1)
    runner.fit(model, datamodule=shapes())
    assert torch.bfloat16 in types  # it was mixed indeed
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
        min_size=64,
        max_size=64,
        freeze_batch_norm=True,
        transfer="partial",
        trainable_stages=2,
        lr=0.01,
        warmup_steps=0,
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
