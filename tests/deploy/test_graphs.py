"""Exported graphs give what Python gives, on images of any size and number."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import detkit
from detkit.cli.main import main
from detkit.deploy.graph import DetectionGraph, trace
from detkit.deploy.module import exported_checkpoint
from detkit.deploy.runtime import ExportedModel
from detkit.deploy.writers import convert_onnx, write_torch
from detkit.errors import ConfigError

from .conftest import FASTER, Exported, describe, detecting, exported_to_onnx

#: Number, height and width of the images of a batch.
SHAPES = [(1, 64, 64), (2, 48, 64), (4, 100, 70), (1, 1, 1), (1, 300, 40), (1, 33, 1000)]


def images(count: int, height: int, width: int) -> Tensor:
    """With structure in them: noise alone looks the same everywhere."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(height))
    grown = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (grown * 255).round().to(torch.uint8)


def assert_same(expected: list[dict[str, Tensor]], found: list[dict], pixels: float, score: float) -> None:
    """The same detections in the same order, up to rounding."""
    assert len(expected) == len(found)
    for ours, theirs in zip(expected, found, strict=True):
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        np.testing.assert_allclose(theirs["boxes"], ours["boxes"].numpy(), atol=pixels, rtol=0)
        np.testing.assert_allclose(theirs["scores"], ours["scores"].numpy(), atol=score, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_onnx_runtime(pyramid: Exported, shape: tuple[int, int, int]) -> None:
    batch = images(*shape)
    expected = pyramid.detector(list(batch))
    assert all(len(each["scores"]) > 5 for each in expected)
    assert_same(expected, ExportedModel(pyramid.path).detect(batch.numpy()), 1e-2, 1e-4)


@torch.no_grad()
def test_openvino(pyramid: Exported, tmp_path: Path) -> None:
    convert_onnx(pyramid.path, pyramid.description, tmp_path / "faster.xml")
    model = ExportedModel(tmp_path / "faster.xml")
    assert (model.runtime, model.description) == ("openvino", pyramid.description)
    for shape in SHAPES:
        batch = images(*shape)
        assert_same(pyramid.detector(list(batch)), model.detect(batch.numpy()), 1e-1, 1e-3)


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_threads_get_their_own_detections(pyramid: Exported, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"faster{suffix}"
    if suffix == ".xml":
        convert_onnx(pyramid.path, pyramid.description, path)
    model = ExportedModel(path if suffix == ".xml" else pyramid.path)
    batches = [images(1, 40 + i, 64).numpy() for i in range(16)]
    expected = [model.detect(batch)[0]["boxes"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: model.detect(batch)[0]["boxes"], batches * 3))
    for boxes, wanted in zip(found, expected * 3, strict=True):
        np.testing.assert_allclose(boxes, wanted, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_torch_export_runs_without_detkit_and_gives_the_same_bits(tmp_path: Path) -> None:
    detector = detecting(detkit.FasterRCNN, **FASTER)
    write_torch(trace(DetectionGraph(detector)), describe(detector), tmp_path / "faster.pt2")
    batch = images(2, 48, 64)
    torch.save(batch, tmp_path / "batch.pt")
    code = (
        "import sys, torch, torchvision\n"
        "extra = {'detkit.json': ''}\n"
        "graph = torch.export.load('faster.pt2', extra_files=extra).module()\n"
        "torch.save([each.detach() for each in graph(torch.load('batch.pt'))], 'found.pt')\n"
        "assert 'class_names' in extra['detkit.json']\n"
        "assert not [name for name in sys.modules if name.startswith('detkit')]"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True, capture_output=True)
    boxes, scores, labels, image = torch.load(tmp_path / "found.pt")
    for i, expected in enumerate(detector(list(batch))):
        own = image == i
        assert torch.equal(boxes[own], expected["boxes"]) and torch.equal(scores[own], expected["scores"])
        assert torch.equal(labels[own], expected["labels"])


@torch.no_grad()
def test_fast_rcnn_takes_proposals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With RoI max pooling, as in its paper."""
    model = exported_to_onnx(
        detecting(detkit.FastRCNN, proposals__max_boxes=[50, 50], roi__pooling="max"), tmp_path / "fast.onnx"
    )
    exported = ExportedModel(model.path)
    for count, (_, height, width) in ((1, SHAPES[0]), (40, SHAPES[2]), (60, SHAPES[2])):  # more than are used
        image = images(1, height, width)
        corner = torch.rand(count, 2) * torch.tensor([width / 2, height / 2])
        proposals = torch.cat([corner, corner + 5 + torch.rand(count, 2) * 20], dim=1)
        expected = model.detector.detect([{"image": image[0], "proposals": proposals}])
        assert_same(expected, exported.detect(image.numpy(), proposals.numpy()), 1e-2, 1e-4)
        array = image[0].permute(1, 2, 0).numpy()
        assert_same(expected, [exported.predict(array, proposals=proposals.numpy())], 1e-2, 1e-4)
    nothing = torch.full((3, 4), 5.0)  # boxes without area
    assert len(model.detector.detect([{"image": image[0], "proposals": nothing}])[0]["scores"]) == 0
    for none in (nothing.numpy(), nothing[:0].numpy(), nothing[:0]):
        (found,) = exported.detect(image.numpy(), none)
        assert found["boxes"].shape == (0, 4) and found["labels"].dtype == np.int64
    with pytest.raises(ConfigError, match=r"fast\.onnx: this FastRCNN needs proposals"):
        exported.predict(array)
    with pytest.raises(ConfigError, match=r"proposals of shape \(3, 5\): wanted is \(P, 4\)"):
        exported.predict(array, proposals=np.zeros((3, 5)))
    with pytest.raises(ConfigError, match=r"fast\.onnx: an exported FastRCNN wants proposals"):
        exported_checkpoint(model.path)
    Image.fromarray(array).save(tmp_path / "photo.png")
    assert main(["predict", str(model.path), str(tmp_path / "photo.png"), "--output", str(tmp_path)]) == 2
    assert "fast.onnx: an exported FastRCNN wants proposals" in capsys.readouterr().err


@torch.no_grad()
def test_images_without_detections(tmp_path: Path) -> None:
    none = {"rpn__score_threshold": 0.9999, "detection__score_threshold": 0.9999}
    model = exported_to_onnx(detecting(detkit.FasterRCNN, **FASTER, **none), tmp_path / "none.onnx")
    convert_onnx(model.path, model.description, tmp_path / "none.xml")
    runtimes = [ExportedModel(model.path), ExportedModel(tmp_path / "none.xml")]
    for count in (1, 2):
        batch = images(count, 48, 64)
        assert [len(each["scores"]) for each in model.detector(list(batch))] == [0] * count
        for runtime in runtimes:
            assert [each["boxes"].shape for each in runtime.detect(batch.numpy())] == [(0, 4)] * count


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (detkit.FastRCNN, {"dedup_stride": 16}, "dedup_stride"),
        (detkit.FastRCNN, {"test_sizes": [64]}, "test_sizes"),
        (detkit.FasterRCNN, {"detection__max_candidates": 9}, "max_candidates"),
    ],
)
def test_what_cannot_be_exported(kind: type, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectionGraph(detecting(kind, **options))


class Branching(torch.nn.Module):
    """A backbone that asks for values."""

    strides, channels = [8], [3]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.nn.functional.avg_pool2d(x if x.mean() > 0 else -x, 8)]


def test_a_backbone_that_cannot_be_traced() -> None:
    detector = detecting(detkit.FasterRCNN, **FASTER, backbone={"class_path": f"{__name__}.Branching"})
    with pytest.raises(ConfigError, match=r"cannot be traced for images of any size by torch\.export: \w"):
        trace(DetectionGraph(detector))
