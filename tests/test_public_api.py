"""What a user imports and the configs a user starts from."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import detkit
from detkit.settings import construct

REPOSITORY = Path(__file__).parents[1]
NAMES = ["cat", "dog"]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))

PUBLIC = [
    *(f"detkit.{name}" for name in ("load", "draw", "FastRCNN", "FasterRCNN", "DetkitError", "__version__")),
    *(f"detkit.{name}" for name in ("evaluate", "propose", "compress", "split", "benchmark", "demo")),
    *(f"detkit.boxes.{name}" for name in ("area", "iou", "clip", "convert", "nms", "batched_nms")),
    *(f"detkit.boxes.{name}" for name in ("BoxCodec", "AnchorGenerator", "box_iou", "box_ioa")),
    "detkit.proposals.RegionProposalNetwork",
    *(f"detkit.show.{name}" for name in ("proposals", "anchors", "pooling", "nms", "precision_recall", "filters")),
    *(f"detkit.data.{name}" for name in ("VOC", "COCO", "ImageFolder", "Shapes")),
    "detkit.evaluation.MeanAveragePrecision",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_reached_by_attribute_and_by_import(name: str) -> None:
    room, _, last = name.rpartition(".")
    by_attribute: Any = detkit
    for part in name.split(".")[1:]:
        by_attribute = getattr(by_attribute, part)
    names: dict[str, Any] = {}
    exec(f"from {room} import {last} as found", names)
    assert names["found"] is by_attribute


def test_what_the_modules_announce_is_there() -> None:
    for name in (
        "detkit",
        "detkit.boxes",
        "detkit.data",
        "detkit.detectors",
        "detkit.evaluation",
        "detkit.proposals",
        "detkit.show",
    ):
        module = importlib.import_module(name)
        assert set(module.__all__) <= set(dir(module))
        assert all(getattr(module, each) is not None for each in module.__all__)


def test_the_detectors_and_data_sets_are_lightnings() -> None:
    import lightning

    for name in ("FastRCNN", "FasterRCNN"):
        assert issubclass(getattr(detkit, name), lightning.LightningModule)
    for name in ("VOC", "COCO", "ImageFolder", "Shapes"):
        assert issubclass(getattr(detkit.data, name), lightning.LightningDataModule)
    for method in ("losses", "detect", "predict", "from_torchvision"):
        assert callable(getattr(detkit.FasterRCNN, method))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'MaskRCNN'"):
        detkit.MaskRCNN  # noqa: B018


@pytest.mark.parametrize("statement", ["import detkit", "import detkit.data, detkit.evaluation, detkit.cli.main"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    heavy = ["torch", "torchvision", "lightning", "numpy", "albumentations", "cv2", "PIL", "pycocotools", "numba"]
    program = f"{statement}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.strip() == "[]"


def test_there_are_the_configs_that_the_documentation_names() -> None:
    names = {str(path.relative_to(REPOSITORY / "configs").as_posix()) for path in CONFIGS}
    presets = {f"faster_rcnn/{n}.yaml" for n in ("paper_voc07_vgg16", "modern_coco_resnet50_fpn")}
    presets |= {f"fast_rcnn/{n}.yaml" for n in ("paper_voc07_vgg16", "modern_custom")} | {"shapes/fast_rcnn.yaml"}
    presets |= {f"rcnn/{n}.yaml" for n in ("paper_voc07_alexnet", "paper_voc07_vgg16", "modern_custom")} | {
        "shapes/rcnn.yaml"
    }
    assert names >= presets | {"shapes/faster_rcnn.yaml", "faster_rcnn/custom_voc.yaml", "faster_rcnn/custom_coco.yaml"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_is_short_and_every_setting_has_a_comment(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith("# ")
    for before, line in itertools.pairwise(lines):
        heading = re.fullmatch(r"\s*(\w+:|class_path: [\w.]+)", line)
        item = line.lstrip().startswith("- ")
        assert heading or item or "# " in line or before.lstrip().startswith("# "), f"no comment: {line}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_is_understood(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from lightning.pytorch import Trainer

    from detkit.cli.lightning_cli import run

    with pytest.raises(SystemExit) as stop:
        start = ["--model.weights", "null"]  # neither is at hand
        start += ["--model.init_from", "null"] if "init_from" in path.read_text() else []
        run("fit", ["--config", str(path), *start, "--print_config"])
    assert stop.value.code in (0, None)
    config = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(path.read_text())
    for section in ("model", "data"):
        for name, value in given[section].get("init_args", {}).items():
            if name not in ("weights", "init_from", "transforms", "optimizer", "source"):  # these are written out
                understood = config[section]["init_args"][name]
                if isinstance(value, dict) and "class_path" not in value:
                    understood = {key: understood[key] for key in value}
                if name != "proposals":  # a method's short name is written out
                    assert understood == value
    arguments = config["model"]["init_args"] | {"class_names": NAMES}
    with torch.device("meta"):  # without numbers, of which VGG16 has many
        model = construct(getattr(detkit, given["model"]["class_path"]), arguments)
    assert model.hparams["backbone"] == given["model"]["init_args"]["backbone"]
    # The data set itself is not at hand; Lightning's own rules are.
    if isinstance(config["trainer"]["val_check_interval"], int):
        assert config["trainer"]["check_val_every_n_epoch"] is None
    Trainer(**{**config["trainer"], "accelerator": "cpu", "devices": 1, "logger": False})
