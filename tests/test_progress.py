"""What is said of how far a long piece of work is."""

from __future__ import annotations

from typing import Any

import pytest

from detkit import progress
from detkit.progress import Progress


def at(done: int, seconds: float, first: int = 0) -> str:
    """What is said once `done` of 80 images are done, `first` of them before, after so many seconds."""
    counted = Progress("proposals", 80, first, show=False)
    for _ in range(done - first):
        counted.step()
    return counted.line(seconds)


@pytest.mark.parametrize(
    ("done", "seconds", "first"), [(1, 102, 0), (41, 102, 40), (2, 61, 0), (60, 4.9, 0), (0, 0, 0)]
)
def test_no_estimate_from_a_step_or_a_moment(done: int, seconds: float, first: int) -> None:
    assert at(done, seconds, first) == f"proposals: {done} of 80 images"


def test_the_speed_is_told_by_the_larger_number() -> None:
    assert at(40, 20) == "proposals: 40 of 80 images, 2.0 a second, about 20 s left"
    assert at(60, 20, first=40) == "proposals: 60 of 80 images, 1.0 a second, about 20 s left"
    assert at(4, 140) == "proposals: 4 of 80 images, 35.0 s each, about 44 min left"


def test_the_speed_counts_from_the_clocks_start(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("timing", 10) as counted:
        now[0] = 50
        counted.start_clock()
        for now[0] in (70, 90, 110):
            counted.step()
    assert capsys.readouterr().out == "timing: 3 of 10 images, 20.0 s each, about 2 min left\n"
