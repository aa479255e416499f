"""The data set of a user's own that docs/data.md shows, as it stands there."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture
def my_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_image: Callable[..., Path]) -> Iterator[ModuleType]:
    """The documented module in the working directory, beside a folder `photos` in its format."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S) if "class " in block)
    (tmp_path / "my_data.py").write_text(code)
    for split, count in (("train", 3), ("val", 1)):
        names = [f"{split}{number}.png" for number in range(count)]
        for name in names:
            write_image(tmp_path / "photos" / name, 64, 48)
        rows = [{"file": name, "size": [64, 48], "boxes": [[4, 6, 30, 40], [60, 40, 70, 60]]} for name in names]
        (tmp_path / "photos" / f"{split}.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_data")
    monkeypatch.delitem(sys.modules, "my_data")


def test_it_is_read_checked_and_summed_up(my_data: ModuleType) -> None:
    data = my_data.Cells("photos", num_workers=0)
    train = data.annotations("train")
    assert train is not None and train.fields(0)["boxes"].tolist() == [[4, 6, 30, 40], [60, 40, 64, 48]]
    assert data.summary().splits["train"].findings == {"clipped": 3}
    assert data.annotations("test") is None and data.class_names == ["cell"]


def test_a_detector_learns_from_it_by_the_documented_command(my_data: ModuleType) -> None:
    (line,) = re.findall(r"`detkit (fit --import my_data [^`]*)`", DOCUMENT.read_text())
    model = "--model FasterRCNN --model.backbone tiny --model.weights null --model.features.fpn false"
    rest = "--model.image.min_size 48 --data.num_workers 0 --trainer.fast_dev_run true --trainer.accelerator cpu"
    command = [sys.executable, "-m", "detkit", *f"{line} {model} {rest}".split()]
    environment = os.environ | {"PYTHONPATH": str(DOCUMENT.parents[1])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    assert "cell (1)" in result.stdout and "epoch 1 of 1" in result.stdout
