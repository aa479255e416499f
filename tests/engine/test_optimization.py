"""Optimizer and schedule: what is handed to them, held to values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR

import detkit
from detkit.data import Shapes
from detkit.engine.optimization import UNKNOWN, OptimSettings, parameter_groups, schedule
from detkit.errors import ConfigError
from tests.detectors.conftest import Small

pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`")


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), nn.Linear(4, 2))


def names(module: nn.Module, group: dict[str, Any]) -> list[str]:
    known = {id(p): name for name, p in module.named_parameters()}
    return [known[id(p)] for p in group["params"]]


def test_biases_learn_twice_as_fast_and_do_not_decay() -> None:
    """As in the papers' solvers (papers.md 2.1, 2.2)."""
    module = network()
    groups = parameter_groups(module, OptimSettings(0.1, 0.9, 0.0005, False, 2))
    assert [names(module, g) for g in groups] == [
        ["0.weight", "2.weight", "3.weight"],
        ["1.weight"],
        ["0.bias", "1.bias", "3.bias"],
    ]
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.0005), (0.1, 0), (0.2, 0)]


def test_all_alike() -> None:
    groups = parameter_groups(network(), OptimSettings(0.1, 0.9, 0.01, True, 1))
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {(0.1, 0.01)}


def test_the_backbone_learns_more_slowly() -> None:
    module = network()
    settings = OptimSettings(0.1, 0.9, 0.01, False, 2, backbone_lr_factor=0.1)
    groups = parameter_groups(module, settings, lr_factor=5.0, backbone=[module[0], module[1]])
    assert [(names(module, g), g["lr"], g["weight_decay"]) for g in groups] == [
        (["2.weight", "3.weight"], 0.5, 0.01),
        (["3.bias"], 1.0, 0),
        (["0.weight"], 0.05, 0.01),
        (["1.weight"], 0.05, 0),
        (["0.bias", "1.bias"], 0.1, 0),
    ]


@pytest.mark.parametrize("head", ["top", "mlp"])
def test_the_backbone_of_a_detector_is_its_body_and_the_head_made_of_it(head: str, small: Small) -> None:
    pooling = {"roi__pooling": "max", "roi__pool_size": 4, "roi__head": head}
    model = small(**pooling, training_scheme="alternating", optim__backbone_lr_factor=0.1)
    slow = [name for group in model.parameter_groups() if group["lr"] < 0.005 for name in names(model, group)]
    bodies = {"backbone.body", "rpn_backbone.body"}
    expected = bodies | {"roi_heads.box_head"} if head == "top" else bodies
    assert {".".join(name.split(".")[:2]) for name in slow} == expected


def test_without_a_backbone_it_cannot_learn_more_slowly() -> None:
    model = detkit.ImageClassifier(["a", "b"], optim=OptimSettings(backbone_lr_factor=0.1))
    with pytest.raises(ConfigError, match=r"optim\.backbone_lr_factor: ImageClassifier has no backbone"):
        model.parameter_groups()


def test_only_what_learns() -> None:
    module = network()
    module[0].requires_grad_(False)
    module[1].requires_grad_(False)
    groups = parameter_groups(module, OptimSettings(0.1, 0.9, 0, True, 1))
    assert [names(module, g) for g in groups] == [["2.weight", "3.weight"], ["3.bias"]]
    with pytest.raises(ConfigError, match="nothing is trainable"):
        parameter_groups(module.requires_grad_(False), OptimSettings(1, 0.9, 0, True, 1))


def test_drops_at_steps_and_at_fractions_of_the_run() -> None:
    factor = schedule(OptimSettings(warmup_steps=0, milestones=(0.5, 80), gamma=0.1), 100)
    assert [factor(s) for s in (0, 49, 50, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    for steps in (100, UNKNOWN):
        assert schedule(OptimSettings(warmup_steps=0, milestones=(1,), gamma=0.5), steps)(1) == 0.5


def test_warm_up_is_linear() -> None:
    factor = schedule(OptimSettings(warmup_steps=10, warmup_factor=0.1, milestones=(5,), gamma=0.5), 100)
    assert [factor(s) for s in (0, 1, 4, 5, 10, 11)] == pytest.approx([0.1, 0.19, 0.46, 0.275, 0.5, 0.5])
    constant = schedule(OptimSettings(schedule="constant", warmup_steps=4, warmup_factor=0, milestones=(3,)), UNKNOWN)
    assert [constant(s) for s in (2, 4, 5, 10**6)] == [0.5, 1, 1, 1]


def test_cosine_ends_at_zero() -> None:
    factor = schedule(OptimSettings(schedule="cosine", warmup_steps=4, warmup_factor=0), 40)
    expected = [min(1, s / 4) * (1 + math.cos(math.pi * s / 40)) / 2 for s in range(41)]
    assert [factor(s) for s in range(41)] == pytest.approx(expected, abs=1e-6)
    assert factor(40) == pytest.approx(0, abs=1e-6) and factor(50) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "steps", "options", "message"),
    [
        ("step", 10, {}, "optim.schedule: there is no 'step'.* multistep, cosine, constant"),
        ("cosine", UNKNOWN, {}, "needs trainer.max_epochs or max_steps"),
        ("multistep", UNKNOWN, {"milestones": (0.5,)}, r"\[0\.5\] needs trainer.max_epochs or max_steps"),
        ("cosine", 0, {}, "needs trainer.max_epochs or max_steps"),
    ],
)
def test_schedules_that_cannot_work(kind: str, steps: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule(OptimSettings(schedule=kind, **options), steps)


class Rates(L.Callback):
    """The learning rate of each group at each step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


Fit = Callable[..., tuple[L.Trainer, Rates]]


@pytest.fixture
def fit(shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer]) -> Fit:
    def run(model: detkit.FasterRCNN, **options: Any) -> tuple[L.Trainer, Rates]:
        watch = Rates()
        runner = trainer(**({"max_steps": 4, "limit_val_batches": 0, "callbacks": [watch]} | options))
        runner.fit(model, datamodule=shapes())
        return runner, watch

    return run


def test_rates_change_with_each_step(small: Small, fit: Fit) -> None:
    model = small(
        optim__lr=0.01,
        optim__warmup_steps=2,
        optim__warmup_factor=0.5,
        optim__milestones=[0.75],
        optim__bias_lr_factor=2,
        optim__decay_biases=False,
    )
    runner, watch = fit(model)
    weights = [0.005, 0.0075, 0.01, 0.001]
    assert [r[0] for r in watch.rates] == pytest.approx(weights)
    assert [r[-1] for r in watch.rates] == pytest.approx([2 * w for w in weights])
    (optimizer,) = runner.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    assert [g["momentum"] for g in optimizer.param_groups] == [0.9] * 3
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-4, 0, 0]


def test_fractions_are_of_the_whole_run_in_epochs_too(small: Small, fit: Fit) -> None:
    _, watch = fit(small(optim__warmup_steps=0, optim__milestones=[0.5], optim__gamma=0.5), max_steps=-1, max_epochs=2)
    assert [r[0] for r in watch.rates] == pytest.approx([0.01] * 4 + [0.005] * 4)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop])
def test_another_optimizer_keeps_the_schedule(small: Small, fit: Fit, optimizer: type[torch.optim.Optimizer]) -> None:
    model = small(
        optimizer=lambda params: optimizer(params, lr=1e-3),
        optim__warmup_steps=2,
        optim__warmup_factor=0.5,
        optim__milestones=[3],
    )
    before = model.rpn.head.cls_logits.weight.clone()
    runner, watch = fit(model)
    assert type(runner.optimizers[0]) is optimizer
    assert [r[0] for r in watch.rates] == pytest.approx([0.0005, 0.00075, 0.001, 0.0001])
    assert not torch.equal(before, model.rpn.head.cls_logits.weight)


def test_another_schedule_steps_per_batch(small: Small, fit: Fit) -> None:
    runner, watch = fit(small(lr_scheduler=lambda optimizer: StepLR(optimizer, step_size=2, gamma=0.1)))
    assert [r[0] for r in watch.rates] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert not isinstance(runner.lr_scheduler_configs[0].scheduler, LambdaLR)


def test_frozen_parts_are_not_handed_over(small: Small, fit: Fit) -> None:
    model = small(features__transfer="frozen", optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3))
    runner, _ = fit(model, max_steps=1)
    handed = {id(p) for g in runner.optimizers[0].param_groups for p in g["params"]}
    assert handed == {id(p) for p in model.parameters() if p.requires_grad}
    assert not handed & {id(p) for p in model.backbone.body.parameters()}


def test_a_run_without_an_end_says_what_it_needs(small: Small, fit: Fit) -> None:
    with pytest.raises(ConfigError, match=r"needs trainer\.max_epochs or max_steps"):
        fit(small(optim__milestones=[0.5]), max_steps=-1, max_epochs=-1)


def test_gradients_are_clipped(small: Small, fit: Fit) -> None:
    model = small(optim__momentum=0.0, optim__weight_decay=0.0, optim__warmup_steps=0, optim__lr=1.0)
    before = {k: v.clone() for k, v in model.named_parameters()}
    fit(model, max_steps=1, gradient_clip_val=0.01)
    moved = torch.cat([(v - before[k]).flatten() for k, v in model.named_parameters()])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(("warmup", "told"), [(200, True), (2, False)])
def test_a_warm_up_as_long_as_the_run_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, warmup: int, told: bool
) -> None:
    from detkit.engine.module import TrainableModule

    model = TrainableModule(["a"], optim=OptimSettings(warmup_steps=warmup))
    model.layer = torch.nn.Linear(2, 2)
    monkeypatch.setattr(model, "_trainer", SimpleNamespace(estimated_stepping_batches=30, ckpt_path=None))
    monkeypatch.setattr(model, "print", print)
    model.configure_optimizers()
    text = f"the run has 30 steps, and the learning rate rises for {warmup} of them"
    assert (text in capsys.readouterr().out) == told


def test_adamw_is_torchs(small: Small, fit: Fit) -> None:
    model = small(optim__optimizer="adamw", optim__lr=1e-3, optim__weight_decay=0.05, optim__decay_biases=False)
    runner, _ = fit(model, max_steps=1)
    (optimizer,) = runner.optimizers
    assert type(optimizer) is torch.optim.AdamW
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0, 0]
    with pytest.raises(ConfigError, match=r"optim\.optimizer: there is no 'adam'; did you mean 'adamw'"):
        OptimSettings(optimizer="adam")
    with pytest.raises(ConfigError, match=r"optim\.ema: 1\.5 must be"):
        OptimSettings(ema=1.5)


def test_another_length_of_a_resumed_run_is_told(
    small: Small, shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer], tmp_path: Any, capsys: Any
) -> None:
    """Half of the batch size is twice the steps: the cosine is another one."""
    runner = trainer(max_epochs=1, limit_val_batches=0)
    runner.fit(small(optim__schedule="cosine"), datamodule=shapes(batch_size=2))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    capsys.readouterr()
    options = {"ckpt_path": tmp_path / "a.ckpt", "weights_only": True}
    text = "the learning rate was to fall over 4 steps, and falls over"
    for kind, size, epochs, told in (("cosine", 1, 2, True), ("cosine", 4, 2, False), ("constant", 1, 2, False)):
        trainer(max_epochs=epochs, limit_val_batches=0).fit(
            small(optim__schedule=kind, optim__milestones=[3]), datamodule=shapes(batch_size=size), **options
        )
        assert (text in capsys.readouterr().out) == told


def test_a_run_without_a_validation_is_told(small: Small, fit: Fit, capsys: Any) -> None:
    fit(small(), max_steps=-1, max_epochs=1, check_val_every_n_epoch=2)
    assert "warning: no validation in 1 epochs (trainer.check_val_every_n_epoch is 2)" in capsys.readouterr().out
