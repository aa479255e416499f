"""The model card of a run: README.md in its folder, and the classes' names beside its checkpoints."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from detkit.__about__ import __version__
from detkit.data.datamodule import DetectionDataModule
from detkit.engine.checkpoints import INITIAL_WEIGHTS, read_checkpoint
from detkit.engine.module import TrainableModule
from detkit.engine.run_files import RunFileCallback, warn_on_error
from detkit.files import write_text
from detkit.signals import Stopped

CARD, CLASSES = "README.md", "class_names.txt"


class ModelCard(RunFileCallback):
    """Writes README.md and `checkpoints/class_names.txt` when a fit ends or is stopped.

    The card says what the detector is, what it learned from, how good the best checkpoint is, and how to use it.
    Nothing is written before there is a checkpoint.
    """

    def teardown(self, trainer: Trainer, pl_module: TrainableModule, stage: str) -> None:
        if stage == "fit":  # behind the stages that follow the last epoch
            self._write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: TrainableModule, exception: BaseException) -> None:
        # Checkpoint callbacks come last: that of a stopped run is written after this.
        self._write(trainer, pl_module, is_stopped=isinstance(exception, Stopped))

    def _write(self, trainer: Trainer, pl_module: TrainableModule, is_stopped: bool = False) -> None:
        checkpoints = self.path("checkpoints")
        if not self.writes or not (is_stopped or any(checkpoints.glob("*.ckpt"))):
            return
        with warn_on_error(CARD):
            write_text(checkpoints / CLASSES, "".join(f"{name}\n" for name in pl_module.class_names))
            write_text(self.path(CARD), card_text(trainer, pl_module, self.path("")))


def card_text(trainer: Trainer, module: TrainableModule, folder: Path) -> str:
    """The card, as Markdown.

    Args:
        trainer: of the fit.
        module: what it trained.
        folder: the run's.
    """
    kind = type(module).__name__
    rows = {
        "Model": _model(module),
        "Initial weights": _start(module),
        "Data": _data(trainer),
        "Classes": f"{module.num_classes}, in the order of their labels: {', '.join(module.class_names)}",
        "Training": f"{_count(trainer.current_epoch, 'epoch')}, {_count(trainer.global_step, 'step')}",
        "Written by": f"detkit {__version__}",
    }
    table = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(
        [
            f"# {kind}: {_cell(', '.join(module.class_names[:5]))}{', ...' if module.num_classes > 5 else ''}",
            "",
            "| | |",
            "|---|---|",
            *table,
            "",
            "## Results",
            "",
            *_results(trainer, module),
            "",
            "## Use",
            "",
            *_usage(module, folder),
            "",
        ]
    )


def _results(trainer: Trainer, module: TrainableModule) -> list[str]:
    """The numbers of the best checkpoint, as it holds them."""
    callback = trainer.checkpoint_callback
    score = callback.best_model_score if isinstance(callback, ModelCheckpoint) else None
    if score is None:
        return ["No validation has chosen a best checkpoint: the last one is kept."]
    best = read_checkpoint(callback.best_model_path)
    metrics = best["detkit"].get("validation", {})
    protocol = metrics.get("protocol") or module.protocol_description
    lines = [f"On the validation set; protocol: {_cell(protocol)}." if protocol else "On the validation set.", ""]
    monitor = str(callback.monitor).removeprefix("val/")
    lines.append(f"- best checkpoint: {monitor} {float(score):.4f}, of epoch {best['epoch'] + 1}")
    shown = [name for name in ("map", "map_50", "map_75", "accuracy") if isinstance(metrics.get(name), float)]
    lines += [f"- {name} {metrics[name]:.4f}" for name in shown if name != monitor]
    if "num_images" in metrics:
        lines.append(f"- {metrics['num_images']} images")
    per_class = metrics.get("map_per_class") or metrics.get("accuracy_per_class") or {}
    if not per_class:
        return [*lines, "- the numbers of each class: `detkit test`"]
    heading = "AP" if "map_per_class" in metrics else "accuracy"
    rows = [f"| {_cell(name)} | {_score(value)} |" for name, value in per_class.items()]
    return [*lines, "", f"| class | {heading} |", "|---|---|", *rows]


def _usage(module: TrainableModule, folder: Path) -> list[str]:
    run = shlex.quote(str(folder))
    if "accuracy" in module.best_by[0]:  # a classifier
        use = "`checkpoints/best.ckpt` can initialise the backbone of a detector (`--model.weights`)."
        return ["```", f"detkit test {run}", "```", "", use]
    code = [
        "import detkit",
        "",
        f'detector = detkit.load("{folder.as_posix()}")',
        'detections = detector.predict("photo.jpg", score_threshold=0.5)',
    ]
    commands = [f"detkit predict {run} PHOTOS --draw", f"detkit test {run}"]
    return ["```", *commands, "```", "", "```python", *code, "```"]


def _model(module: TrainableModule) -> str:
    name, backbone = type(module).__name__, module.hparams.get("backbone")
    backbone = backbone.get("class_path") if isinstance(backbone, dict) else backbone
    return f"{name}, backbone {backbone}" if backbone else name


def _start(module: TrainableModule) -> str:
    known = [f"{name} {module.hparams[name]}" for name in INITIAL_WEIGHTS if module.hparams.get(name)]
    return ", ".join(known) or "random"


def _data(trainer: Trainer) -> str:
    data = trainer.datamodule
    if data is None:
        return "given in Python"
    text = f"{type(data).__name__} {getattr(data, 'path', '')}".strip()
    if isinstance(data, DetectionDataModule):
        for split in ("train", "val"):
            if (found := data.annotations(split)) is not None:
                text += f"; {split}: {len(found):,} images, {len(found.boxes):,} boxes"
    return text


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _score(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) and math.isfinite(value) else "n/a"


def _cell(text: Any) -> str:
    """Text that is safe in a cell of a Markdown table; names come from other people's files."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return "".join(f"\\{c}" if c in "\\|`<>*_[]" else c for c in plain)
