"""The time of a fit: how many steps and validations there are, and what they take by a clock of the test's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detkit.engine.time_estimate import TimeEstimate, total_batches, validations_until


def trainer(**options: Any) -> Any:
    """What is asked of a Trainer: 10 batches an epoch, 4 epochs, a validation of 5 batches at the end of each."""
    known: dict[str, Any] = {
        "num_training_batches": 10,
        "max_epochs": 4,
        "max_steps": -1,
        "accumulate_grad_batches": 1,
        "val_check_batch": 10,
        "check_val_every_n_epoch": 1,
        "enable_validation": True,
        "num_val_batches": [5],
        "limit_val_batches": 1.0,
        "datamodule": None,
        "callbacks": [],
        "sanity_checking": False,
        "fit_loop": SimpleNamespace(total_batch_idx=-1),
    }
    return SimpleNamespace(**(known | options))


@given(st.integers(1, 12), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 4)), st.integers(0, 60))
def test_validations_are_counted_as_the_loop_runs_them(
    per_epoch: int, every: int, epochs: int | None, batches: int
) -> None:
    if epochs is not None:
        every = min(every, per_epoch)
    asked = trainer(num_training_batches=per_epoch, val_check_batch=every, check_val_every_n_epoch=epochs)
    count = 0
    for batch in range(batches):
        if epochs is None:
            count += (batch + 1) % every == 0
        else:
            count += (batch // per_epoch + 1) % epochs == 0 and (batch % per_epoch + 1) % every == 0
    assert validations_until(asked, batches) == count


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({}, 40),
        ({"max_steps": 12}, 12),
        ({"max_epochs": -1, "max_steps": 12, "accumulate_grad_batches": 3}, 36),
        ({"max_epochs": -1}, None),
        ({"max_epochs": None}, None),
    ],
)
def test_the_length_of_a_run(options: dict[str, Any], total: int | None) -> None:
    assert total_batches(trainer(**options)) == total


class Run:
    """A run whose steps take 2 s, of which 0.5 s are loading and 0.6 s forward, for two images; a first one 30 s."""

    def __init__(self, **options: Any) -> None:
        self.now, self.printed = 100.0, []
        self.trainer = trainer(**options)
        self.estimate = TimeEstimate(clock=lambda: self.now)
        self.module = SimpleNamespace(device=torch.device("cpu"), print=self.printed.append, progress_unit="epoch")
        self.estimate.on_train_start(self.trainer, self.module)

    def step(self, scale: float = 1.0) -> None:
        loop, batch = self.trainer.fit_loop, [{}, {}]
        if (loop.total_batch_idx + 1) % 10 == 0:
            self.estimate.on_train_epoch_start(self.trainer, self.module)
        self.now += 0.5 * scale
        self.estimate.on_train_batch_start(self.trainer, self.module, batch, 0)
        self.now += 0.6 * scale
        self.estimate.on_before_backward(self.trainer, self.module, torch.zeros(()))
        self.now += 0.9 * scale
        loop.total_batch_idx += 1
        self.estimate.on_train_batch_end(self.trainer, self.module, {}, batch, 0)

    def validate(self, seconds: float) -> None:
        self.estimate.on_validation_start(self.trainer, self.module)
        self.now += seconds
        self.estimate.on_validation_end(self.trainer, self.module)


def test_the_estimate_is_told_once_and_then_corrected() -> None:
    run = Run()
    run.step(scale=15)
    assert run.estimate.left() is None
    for _ in range(8):
        run.step()
    # 10 images of a validation, at 0.3 s of forward and 0.25 s of loading.
    validation = 10 * (0.3 * 1.3 + 0.25)
    assert run.estimate.left() == pytest.approx(31 * 2 + 4 * validation)
    (text,) = run.printed
    assert text.startswith("about 90 s on this CPU (")
    assert text.endswith("): 32 steps of 2.0 s with their loading, and 4 validations of about 6 s")
    run.step()
    run.validate(20)
    assert run.estimate.left() == pytest.approx(30 * 2 + 3 * 20)
    run.now += 7  # the bar counts down, and never below nothing
    assert run.estimate.left() == pytest.approx(30 * 2 + 3 * 20 - 7)
    run.now += 1000
    assert run.estimate.left() == 0
    assert len(run.printed) == 1


def test_the_whole_run_is_predicted_within_a_fifth() -> None:
    run = Run()
    run.step(scale=3)
    for _ in range(8):
        run.step()
    predicted, began = run.estimate.left(), run.now
    for step in range(9, 40):
        run.step(scale=1.1 if step % 2 else 0.9)
        if step % 10 == 9:
            run.validate(7)
    assert predicted == pytest.approx(run.now - began, rel=0.2)
    assert run.estimate.left() == 0


def test_a_slow_run_on_a_cpu_is_told_of_a_recipe() -> None:
    run = Run(max_epochs=1000)
    for _ in range(4):
        run.step(scale=20)
    (text,) = run.printed
    assert "about 146 h" in text and "`detkit recipe DATA`" in text


def test_a_run_that_only_a_limit_of_time_ends() -> None:
    run = Run(max_epochs=-1)
    for _ in range(9):
        run.step()
    assert run.estimate.left() is None and not run.printed
