"""`detkit export`, and `detkit predict` and `detkit test` with its file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

import detkit
from detkit.cli.main import main
from detkit.data import Shapes
from detkit.data.shapes_drawing import SHAPE_CLASSES
from detkit.tools.benchmark.detector_speed import agreement
from tests.deploy.conftest import FASTER, detecting, save
from tests.features.test_folding import with_statistics

SHAPES = ["--data.path", "shapes", "--data.num_test", "5", "--data.image_size", "64", "--data.num_workers", "0"]


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_export_then_predict_and_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    detector = detecting(detkit.FasterRCNN, **FASTER, class_names=list(SHAPE_CLASSES))
    save(detector, Path("runs/toy/version_0/checkpoints/best.ckpt"))
    assert main(["export", "runs/toy", "--score_threshold", "0.1", "--max_detections", "7"]) == 0
    out = capsys.readouterr().out
    file = "runs/toy/version_0/checkpoints/best.onnx"
    assert out.startswith(f"exported: {file} (") and f"next: detkit predict {file} PHOTOS" in out
    description = detkit.load(file).description
    assert (description.score_threshold, description.max_detections, description.source) == (0.1, 7, "best.ckpt")

    data = ["--data", "Shapes", *SHAPES, "--data.num_train", "2", "--data.num_val", "2"]
    assert main(["test", file, *data, "--output", "exported"]) == 0
    options = ["--model.detection.score_threshold", "0.1", "--model.detection.max_detections", "7"]
    assert main(["test", "runs/toy", *data, *options, "--output", "python"]) == 0
    assert metrics(Path("exported"))["map"] == pytest.approx(metrics(Path("python"))["map"], abs=1e-6)
    capsys.readouterr()
    assert main(["predict", file, "shapes", "--output", "found"]) == 0
    assert Path("found/predictions.json").is_file()
    assert main(["fit", "--ckpt_path", file, "--model", "FasterRCNN", *data]) == 2
    assert "is an exported detector, which does not learn" in capsys.readouterr().err


@pytest.mark.slow
def test_numbers_of_8_bits_and_of_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Shapes("shapes", 1, 1, 6, 64).prepare_data()
    photos = sorted(str(path) for path in Path("shapes").rglob("*") if path.suffix in (".png", ".jpg"))
    save(with_statistics(detecting(detkit.FasterRCNN, **FASTER, backbone="resnet18")), Path("toy.ckpt"))
    for name, options in (
        ("full.onnx", []),
        ("int8.onnx", ["--int8", "shapes"]),
        ("full.xml", ["--format", "openvino"]),
        ("half.xml", ["--format", "openvino", "--half", "true"]),
        ("int8.xml", ["--format", "openvino", "--int8", "shapes"]),
    ):
        assert main(["export", "toy.ckpt", *options, "--output", name]) == 0, name
    assert "folding" not in capsys.readouterr().err
    kinds = Counter(node.op_type for node in onnx.load("int8.onnx").graph.node)
    weighted = kinds["Conv"] + kinds["Gemm"]
    assert kinds["DequantizeLinear"] > 0 and "BatchNormalization" not in kinds
    stored = [item.name for item in onnx.load("int8.onnx").graph.initializer if item.name.endswith("weight_quantized")]
    kept_in_float = 6 + 4  # the first convolutions, two layers of scores and two of boxes
    assert len(stored) == weighted - kept_in_float
    weights = {name: Path(name).with_suffix(".bin").stat().st_size for name in ("full.xml", "half.xml", "int8.xml")}
    assert weights["half.xml"] < 0.6 * weights["full.xml"] and weights["int8.xml"] < 0.5 * weights["full.xml"]

    full = detkit.load("full.onnx").predict(photos)
    for name, share in (("half.xml", 0.95), ("int8.onnx", 0.5), ("int8.xml", 0.5)):
        assert agreement(full, detkit.load(name).predict(photos), 0.7, 0.1) >= share, name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing"], "nothing: no such checkpoint or run folder"),
        (["toy.ckpt", "--output", "toy.xml"], "a file of onnx ends in .onnx; name it toy.onnx"),
        (["toy.ckpt", "--format", "tflite"], "tflite"),
        (["toy.ckpt", "--score_threshold", "2"], "score_threshold"),
        (["toy.ckpt", "--half", "true"], "format onnx: half goes with openvino, int8 with onnx and openvino"),
        (["toy.ckpt", "--int8", "photos"], "photos: no such file or folder"),
    ],
)
def test_mistakes(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save(detecting(detkit.FasterRCNN), Path("toy.ckpt"))
    assert main(["export", *args]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert [each.name for each in tmp_path.iterdir()] == ["toy.ckpt"]


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "resnet18", "roi__head": "conv", "features__fpn": True, "features__fpn_norm": True},
        {"backbone": "resnet18", "roi__head": "top", "roi__pool_size": 7},
    ],
    ids=["conv", "top"],
)
def test_heads_with_batch_norms_are_exported(tmp_path: Path, capfd: pytest.CaptureFixture[str], options: dict) -> None:
    """Such as that of torchvision's fasterrcnn_resnet50_fpn_v2."""
    sizes = {"anchors__sizes": [[8.0], [16], [32], [64], [128]]} if options["roi__head"] == "conv" else {}
    detector = with_statistics(detecting(detkit.FasterRCNN, **FASTER, **options, **sizes))
    save(detector, tmp_path / "best.ckpt")
    detkit.export(str(tmp_path / "best.ckpt"))
    assert len(capfd.readouterr().err) < 1000  # no traces of the exporter's
    image = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8).numpy()
    found = detkit.load(tmp_path / "best.onnx").predict(image)
    assert len(found["scores"]) > 0
    assert agreement([detector.predict(image)], [found], 0.999, 1e-4) >= 0.95
