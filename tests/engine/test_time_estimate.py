"""The time of a fit: how many steps and validations there are, and what they take by a clock of the test's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Timer

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
    """A run whose steps of two images take 2 s, of which 0.5 s are loading, by a clock of its own."""

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
        self.now += 1.5 * scale
        loop.total_batch_idx += 1
        self.estimate.on_train_batch_end(self.trainer, self.module, {}, batch, 0)

    def validate(self, seconds: float) -> None:
        self.estimate.on_validation_start(self.trainer, self.module)
        self.now += seconds
        self.estimate.on_validation_end(self.trainer, self.module)


def test_the_estimate_is_told_once_and_then_corrected() -> None:
    run = Run()
    run.step(scale=15)  # the first step is slow, and does not count
    assert run.estimate.left() is None
    for _ in range(8):
        run.step()
    validation = 10 * 0.6 * 1.0  # images, at 0.6 of a training image's time
    assert run.estimate.left() == pytest.approx(31 * 2 + 4 * validation)
    (text,) = run.printed
    assert text.startswith("about 88 s on this CPU (")
    assert text.endswith("): 32 steps of 2.0 s with their loading, and 4 validations of about 6 s")
    run.step()
    run.now += 5  # within a validation the time goes on
    assert run.estimate.left() == pytest.approx(30 * 2 + 4 * validation - 5)
    run.validate(15)
    assert run.estimate.left() == pytest.approx(30 * 2 + 3 * 20)
    run.now += 7
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


def test_the_time_between_epochs_counts_once_it_was_measured() -> None:
    """Without validations: a checkpoint is written, and the loader starts again."""
    run = Run(enable_validation=False)
    for _ in range(10):
        run.step()
    assert run.estimate.left() == pytest.approx(30 * 2)
    run.now += 4
    assert run.estimate.left() == pytest.approx(30 * 2 - 4)
    run.step()  # its loading of 0.5 s belongs to what is between the epochs
    assert run.estimate.left() == pytest.approx(29 * 2 + 2 * 4.5)


def test_a_gpu_is_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls return at once, and the device, 1 s behind for each step, lets them be no more than 3 steps ahead."""
    run, ready, waits = Run(max_epochs=100, enable_validation=False), [100.0], []
    run.module.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")

    def synchronize(_: torch.device) -> None:
        waits.append(len(ready))
        run.now = max(run.now, ready[-1])

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    for _ in range(30):
        run.now = max(run.now, ready[-min(len(ready), 3)])
        ready.append(max(run.now, ready[-1]) + 1.0)
        run.step(scale=0.001)
        if run.printed and len(waits) == 2:
            break
    (text,) = run.printed
    assert len(waits) == 2 and "steps of 1.0 s" in text
    assert run.estimate.left() == pytest.approx((1000 - run.trainer.fit_loop.total_batch_idx - 1) * 1.0, rel=0.01)


def test_a_slow_run_on_a_cpu_is_told_of_a_recipe() -> None:
    run = Run(max_epochs=1000, datamodule=SimpleNamespace(path="data/my photos"))
    for _ in range(4):
        run.step(scale=20)
    (text,) = run.printed
    assert "about 144 h" in text
    assert "`detkit recipe 'data/my photos'` writes a config that takes about 20 minutes on this machine" in text
    shorter = Run(max_epochs=10)
    for _ in range(9):
        shorter.step()
    assert "recipe" not in shorter.printed[0]


def test_a_limit_of_time_ends_a_run() -> None:
    run = Run(max_epochs=-1)
    for _ in range(9):
        run.step()
    assert run.estimate.left() is None and not run.printed
    timer = Timer(duration={"seconds": 50})
    limited = Run(callbacks=[timer])
    for _ in range(9):
        limited.step()
    assert limited.estimate.left() == timer.time_remaining() == 50
