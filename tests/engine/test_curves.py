"""The curves of a run: logs that are joined, round numbers on the axes, and an SVG that is one."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detkit.engine.curves import MAX_POINTS, RunCurves, Series, draw_curves, read_logs, ticks
from detkit.errors import CheckpointError

SVG = "{http://www.w3.org/2000/svg}"


@given(st.floats(-1e6, 1e6, allow_subnormal=False), st.one_of(st.just(0.0), st.floats(1e-9, 1e6)))
def test_ticks_enclose_what_is_drawn(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert found == sorted(set(found)) and 2 <= len(found) <= 8
    slack = 1e-6 * max(abs(low), span)
    assert found[0] <= low + slack and found[-1] >= low + span - slack


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0, 0.0003) == [0, 0.0001, 0.0002, 0.0003]
    assert ticks(5, 5) == [5, 6] and ticks(0, 0) == [0, 0.2]


def test_logs_are_joined_where_the_next_run_began(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("epoch,step,train/loss,val/map\n0,9,3.0,\n0,19,2.0,\n0,19,,0.1\n1,29,9.0,\n")
    second.write_text("epoch,step,train/loss,lr-SGD\n1,29,1.5,0.1\n1,39,nan,\n")
    found = read_logs([(first, 20), (tmp_path / "gone.csv", 20), (second, None)])
    assert found["train/loss"] == Series([10, 20, 30], [3.0, 2.0, 1.5])
    assert found["val/map"] == Series([20], [0.1])
    assert found["lr-SGD"] == Series([30], [0.1]) and math.isclose(found["epoch"].values[-1], 1)


def test_the_drawing_is_an_svg_with_a_panel_for_each_measure() -> None:
    steps = list(range(1, 2001))
    series = {
        "train/loss": Series(steps, [1 / step for step in steps]),
        "lr-<AdamW> & more": Series(steps, [0.1] * 2000),
        "val/map": Series([1000, 2000], [0.2, 0.4]),
        "val/map_50": Series([1000, 2000], [0.5, 0.7]),
    }
    root = ElementTree.fromstring(draw_curves(series))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert [t for t in texts if t in ("loss", "learning rate", "validation")] == ["loss", "learning rate", "validation"]
    assert {"AP50 0.7", "mAP 0.4", "lr-<AdamW> & more 0.1"} <= set(texts)
    lines = [line.get("points").split() for line in root.iter(f"{SVG}polyline")]
    assert len(lines) == 4 and max(map(len, lines)) <= MAX_POINTS
    assert "val/loss" not in draw_curves(series)


@pytest.mark.parametrize("state", [{"folders": ["a"], "until": []}, {"folders": [1], "until": [1]}, {"until": []}])
def test_a_checkpoint_with_another_state_is_refused(state: dict) -> None:
    with pytest.raises(CheckpointError, match=r"callbacks\.RunCurves"):
        RunCurves().load_state_dict(state)
