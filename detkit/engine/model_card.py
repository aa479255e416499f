"""The model card of a run: README.md in its folder, and the classes' names beside its checkpoints."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from detkit.__about__ import __version__
from detkit.data.datamodule import DetectionDataModule
from detkit.engine.module import TrainableModule
from detkit.engine.run_files import RunFileCallback, warn_on_error, is_best
from detkit.files import write_text
from detkit.signals import Stopped
from detkit.torch_files import check_form

CARD, CLASSES = "README.md", "class_names.txt"
#: Hyper-parameters that say what a model began with.
STARTS = ("init_from", "weights")


class ModelCard(RunFileCallback):
    """Writes README.md and `checkpoints/class_names.txt` when a fit ends or is stopped.

    The card says what the detector is, what it learned from, how good it was in the best validation, and how to use it.
    Nothing is written before there is a checkpoint.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(folder)
        self.best: dict[str, Any] = {}  # the metrics of the best validation, and its epoch from 1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_form(state_dict, {"best": {}}, "callbacks.ModelCard")
        self.best = dict(state_dict["best"])

    def on_validation_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and is_best(trainer):
            plain = (int, float, str, dict)
            kept = {name: value for name, value in pl_module.last_metrics.items() if isinstance(value, plain)}
            self.best = {**kept, "epoch": trainer.current_epoch + 1}

    def on_fit_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        if trainer.ckpt_path is None:
            self.best = {}

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
            write_text(self.path(CARD), card_text(trainer, pl_module, self.best, self.path("")))


def card_text(trainer: Trainer, module: TrainableModule, best: Mapping[str, Any], folder: Path) -> str:
    """The card, as Markdown.

    Args:
        trainer: of the fit.
        module: what it trained.
        best: metrics of the best validation, and its ``epoch``; empty where there was none.
        folder: the run's.
    """
    kind = type(module).__name__
    rows = {
        "Model": _model(module),
        "Started from": _start(module),
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
            *_results(trainer, module, best),
            "",
            "## Use",
            "",
            *_usage(module, folder),
            "",
        ]
    )


def _results(trainer: Trainer, module: TrainableModule, best: Mapping[str, Any]) -> list[str]:
    callback = trainer.checkpoint_callback
    score = callback.best_model_score if isinstance(callback, ModelCheckpoint) else None
    if score is None and not best:
        return ["No validation has chosen a best checkpoint: the last one is kept."]
    protocol = best.get("protocol") or module.protocol_description
    lines = [f"On the validation set; protocol: {_cell(protocol)}." if protocol else "On the validation set.", ""]
    monitor = str(callback.monitor).removeprefix("val/") if isinstance(callback, ModelCheckpoint) else ""
    if score is not None:
        lines.append(f"- best checkpoint: {monitor} {float(score):.4f}")
    # Stages behind the last epoch, and metrics that are not the best checkpoint's, have no numbers of each class here.
    belong = score is None or math.isclose(float(best.get(monitor, score)), float(score), rel_tol=1e-5, abs_tol=1e-7)
    if not best or not belong:
        return [*lines, "- the AP of each class: `detkit test`"]
    shown = [name for name in ("map", "map_50", "map_75", "accuracy") if isinstance(best.get(name), float)]
    lines += [f"- {name} {best[name]:.4f}" for name in shown if name != monitor or score is None]
    lines.append(f"- of epoch {best.get('epoch')}, {best.get('num_images')} images")
    per_class = best.get("map_per_class") or best.get("accuracy_per_class") or {}
    if per_class:
        heading = "AP" if "map_per_class" in best else "accuracy"
        lines += ["", f"| class | {heading} |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_score(value)} |" for name, value in per_class.items()]
    return lines


def _usage(module: TrainableModule, folder: Path) -> list[str]:
    run = shlex.quote(str(folder))
    if "accuracy" in module.best_by[0]:  # a classifier
        use = "`checkpoints/best.ckpt` holds a network that a detector can begin with as its backbone."
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
    known = [f"{name} {module.hparams[name]}" for name in STARTS if module.hparams.get(name)]
    return ", ".join(known) or "random weights"


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
