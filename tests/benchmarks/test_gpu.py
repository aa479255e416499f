"""The benchmark for a GPU, on tiny sizes on the CPU: every part runs, and the report holds each."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu

PYTEST = "FAILED tests/device/check_detectors.py::test_a[x] - boom\n1 failed, 11 passed, 2 warnings in 3s\n"


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []

    def stand_in(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append((command, options))
        return subprocess.CompletedProcess(command, 1, PYTEST, "")

    monkeypatch.setattr(subprocess, "run", stand_in)  # the checks have a test of their own
    content = gpu.main(["--device", "cpu", "--quick", "--output", str(tmp_path)])
    parts = content["parts"]
    assert parts.keys() == gpu.PARTS.keys()
    assert [found["stopped"] for found in parts.values() if "stopped" in found] == []
    assert parts["checks"] == {
        "device": "simulated",
        "failed": 1,
        "passed": 11,
        "failures": ["tests/device/check_detectors.py::test_a[x] - boom"],
    }
    assert "tests/device/check_detectors.py" in asked[0][0]
    for name in ("training", "training_compiled"):
        ours, theirs = (parts[name]["first_loss"][side] for side in ("detkit", "torchvision"))
        assert ours == pytest.approx(theirs, rel=0.5) and min(parts[name]["images_per_second"].values()) > 0
    assert json.loads((tmp_path / "gpu_cpu.json").read_text()) == json.loads(json.dumps(content))
    text = (tmp_path / "gpu_cpu.md").read_text()
    assert all(f"## {title}" in text for title, _ in gpu.TABLES.values())
    assert "numbers mean nothing" in text and "1 failed" in text and "not run" not in text


def test_what_has_no_time_or_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(run: gpu.Run) -> dict[str, Any]:
        while True:
            time.sleep(0.01)

    def wrong(run: gpu.Run) -> dict[str, Any]:
        raise ValueError("no\nway")

    monkeypatch.setattr(gpu, "PARTS", {"slow": (slow, 0), "wrong": (wrong, 0), "long": (wrong, 99)})
    sizes, device = gpu.Sizes(), torch.device("cpu")
    assert gpu.run_part("slow", gpu.Run(device, sizes, gpu.Budget(0.05))) == {
        "stopped": "the time was up before its end"
    }
    run = gpu.Run(device, sizes, gpu.Budget(50))
    assert gpu.run_part("wrong", run) == {"stopped": "failed: ValueError: no way"}
    assert gpu.run_part("long", run)["stopped"].endswith("and it needs 99")
