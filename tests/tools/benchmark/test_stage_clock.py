"""The clocks on a detector's parts: every stage is seen, nothing is counted twice, and nothing is left behind."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from detkit.tools.benchmark.contenders import GENERATIONS, build_contender
from detkit.tools.benchmark.stage_clock import (
    FEATURES,
    HEADS,
    PARTS,
    POST_PROCESSING,
    PROPOSALS,
    STAGES,
    StageClock,
    time_detection,
)

SAMPLE = {"image": torch.randint(0, 255, (3, 80, 96), dtype=torch.uint8), "image_id": "one"}


class Ticks:
    """A clock that is one second further whenever one of the stand-ins says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    clock = Ticks()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_a_stage_within_a_stage_takes_its_time_from_the_outer_one(ticks: Ticks) -> None:
    clock = StageClock(torch.device("cpu"))
    with clock.stage(POST_PROCESSING):
        ticks.now += 1
        with clock.stage(FEATURES):
            ticks.now += 2
            with clock.stage(PROPOSALS):
                ticks.now += 4
            ticks.now += 8
        ticks.now += 16
    ticks.now += 32
    with clock.stage(HEADS):
        ticks.now += 64
    assert clock.seconds == {POST_PROCESSING: 17, FEATURES: 10, PROPOSALS: 4, HEADS: 64}


def test_a_gpu_is_waited_for_before_each_look_at_the_clock(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(device: torch.device) -> None:
        ticks.now += device.index

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    clock = StageClock(torch.device("cuda", 3))
    with clock.stage(FEATURES), clock.stage(HEADS):
        pass
    assert (clock.seconds[FEATURES], clock.seconds[HEADS]) == (6, 3)


@pytest.mark.parametrize("key", GENERATIONS)
def test_every_stage_of_every_generation_is_seen_and_they_make_up_the_whole(
    key: str, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = build_contender(key, "lenet5", ["a", "b"], min_size=64, max_proposals=9).detector
    parts = PARTS[type(detector)]
    before = torch.no_grad()(detector.detect)([SAMPLE])[0]
    owners = {id(part): set(vars(part)) for part in detector.modules()}
    spent = _make_slow(detector, set(parts), ticks, monkeypatch)

    detections, seconds = time_detection(detector, SAMPLE)

    assert set(spent) == set(parts)  # each was called
    for stage in STAGES[:3]:
        assert seconds[stage] == sum(value for path, value in spent.items() if parts[path] == stage) > 0
    assert seconds[POST_PROCESSING] == 0  # this clock stands still there
    assert sum(seconds.values()) == ticks.now
    assert all(torch.equal(detections[name], before[name]) for name in before)
    monkeypatch.undo()
    assert {id(part): set(vars(part)) for part in detector.modules()} == owners
    assert torch.equal(torch.no_grad()(detector.detect)([SAMPLE])[0]["boxes"], before["boxes"])


def _make_slow(detector: Any, paths: set[str], ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let these parts take 1, 2, 4, ... seconds each time; returns what they took."""
    spent: dict[str, float] = {}

    def slow(path: str, function: Any, seconds: float) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            ticks.now += seconds
            spent[path] = spent.get(path, 0) + seconds
            return function(self, *args, **kwargs)

        return call

    for number, path in enumerate(sorted(paths)):
        *owners, name = path.split(".")
        owner = detector
        for each in owners:
            owner = getattr(owner, each)
        # Of the class, as the real ones are: the clocks must find and restore that.
        monkeypatch.setattr(type(owner), name, slow(path, getattr(type(owner), name), 2.0**number))
    return spent


def test_the_parts_are_restored_after_an_error() -> None:
    detector = build_contender("faster_rcnn", "lenet5", ["a"], min_size=64).detector
    with pytest.raises(TypeError, match="uint8"):
        time_detection(detector, {**SAMPLE, "image": torch.zeros(3, 8, 8)})
    assert not {"encode", "propose"} & set(vars(detector)) and "forward" not in vars(detector.rpn)
