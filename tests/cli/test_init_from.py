"""`--model.init_from` and `torchvision:NAME` on the command line."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from torchvision.models import WeightsEnum

import detkit
from detkit.cli.main import main
from detkit.engine.checkpoints import read_checkpoint
from tests.cli.conftest import SMALL
from tests.parity.torchvision_pair import images, randomise

Program = Callable[..., Any]
ARCH = "fasterrcnn_mobilenet_v3_large_320_fpn"
FIRST = SMALL.replace("num_train: 6, num_val: 3, num_test: 5", "num_train: 4, num_val: 2, num_test: 2")
#: Of one class; weights and null, as a config for own data has them.
SECOND = """
model:
  class_path: FasterRCNN
  init_args:
    weights: DEFAULT
    anchors: {sizes: null}
    rpn: {post_nms: [30, 30]}
    optim: {warmup_steps: 0, lr: 0.01}
data:
  class_path: VOC
  init_args: {path: shapes, class_names: [Star], other_classes: drop, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 1}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on five classes, in runs/first."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("first.yaml").write_text(FIRST)
        Path("second.yaml").write_text(SECOND)
        assert main(["fit", "--config", "first.yaml"]) == 0
        xml = next(Path("shapes").rglob("Annotations"))
        for file in xml.iterdir():  # the case of a name does not matter
            file.write_text(file.read_text().replace("<name>star<", "<name>Star<"))
    return folder


@pytest.fixture
def run(runs: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(runs)
    return program


def test_a_run_begins_with_another_goes_on_and_is_tested_without_it(run: Program) -> None:
    result = run("fit", "--config", "second.yaml", "--model.init_from", "runs/first", "--model.roi.batch_size", "16")
    assert result.code == 0, result.err
    best = "runs/first/version_0/checkpoints/best.ckpt"
    assert f"initialised from {best}, a FasterRCNN" in result.out
    assert "weights DEFAULT are not read" in result.out
    assert "rows copied: background, Star; new: none" in result.out
    assert (
        "settings that differ from the source's (in brackets): rpn.post_nms [30, 30] ([40, 40]); roi.batch_size 16 (32)"
        in result.out
    )
    assert "batch norms of the backbone: 5 learning, as in the source" in result.out
    folder = Path("runs/second/version_0")
    config = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    assert (config["backbone"], config["anchors"]["sizes"], config["weights"]) == ("tiny", [[16, 32]], None)
    assert config["init_from"] == str(Path("runs/first").absolute())
    arguments = read_checkpoint(folder / "checkpoints/last.ckpt")["hyper_parameters"]
    assert arguments["init_from"] == config["init_from"] and arguments["class_names"] == ["Star"]
    Path("runs/first").rename("runs/gone")
    try:
        for command in (["test", "runs/second"], ["fit", "--ckpt_path", "runs/second", "--trainer.max_epochs", "2"]):
            result = run(*command)
            assert result.code == 0, result.err
            assert "initialised from" not in result.out and "init_from" not in result.out
        last = read_checkpoint("runs/second/version_1/checkpoints/last.ckpt")
        assert last["hyper_parameters"]["init_from"] == config["init_from"]
    finally:
        Path("runs/gone").rename("runs/first")


def test_the_first_step_is_on_the_tensors_of_the_source(run: Program) -> None:
    options = ["--model.optim.lr", "0", "--trainer.max_steps", "1", "--trainer.default_root_dir", "runs/still"]
    options += ["--model.features.freeze_batch_norm", "true"]
    assert run("fit", "--config", "second.yaml", "--model.init_from", "runs/first", *options).code == 0
    source = detkit.load("runs/first").state_dict()
    state = detkit.load("runs/still").state_dict()
    body = [key for key in state if not key.startswith("roi_heads.box_predictor")]
    assert len(body) > 30 and not [key for key in body if not torch.equal(state[key], source[key])]
    star = detkit.load("runs/first").class_names.index("star") + 1
    weight = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(state[weight], source[weight][[0, star]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.init_from", "runs/first", "--model.weights", "DEFAULT"], "give one"),
        (["--model.init_from", "runs/first", "--ckpt_path", "runs/first"], "give one"),
        (["--model.init_from", "runs/nowhere"], "runs/nowhere: no such checkpoint or run folder"),
        (["--model.init_from", "torchvision:fasterrcnn_resnet50"], "did you mean 'fasterrcnn_resnet50_fpn'"),
        (["--ckpt_path", f"torchvision:{ARCH}"], f"start a new one: --model.init_from torchvision:{ARCH}"),
        (["--model.init_from", "runs/first", "--model.backbone", "lenet5"], "model.backbone is lenet5.* is tiny"),
        (["--model.init_from", "second.yaml"], "second.yaml: cannot be read: it is no file of torch.save"),
        (["--model", "ImageClassifier", "--model.init_from", "runs/first"], "init_from"),
    ],
)
def test_a_mistake_is_one_message(run: Program, options: list[str], message: str) -> None:
    result = run("fit", "--config", "second.yaml", "--trainer.default_root_dir", "runs/wrong", *options)
    assert result.code == 2 and result.err.startswith("detkit: ") and "Traceback" not in result.err
    assert re.search(message, result.err.replace("\n", " "))
    assert not Path("runs/wrong").exists()


@pytest.mark.parametrize("source", ["runs/nowhere", "torchvision:fasterrcnn_resnet50"])
def test_a_wrong_source_is_told_before_torch_is_imported(runs: Path, source: str) -> None:
    text = (
        "import sys; from detkit.cli.main import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    )
    for command in (["fit", "--config", "second.yaml", "--model.init_from", source], ["predict", source, "shapes"]):
        result = subprocess.run(
            [sys.executable, "-c", text, *command], cwd=runs, capture_output=True, text=True, timeout=120
        )
        assert result.stdout.strip() == "2 False", result.stderr


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME with torchvision's smallest detector: random weights by which it detects something."""
    torch.manual_seed(0)
    model = randomise(torchvision.models.get_model(ARCH, weights=None, weights_backbone=None, num_classes=91))
    cache = tmp_path_factory.mktemp("torch") / "hub/checkpoints"
    cache.mkdir(parents=True)
    torch.save(model.state_dict(), cache / "part")
    digest = hashlib.sha256((cache / "part").read_bytes()).hexdigest()
    return (cache / "part").rename(cache / f"{ARCH}-{digest[:8]}.pth")


@pytest.fixture
def by_name(run: Program, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("TORCH_HOME", str(theirs.parents[2]))
    monkeypatch.setattr(WeightsEnum, "url", property(lambda weights: f"https://nowhere.invalid/{theirs.name}"))
    return run


def test_predict_by_name(by_name: Program, theirs: Path) -> None:
    from PIL import Image

    Path("photos").mkdir(exist_ok=True)
    Image.fromarray(images()[0].permute(1, 2, 0).numpy()).save("photos/a.png")
    result = by_name("predict", f"torchvision:{ARCH}", "photos")
    assert result.code == 0, result.err
    rows = json.loads(Path(f"runs/{ARCH}/predictions.json").read_text())
    model = detkit.load(f"torchvision:{ARCH}")
    found = model.predict("photos/a.png")
    assert [row["category_id"] for row in rows] == [model.category_ids[label - 1] for label in found["labels"]]
    by_file = by_name("predict", str(theirs), "photos", "--output", "by_file")
    assert by_file.code == 0, by_file.err
    assert json.loads(Path("by_file/predictions.json").read_text()) == rows
    other = by_name("test", f"torchvision:{ARCH}", "shapes")
    assert other.code == 2 and "Traceback" not in other.err


def test_fine_tuning_by_name_on_a_class_that_coco_has_not(by_name: Program) -> None:
    """BCCD's white cells and the like: one class, given by the data set."""
    options = ["--model.anchors.ratios", "[0.5, 1, 2]", "--trainer.fast_dev_run", "1"]
    result = by_name("fit", "--config", "second.yaml", "--model.init_from", f"torchvision:{ARCH}", *options)
    assert result.code == 0, result.err
    assert f"initialised from torchvision:{ARCH};" in result.out
    assert "rows copied: background; new: Star" in result.out
    assert "46 frozen, unlike in the source" in result.out


def test_bccds_white_cells(by_name: Program, shared: Callable[[str], Path]) -> None:
    data = f"{{path: {shared('data/bccd')}, class_names: [WBC], other_classes: drop, num_workers: 0}}"
    Path("cells.yaml").write_text(f"model: FasterRCNN\ndata: {{class_path: VOC, init_args: {data}}}\n")
    options = [
        "--model.init_from",
        f"torchvision:{ARCH}",
        "--trainer.fast_dev_run",
        "1",
        "--trainer.accelerator",
        "cpu",
    ]
    result = by_name("fit", "--config", "cells.yaml", *options)
    assert result.code == 0, result.err
    assert "new: WBC" in result.out
