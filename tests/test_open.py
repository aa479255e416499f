"""A user's own backbone, data set, proposal method and detector: ten lines each in a module, and one config."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import detkit
from detkit.errors import CheckpointError

#: What CONTRIBUTING.md shows; `test_the_guide_shows_what_is_tested` holds them together.
MODULE = '''
from dataclasses import dataclass

import numpy as np
from torch import nn

from detkit import FastRCNN
from detkit.data import Annotations, DetectionDataModule, Shapes
from detkit.proposals import ProposalMethod


class Stripes(nn.Module):
    """A backbone: maps, and their strides and channels."""

    strides, channels = [8], [16]

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.ReLU())

    def forward(self, images):
        return [self.body(images)]


class FirstImages(DetectionDataModule):
    """A data set: the first images of Shapes; a reader of a format of your own fills `Annotations` likewise."""

    def __init__(self, path: str, **shared) -> None:
        super().__init__(**shared)
        self.shapes = Shapes(path, 4, 2, 2, 64)
        self._set_classes(self.shapes.class_names)

    def read(self, split: str) -> Annotations:
        return self.shapes.read(split)


@dataclass(frozen=True)
class Grid(ProposalMethod):
    """A proposal method: squares on a grid."""

    step: int = 16

    def __call__(self, image, image_id=None):
        height, width = image.shape[:2]
        y, x = np.mgrid[0 : height - 31 : self.step, 0 : width - 31 : self.step].reshape(2, -1)
        return np.stack([x, y, x + 32, y + 32], axis=1)


class LoudFastRCNN(FastRCNN):
    """A detector: Fast R-CNN with one more loss."""

    def losses(self, batch, encoded=None):
        losses = super().losses(batch, encoded)
        return losses | {"loss_twice": losses["loss_box_reg"]}
'''

CONFIG = """
trainer: {max_epochs: 1, accelerator: cpu, default_root_dir: runs/own}
model:
  class_path: own.LoudFastRCNN
  init_args:
    backbone: {class_path: own.Stripes, init_args: {width: 16}}
    features: {fpn: false}
    image: {min_size: 64, max_size: 64}
    roi: {pool_size: 3, head_channels: 16}
    proposals: {method: {class_path: own.Grid, init_args: {step: 8}}}
data:
  class_path: own.FirstImages
  init_args: {path: shapes, batch_size: 2, num_workers: 0}
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`detkit` with these arguments, in a process of its own, in that folder."""
    command = [sys.executable, "-m", "detkit", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user's module and config are, and a run that was trained with them."""
    folder = tmp_path_factory.mktemp("open")
    (folder / "own.py").write_text(MODULE)
    (folder / "own.yaml").write_text(CONFIG)
    fit = run(folder, "fit", "--import", "own", "--config", "own.yaml")
    assert fit.returncode == 0, fit.stderr
    return folder


def test_a_run_of_own_classes_is_tested(folder: Path) -> None:
    test = run(folder, "test", "--import", "own", "--ckpt_path", "runs/own")
    assert test.returncode == 0, test.stderr
    assert "AP50" in test.stdout and (folder / "runs/own/version_0/report/index.html").is_file()
    assert "val/loss_twice" in (folder / "runs/own/version_0/metrics.csv").read_text()
    assert [path.name for path in (folder / "shapes" / "proposals").glob("train-*")]


def test_nothing_is_imported_because_a_checkpoint_says_so(folder: Path) -> None:
    test = run(folder, "test", "--ckpt_path", "runs/own")
    assert test.returncode == 2 and "--import own" in test.stderr and "Traceback" not in test.stderr
    with pytest.raises(CheckpointError, match="own is not imported"):
        detkit.load(folder / "runs/own")


def test_in_python_an_import_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    own = __import__("own")
    model = detkit.load("runs/own")
    assert isinstance(model, own.LoudFastRCNN) and isinstance(model.given.settings.method, own.Grid)
    assert len(model.predict(sorted(folder.glob("shapes/JPEGImages/test_*"))[0])["boxes"]) >= 0
    for name in ("own", "own.Stripes"):
        sys.modules.pop(name, None)


def test_the_guide_shows_what_is_tested() -> None:
    guide = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    for block in MODULE.strip().split("\n\n\n")[1:]:
        assert block in guide, block.splitlines()[0]
