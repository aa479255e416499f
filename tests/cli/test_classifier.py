"""`detkit fit --model ImageClassifier`: the real command line, on small data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.classification.conftest import cifar, make_folder  # noqa: F401 - fixtures

CONFIG = Path(__file__).parents[2] / "configs/shapes/classifier_lenet5.yaml"
SMALL = {"path": "shapes", "num_train": 12, "num_val": 4, "num_test": 4, "image_size": 64}
FIT = [
    *("fit", "--config", str(CONFIG), f"--data.source.init_args={json.dumps(SMALL)}"),
    *("--trainer.max_epochs", "2", "--trainer.default_root_dir", "runs/small"),
]


def test_from_a_fit_to_a_detectors_backbone(program: Callable[..., Any], tmp_path: Path) -> None:
    result = program(*FIT)
    assert (result.code, result.err) == (0, "")
    assert "images of 5 classes" in result.out
    assert "val/accuracy" in result.out and "val/map" not in result.out
    best = tmp_path / "runs/small/version_0/checkpoints/best.ckpt"
    assert f"{best.relative_to(tmp_path)} (best, val/accuracy 0." in result.out
    assert torch.load(best, weights_only=True)["detkit"]["class"].endswith(".ImageClassifier")
    config = yaml.safe_load((best.parents[1] / "config.yaml").read_text())
    assert config["checkpoint"]["monitor"] == "val/accuracy"

    result = program("validate", "--ckpt_path", "runs/small")
    assert (result.code, result.err) == (0, "")
    assert "accuracy circle" in result.out and "AP" not in result.out
    result = program("test", "--ckpt_path", "runs/small")
    assert (result.code, result.err) == (0, "")
    metrics = json.loads((best.parents[1] / "report/metrics.json").read_text())
    assert 0 <= metrics["accuracy"] <= 1 and set(metrics["accuracy_per_class"]) >= {"circle", "star"}
    result = program("predict", "--ckpt_path", "runs/small")
    assert result.code == 2 and "predict is for detectors" in result.err

    result = program("fit", "--ckpt_path", "runs/small", "--trainer.max_epochs", "3")
    assert (result.code, result.err) == (0, "")
    assert "epoch 3 of 3" in result.out and "weights: " not in result.out
    again = program(*FIT, "--trainer.fast_dev_run", "true", "--model.weights", str(best))
    assert f"weights: 10 tensors from {best} (lenet5)\n" in again.out  # of the same classes: with its last layer

    detector = ["fit", "--model", "FasterRCNN", "--model.features.fpn", "false", "--model.image.min_size", "64"]
    detector += ["--data", "Shapes"]
    detector += [f"--data.{name}={value}" for name, value in SMALL.items()]
    detector += ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu", "--model.weights", str(best)]
    result = program(*detector, "--model.backbone", "lenet5")
    assert (result.code, result.err) == (0, "")
    assert f"weights: 8 tensors from {best} (lenet5); left out: classifier.output, its last layer\n" in result.out
    result = program(*detector, "--model.backbone", "tiny")
    assert result.code == 2 and "holds a lenet5, the model's backbone is tiny" in result.err


def test_a_monitor_of_ones_own(program: Callable[..., Any]) -> None:
    result = program(*FIT, "--checkpoint.monitor", "val/loss", "--checkpoint.mode", "min")
    assert (result.code, result.err) == (0, "")
    assert "(best, val/loss " in result.out


def run_options(data: str, path: Path) -> list[str]:
    options = ["fit", "--model", "ImageClassifier", "--data", data, "--data.path", str(path)]
    return [*options, "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]


def test_a_folder_of_classes(program: Callable[..., Any], make_folder: Callable[..., Path]) -> None:  # noqa: F811
    root = make_folder({"train/cat": 3, "train/dog": 2, "val/cat": 1})
    result = program(*run_options("ClassFolder", root))
    assert (result.code, result.err) == (0, "")
    assert "train: 5 images of 2 classes" in result.out
    (root / "train/dog/0.png").write_bytes(b"broken")
    result = program(*run_options("ClassFolder", root))
    assert result.code == 2 and "dog/0.png: image cannot be read" in result.err


def test_one_class_or_no_images(program: Callable[..., Any], make_folder: Callable[..., Path]) -> None:  # noqa: F811
    result = program(*run_options("ClassFolder", make_folder({"train/cat": 3, "val/cat": 1}, "one")))
    assert result.code == 2 and "two classes or more" in result.err
    result = program(*run_options("ClassFolder", make_folder({"train/cat": 0, "val/cat": 1}, "none")))
    assert result.code == 2 and "none/train: no image in its folders" in result.err


def test_cifar_10(program: Callable[..., Any], cifar: Path) -> None:  # noqa: F811
    options = [*run_options("CIFAR10", cifar), "--data.val_size", "10"]
    result = program(*options)
    assert (result.code, result.err) == (0, "")
    (cifar / "data_batch_2").write_bytes((cifar / "data_batch_2").read_bytes()[:-100])
    result = program(*options)
    assert result.code == 2 and "data_batch_2 altered or cut short" in result.err


def test_model_and_data_that_do_not_fit(program: Callable[..., Any]) -> None:
    shapes = [f"--data.{name}={value}" for name, value in SMALL.items()]
    result = program("fit", "--model", "ImageClassifier", "--data", "Shapes", *shapes, "--trainer.fast_dev_run", "true")
    assert result.code == 2 and "--data ObjectCrops" in result.err
    crops = ["--data", "ObjectCrops", "--data.source", "Shapes", f"--data.source.init_args={json.dumps(SMALL)}"]
    result = program("fit", "--model", "FasterRCNN", *crops, "--trainer.fast_dev_run", "true")
    assert result.code == 2 and "it is for --model ImageClassifier" in result.err
