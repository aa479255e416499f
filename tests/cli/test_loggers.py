"""Loggers and callbacks by config: the blocks of docs/loggers.md as they stand there, and the hyper-parameters."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_utilities.core.imports import RequirementCache

PAGE = (Path(__file__).parents[2] / "docs" / "loggers.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
Detkit = Callable[..., Any]


def block(word: str) -> str:
    (found,) = (text for text in BLOCKS if word in text)
    return found


@pytest.mark.parametrize(("logger", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_missing_package_is_the_line_of_the_page(
    detkit: Detkit, monkeypatch: pytest.MonkeyPatch, logger: str, package: str
) -> None:
    module = sys.modules[f"lightning.pytorch.loggers.{package}"]
    monkeypatch.setattr(module, f"_{package.upper()}_AVAILABLE", RequirementCache(f"{package}>=99", package))
    Path("logger.yaml").write_text(block(logger))
    result = detkit("fit", "--config", "toy.yaml", "--config", "logger.yaml")
    assert result.code == 2 and len(result.err.splitlines()) == 1 and not Path("runs").exists()
    assert f"{logger} needs the package {package}, which is not installed: pip install {package}" in result.err
    assert logger == "MLFlowLogger" or result.err in PAGE
    if package == "wandb":
        (options,) = re.findall(r"`(--trainer.logger [^`]*)`", PAGE)
        assert detkit("fit", "--config", "toy.yaml", *options.split()).err == result.err


def test_loggers_and_early_stopping_by_config(detkit: Detkit) -> None:
    Path("logger.yaml").write_text(block("CSVLogger"))
    Path("callbacks.yaml").write_text(block("EarlyStopping"))
    options = ["--config", "logger.yaml", "--config", "callbacks.yaml", "--trainer.callbacks.init_args.patience", "1"]
    result = detkit("fit", "--config", "toy.yaml", *options)
    assert (result.code, result.err) == (0, "")
    assert "val/map" in Path("logs/csv/version_0/metrics.csv").read_text()
    assert list(Path("logs").rglob("events.*")) and not Path("runs/toy/version_0/metrics.csv").exists()
    assert "epoch 3 of 100" in result.out and "epoch 4 of 100" not in result.out  # the best mAP is the second epoch's


def test_a_callback_of_ones_own(detkit: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    Path("my_callbacks.py").write_text(code)
    Path("callbacks.yaml").write_text(block("my_callbacks"))
    Path("toy.yaml").rename("my.yaml")
    monkeypatch.syspath_prepend(Path.cwd())
    (command,) = re.findall(r"^detkit (fit .*--import.*)$", PAGE, re.MULTILINE)
    words = shlex.split(command)
    result = detkit(*words[: words.index("--import")])
    assert result.code == 2 and "--import my_callbacks" in result.err
    assert detkit(*words).code == 0
    assert Path("best.txt").read_text() == "0.500\n"
    sys.modules.pop("my_callbacks")


def test_loggers_are_told_the_hyper_parameters(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import CSVLogger

    import detkit
    from detkit.features.backbones import MapSettings

    data = detkit.data.Shapes(str(tmp_path / "shapes"), 2, 1, 1, 64, num_workers=0)
    model = detkit.FasterRCNN(data.class_names, backbone="tiny", features=MapSettings(fpn=False))
    logger = CSVLogger(str(tmp_path), name="", version="run")
    options: dict[str, Any] = {"accelerator": "cpu", "max_steps": 1, "logger": logger, "limit_val_batches": 0}
    Trainer(**options, enable_checkpointing=False, enable_progress_bar=False).fit(model, datamodule=data)
    written = yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())
    assert written["backbone"] == "tiny" and written["class_names"] == data.class_names
    assert written["features"]["fpn"] is False and written["optim"]["lr"] == model.optim.lr
