"""The data set of a user's own that docs/data.md shows, as it stands there."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import lightning as L
import pytest

import detkit
from detkit.settings import construct

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


def test_a_detector_learns_from_it(my_data: ModuleType) -> None:
    data = my_data.Cells("photos", batch_size=2, num_workers=0)
    model = construct(
        detkit.FasterRCNN,
        {"class_names": data.class_names, "backbone": "tiny", "features__fpn": False, "image__min_size": 48},
    )
    trainer = L.Trainer(accelerator="cpu", fast_dev_run=True, logger=False, enable_progress_bar=False)
    trainer.fit(model, datamodule=data)
    assert model.last_metrics["num_images"] == 1
