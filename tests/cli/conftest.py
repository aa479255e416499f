"""`detkit` in this process, with the toy classes of `fakes.py`, in a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from detkit.cli import lightning_cli
from detkit.cli.main import main
from tests.cli import fakes

CONFIG = """
model:
  class_path: Tiny
  init_args:
    optim: {lr: 0.05}
data:
  class_path: Numbers
trainer:
  accelerator: cpu
  max_epochs: 2
"""
#: A real detector and data set, as small as they may be.
SMALL = """
model:
  class_path: FasterRCNN
  init_args:
    backbone: tiny
    features: {fpn: false}
    image: {min_size: 64, max_size: 64}
    anchors: {sizes: [[16, 32]]}
    rpn: {post_nms: [40, 40], batch_size: 32}
    roi: {batch_size: 32, head_channels: 32}
    optim: {warmup_steps: 0, lr: 0.01}
data:
  class_path: Shapes
  init_args: {path: shapes, num_train: 6, num_val: 3, num_test: 5, image_size: 64, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 1}
"""


class Result(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """`program("fit", "--config", "my.yaml")` in a fresh folder; what it adds to the environment is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def run(*args: str) -> Result:
        capsys.readouterr()
        code = main(list(args))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def detkit(program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`program` with the toy classes, in a folder that holds toy.yaml."""
    monkeypatch.setattr(lightning_cli, "base_classes", lambda: (fakes.Model, fakes.Data))
    Path("toy.yaml").write_text(CONFIG)
    return program
