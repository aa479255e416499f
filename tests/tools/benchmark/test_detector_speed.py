"""`detkit benchmark speed`: what it times, and what it makes of the times."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detkit
from detkit.cli.main import main
from detkit.tools.benchmark import detector_speed
from detkit.tools.benchmark.detector_speed import agreement, time_in_turns
from detkit.tools.benchmark.torchvision_equivalent import torchvision_equivalent
from tests.deploy.conftest import FASTER, PYRAMID, detecting, save
from tests.detectors.conftest import in_the_order_of

OTHER = {
    "image__divisor": 1,
    "image__mean": [0.3, 0.4, 0.5],
    "rpn__nms_threshold": 0.5,
    "detection__nms_threshold": 0.3,
    "rpn__post_nms": [30, 15],
}


@pytest.mark.parametrize("options", [{}, PYRAMID, {"roi__head": "conv"}, OTHER, PYRAMID | OTHER])
@torch.no_grad()
def test_torchvisions_equivalent_finds_the_same(options: dict) -> None:
    detector = detecting(detkit.FasterRCNN, **(FASTER | options), rpn__min_size=1e-3)
    image = torch.randint(0, 256, (3, 50, 83), dtype=torch.uint8)
    theirs, ours = torchvision_equivalent(detector)([image / 255])[0], detector.predict(image)
    assert len(theirs["boxes"]) == len(ours["boxes"]) > 0
    ours = in_the_order_of(theirs, ours)
    torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=1e-2, rtol=0)
    torch.testing.assert_close(ours["scores"], theirs["scores"], atol=1e-4, rtol=0)


def test_detectors_that_torchvision_has_not() -> None:
    assert torchvision_equivalent(detecting(detkit.FastRCNN)) is None
    assert torchvision_equivalent(detecting(detkit.FasterRCNN, roi__pooling="max")) is None
    assert torchvision_equivalent(detecting(detkit.FasterRCNN, anchors__convention="paper")) is None
    assert torchvision_equivalent(detecting(detkit.FasterRCNN, rpn__min_size=16)) is None


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detector_speed, "SIDE", 64)
    monkeypatch.setattr(detector_speed, "peak_memory", lambda *_: 12.0)  # a process for each way; see below
    save(detecting(detkit.FasterRCNN, **FASTER), Path("toy.ckpt"))
    threads = torch.get_num_threads()
    assert main(["benchmark", "speed", "toy.ckpt", "--count", "2", "--rounds", "2", "--output", "out"]) == 0
    assert torch.get_num_threads() == threads
    out = capsys.readouterr().out
    assert "detkit, optimized" in out and "ms of its stages" in out and "written: out/speed.svg" in out
    rows = {row["name"]: row for row in csv.DictReader(Path("out/speed.csv").read_text().splitlines())}
    expected = ["detkit", "detkit, optimized", "torchvision", "onnx", "openvino"]
    assert [name for name in rows if "bfloat16" not in name] == expected
    assert float(rows["torchvision"]["ratio"]) == 1 and float(rows["onnx"]["same"]) >= 0.95
    assert float(rows["detkit"]["seconds_features"]) > 0 and rows["torchvision"]["seconds_features"] == ""
    content = json.loads(Path("out/speed.json").read_text())
    assert content["images"] == 2 and content["machine"]["torch"] == torch.__version__
    assert "torchvision" in Path("out/speed.svg").read_text()


def test_peak_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    save(detecting(detkit.FasterRCNN, **FASTER), tmp_path / "toy.ckpt")
    image = np.zeros((64, 64, 3), np.uint8)
    peaks, ballast = [], b""
    for size in (0, 1_500_000_000):
        ballast = bytes(bytearray(size))  # of this process, not of the one that is measured
        peaks.append(detector_speed.peak_memory("detkit", str(tmp_path / "toy.ckpt"), 1, image))
    assert len(ballast) == size
    assert None in peaks or (peaks[0] > 100 and abs(peaks[1] - peaks[0]) < 300)
    assert detector_speed.peak_memory("detkit", str(tmp_path / "missing.ckpt"), 1, image) is None


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for args, message in (
        (["speed", "nothing"], "nothing: no such checkpoint or run folder"),
        (["speed", "--rounds", "0"], "rounds"),
        (["quick"], "there is no benchmark 'quick'; there are: generations, speed"),
    ):
        assert main(["benchmark", *args]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_real_command_line(tmp_path: Path) -> None:
    """Where torch is not imported yet, unlike in this process."""
    environment = os.environ | {"PYTHONPATH": str(Path(detkit.__file__).parents[1])}
    for model in ("runs/none", "resnet7"):
        command = [sys.executable, "-m", "detkit", "benchmark", "speed", model, "--images", "photos/"]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert result.stderr.startswith(f"detkit: {model}: no such checkpoint or run folder"), result.stderr


@pytest.mark.parametrize("images", ["photos", ["photos"], "photos/*.png"])
def test_images_may_be_one_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: str | list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(3):
        Image.new("RGB", (20 + number, 30)).save(f"photos/{number}.png")
    assert [picture.shape for picture in detector_speed._pictures(images, 2)] == [(30, 20, 3), (30, 21, 3)]


def test_ways_are_timed_in_turns() -> None:
    calls = []
    ways = {name: lambda image, name=name: calls.append((name, image.shape[0])) or {} for name in "ab"}
    times, found = time_in_turns(ways, [np.zeros((1, 1, 3)), np.zeros((2, 1, 3))], rounds=2)
    assert calls == [("a", 1), ("b", 1), *[("a", 1), ("b", 1), ("a", 2), ("b", 2)] * 2]
    assert times["a"].shape == (2, 2, 2) and [len(each) for each in found.values()] == [2, 2]


def test_agreement_counts_expected_detections() -> None:
    one = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([1])}
    none = {name: values[:0] for name, values in one.items()}
    other = one | {"labels": torch.tensor([2])}
    assert agreement([one, one], [one, other]) == 0.5 and agreement([one], [none]) == 0
    assert agreement([none], [one]) is None
