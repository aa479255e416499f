"""Exported files as a user meets them: `detkit.load`, `predict`, and files that are none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detkit
from detkit.deploy.description import Description
from detkit.deploy.runtime import ExportedModel
from detkit.detections import Detections
from detkit.errors import CheckpointError, ConfigError, ImageTypeError

from .conftest import Exported
from .test_graphs import images


def photographs(folder: Path) -> list[Path]:
    """Two of one size and one of another."""
    files = []
    for number, (_, height, width) in enumerate([(1, 60, 80), (1, 60, 80), (1, 50, 40)]):
        files.append(folder / f"{number}.png")
        Image.fromarray(images(1, height, width)[0].permute(1, 2, 0).numpy()).save(files[-1])
    return files


def test_the_same_predict(pyramid: Exported, tmp_path: Path) -> None:
    model, files = detkit.load(pyramid.path), photographs(tmp_path)
    expected = pyramid.detector.predict(files, score_threshold=0.2, classes=["dog"])
    assert any(len(each["scores"]) for each in expected)
    for size in (1, 2):
        found = model.predict(files, score_threshold=0.2, classes=["dog"], batch_size=size)
        for ours, theirs in zip(expected, found, strict=True):
            assert isinstance(theirs, Detections) and theirs.class_names == ["cat", "dog"]
            assert isinstance(theirs["boxes"], np.ndarray)
            np.testing.assert_allclose(theirs["boxes"], ours["boxes"].numpy(), atol=1e-2, rtol=0)
    one = model.predict(Image.open(files[0]))
    assert [row["category_id"] for row in one.to_coco("a")] == [[7, 9][label - 1] for label in one["labels"]]
    assert one.draw(files[0]).size == pyramid.detector.predict(files[0]).draw(files[0]).size
    tensor = torch.from_numpy(np.array(Image.open(files[0]))).permute(2, 0, 1)  # as a data set of detkit has it
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(model.predict(tensor)[name], one[name])
    options = {"agnostic_nms": True, "tiles": 40}
    tiled, expected = model.predict(files[0], **options), pyramid.detector.predict(files[0], **options)
    np.testing.assert_allclose(tiled["scores"], expected["scores"].numpy(), atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="no class 'cow'"):
        model.predict(files[0], classes=["cow"])
    with pytest.raises(ImageTypeError, match="wanted is a uint8 tensor"):
        model.predict(torch.zeros(3, 4, 4))
    with pytest.raises(ImageTypeError, match=r"float32 array of shape \(1, 3, 4, 4\); wanted is uint8"):
        model.detect(np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(ConfigError, match="device cuda:1: this ONNX Runtime cannot use CUDA"):
        detkit.load(pyramid.path, "cuda:1")


def test_no_torch_is_imported(pyramid: Exported, tmp_path: Path) -> None:
    (file, *_) = photographs(tmp_path)
    code = (
        f"import sys, detkit\nfound = detkit.load({str(pyramid.path)!r}).predict({str(file)!r})\n"
        "print(found)\nassert len(found['scores']) and found.to_coco(1)\n"
        "assert not {'torch', 'lightning', 'numba'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "detections: " in done.stdout


def test_openvinos_telemetry_is_not_imported() -> None:
    code = (
        "import sys\nfrom detkit.deploy.runtime import import_openvino\nimport_openvino().Core()\n"
        "assert not [name for name, each in sys.modules.items() if 'openvino_telemetry' in name and each is not None]"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_that_cannot_be_used(pyramid: Exported, tmp_path: Path) -> None:
    import onnx

    with pytest.raises(CheckpointError, match=r"none\.onnx: no such file"):
        detkit.load(tmp_path / "none.onnx")
    (tmp_path / "damaged.onnx").write_bytes(pyramid.path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"damaged\.onnx: is damaged, or no ONNX file"):
        detkit.load(tmp_path / "damaged.onnx")
    graph = onnx.load(pyramid.path)
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match=r"other\.onnx: `detkit export` has not written this file"):
        detkit.load(tmp_path / "other.onnx")
    with pytest.raises(ConfigError, match="device tpu"):
        ExportedModel(pyramid.path, "tpu")


def test_a_runtime_that_is_missing(pyramid: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="needs onnxruntime or openvino: pip install onnxruntime"):
        ExportedModel(pyramid.path)


def test_descriptions() -> None:
    right = Description("FasterRCNN", ["a"], [1], 0.05, 100, 0, "best.ckpt", "1.0")
    assert Description.from_json(right.to_json(), "x.onnx") == right
    content = json.loads(right.to_json())
    for changed in (
        {**content, "class_names": "a"},
        {**content, "max_detections": 1.5},
        {"detector": "FasterRCNN"},
        {**content, "class_names": [], "category_ids": []},
        {**content, "class_names": ["a", "a"], "category_ids": [1, 2]},
        {**content, "class_names": ["a", "b"]},
        {**content, "class_names": ["\x1b[31ma"]},
        {**content, "class_names": ["a\0"]},
        [],
    ):
        with pytest.raises(CheckpointError, match=r"x\.onnx: its metadata is damaged"):
            Description.from_json(json.dumps(changed), "x.onnx")


def test_export_is_still_a_function_once_a_file_was_loaded(pyramid: Exported) -> None:
    detkit.load(pyramid.path)
    assert callable(detkit.export)
