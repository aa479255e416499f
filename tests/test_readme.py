"""README's Python and that of the page on training, executed as they stand there, on small data and a small network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import detkit
from detkit.settings import construct

ROOT = Path(__file__).parents[1]
SMALL = {
    "backbone": "tiny",
    "weights": None,
    "features": {"fpn": False},
    "image": {"min_size": 64, "max_size": 64},
    "rpn": {"post_nms": [40, 40]},
    "roi": {"head_channels": 32},
}


def python(page: str, word: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if word in block)
    return found


def small(cls: Callable[..., Any]) -> Callable[..., Any]:
    """The detector of the same arguments with a network that learns in seconds."""
    return lambda class_names, **settings: construct(cls, {"class_names": class_names, **settings, **SMALL})


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_training_and_detecting_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shapes = detkit.data.Shapes("shapes", 6, 3, 3, 64)
    detkit.convert(shapes, "coco", "data/my_photos")
    training = python("docs/training.md", "trainer.test(")
    assert len([line for line in training.splitlines() if line]) <= 10
    assert training == python("README.md", "trainer.test(")
    monkeypatch.setattr(detkit, "FasterRCNN", small(detkit.FasterRCNN), raising=False)
    training = training.replace("max_epochs=20", "max_epochs=1, accelerator='cpu', logger=False")
    names: dict[str, Any] = {}
    exec(training.replace("batch_size=4", "batch_size=4, num_workers=0"), names)
    assert names["trainer"].global_step == 2 and 0 <= names["model"].last_metrics["map"] <= 1
    assert names["model"].last_metrics["num_images"] == 3

    checkpoint = names["best"].best_model_path
    Image.new("RGB", (64, 64), "red").save("photo.jpg")
    detecting = python("README.md", "found.filter(").replace("runs/my_photos", checkpoint).replace('"dog"', '"ring"')
    exec(detecting, names)
    assert Path("found.png").is_file() and len(names["rows"]) == len(names["sure"]["scores"])
    assert torch.equal(names["sure"]["scores"], names["found"].filter(0.5, ["ring"])["scores"])


def test_what_readme_links_to_exists_and_its_pictures_are_small() -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(targets) > 15
    assert [target for target in targets if not (ROOT / target).exists()] == []
    pictures = [ROOT / target for target in targets if target.endswith(".jpg")]
    assert len(pictures) == 3 and all(picture.stat().st_size < 200_000 for picture in pictures)
