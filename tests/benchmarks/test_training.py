"""The benchmark of training: loading by each library, and what the tables make of the times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import training
from detkit.data import Shapes


def test_each_way_to_load_is_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # other tests follow in this process
    Shapes(str(tmp_path / "shapes"), 3, 1, 1, 64).prepare_data()
    options = ["--data", str(tmp_path / "shapes"), "--loading_rounds", "1", "--detectors"]
    content = training.main([*options, "--output", str(tmp_path / "found.json")])
    assert len(content["loading"]) == 4 and min(content["loading"].values()) > 0
    assert json.loads((tmp_path / "found.json").read_text()) == content
    text = (tmp_path / "found.md").read_text()
    assert text in capsys.readouterr().out
    assert "| albumentations |" in text and "## A step" not in text


def test_the_speed_is_torchvisions_time_by_ours() -> None:
    found = training.ratios({"detkit": [1.0, 2.0, 4.0], "torchvision": [2.0, 2.0, 2.0]})
    assert found == {"detkit": 2.0, "torchvision": 2.0, "speed": 1.0, "least": 0.5, "largest": 2.0}


def test_works_take_turns_to_be_first() -> None:
    calls: list[str] = []
    taken = training.in_pairs({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert calls == ["b", "a", "a", "b", "b", "a"]
    assert [len(values) for values in taken.values()] == [2, 2]
