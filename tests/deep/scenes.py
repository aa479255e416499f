"""The small data sets and models that the campaign runs detkit on; it draws the pictures itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.deep.commands import run

SHAPES = {"num_train": 8, "num_val": 3, "num_test": 6, "image_size": 64}
MANY = {"num_train": 40, "num_val": 4, "num_test": 4, "image_size": 64}  # so that R-CNN's stages take seconds
MODELS: dict[str, dict[str, Any]] = {
    "FasterRCNN": {
        "backbone": "tiny",
        "features": {"fpn": False},
        "image": {"min_size": 64, "max_size": 64},
        "anchors": {"sizes": [[16, 32]]},
        "rpn": {"pre_nms": [60, 60], "post_nms": [30, 20], "batch_size": 32},
        "roi": {"batch_size": 16, "pool_size": 3, "head_channels": 16},
        "optim": {"warmup_steps": 0, "lr": 0.01},
    },
    "FastRCNN": {
        "backbone": "tiny",
        "features": {"fpn": False},
        "image": {"min_size": 64, "max_size": 64},
        "roi": {"batch_size": 16, "pool_size": 3, "head_channels": 16},
        "proposals": {"method": {"class_path": "SelectiveSearch", "init_args": {"mode": "single"}}},
        "optim": {"warmup_steps": 0, "lr": 0.01},
    },
    "RCNN": {
        "backbone": "lenet5",
        "crop": {"size": 32, "context": 4},
        "sampling": {"batch_size": 32},
        "proposals": {
            "method": {"class_path": "SlidingWindows", "init_args": {"scales": [16, 24, 32, 48], "stride": 8}},
            "max_boxes": [60, 25],
        },
        "svm": {"c": 0.01, "passes": 2},
        "optim": {"warmup_steps": 0, "lr": 0.01},
    },
}


def write_config(folder: Path, model: str, shapes: Path, **trainer: Any) -> Path:
    """Write ``folder``/MODEL.yaml, a fit of `MODELS` on the pictures in ``shapes``, and return it."""
    counts = MANY if shapes.name == "many" else SHAPES
    content = {
        "model": {"class_path": model, "init_args": MODELS[model]},
        "data": {
            "class_path": "Shapes",
            "init_args": {"path": str(shapes), "batch_size": 2, "num_workers": 0, **counts},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 3, "default_root_dir": "run", **trainer},
    }
    path = folder / f"{model}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def draw(folder: Path) -> tuple[Path, Path]:
    """Draw the two data sets into a folder: a small one and one of many pictures."""
    from detkit.data.shapes import draw_shapes

    small, many = folder / "small", folder / "many"
    for path, numbers in ((small, SHAPES), (many, MANY)):
        counts = {split: numbers[f"num_{split}"] for split in ("train", "val", "test")}
        draw_shapes(str(path), counts, numbers["image_size"], 0)
    return small, many


def train(folder: Path, model: str, shapes: Path, **trainer: Any) -> Path:
    """Fit a model in ``folder``/run, and return the folder of its version."""
    folder.mkdir(parents=True, exist_ok=True)
    run(["fit", "--config", str(write_config(folder, model, shapes, **trainer))], folder)
    return folder / "run" / "version_0"
