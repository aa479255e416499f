"""The curves of a run: logs that are joined, round numbers on the axes, and an SVG that is one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from detkit.engine.curves import (
    EARLIER,
    LOG,
    MAX_POINTS,
    RunCurves,
    Series,
    draw_curves,
    read_rows,
    ticks,
    to_series,
    write_rows,
)

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
    """Of three runs; a log may be missing, have other columns, or end within a line."""
    first, second, joined = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "joined.csv"
    first.write_text("epoch,step,train/loss,val/map\n0,9,3.0,\n0,19,2.0,\n0,19,,0.1\n1,29,9.0,\n")
    second.write_text("epoch,step,train/loss,lr-SGD\n1,29,1.5,0.1\n1,39,nan,\n2,4")
    write_rows(joined, read_rows([tmp_path / "gone.csv", first], until=20))
    found = to_series(read_rows([joined, second]))
    assert found["train/loss"] == Series([10, 20, 30], [3.0, 2.0, 1.5])
    assert found["val/map"] == Series([20], [0.1])
    assert found["lr-SGD"] == Series([30], [0.1])
    write_rows(tmp_path / "twice.csv", read_rows([joined, second], until=39))
    assert to_series(read_rows([tmp_path / "twice.csv"])) == {
        **found,
        "epoch": Series([10, 20, 20, 30, 5], [0, 0, 0, 1, 2]),
    }
    write_rows(tmp_path / "none.csv", [])
    assert not (tmp_path / "none.csv").exists()


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


def test_a_curve_of_one_point_is_seen() -> None:
    root = ElementTree.fromstring(
        draw_curves({"train/loss": Series([7], [2.0]), "val/map_50": Series([1, 7], [0, 0.5])})
    )
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) == 3
    sizes = sorted(float(each.get("r")) for each in circles)
    assert sizes[0] > 1 and sizes[2] > 1.5 * sizes[1]
    box = [float(value) for value in root.get("viewBox").split()]
    assert all(0 < float(each.get("cx")) < box[2] and 0 < float(each.get("cy")) < box[3] for each in circles)


def test_a_third_run_keeps_the_logs_of_both_before_it(tmp_path: Path) -> None:
    """Also where it goes on from a checkpoint that lies before the second one's last line, and the runs were moved."""
    old = [tmp_path / "old" / f"version_{number}" for number in range(2)]
    for folder, steps in zip(old, ((9, 19, 29), (19, 29, 39, 49)), strict=True):
        folder.mkdir(parents=True)
        (folder / LOG).write_text("step,train/loss\n" + "".join(f"{step},{folder.name[-1]}\n" for step in steps))
    curves = RunCurves(folder=old[1])
    curves.writes = True
    curves.on_train_start(SimpleNamespace(ckpt_path=old[0] / "checkpoints/last.ckpt", global_step=15), None)
    moved = (tmp_path / "old").rename(tmp_path / "new")
    third = RunCurves(folder=moved / "version_2")
    third.writes = True
    third.on_train_start(SimpleNamespace(ckpt_path=moved / "version_1/checkpoints/best.ckpt", global_step=40), None)
    joined = to_series(read_rows([moved / "version_2" / EARLIER]))
    assert joined == {"train/loss": Series([10, 20, 30, 40], [0.0, 1.0, 1.0, 1.0])}
    again = RunCurves(folder=moved / "version_3")
    again.writes = True
    again.on_train_start(SimpleNamespace(ckpt_path=None, global_step=0), None)
    assert not (moved / "version_3").exists()
