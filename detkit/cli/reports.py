"""What is said and written after each command: where the run is, the metrics, the report, the predictions."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.markup import escape
from rich.table import Table

from detkit.__about__ import __version__
from detkit.cli.resume import Difference
from detkit.data.datamodule import DataModule
from detkit.detectors.base import Detector
from detkit.engine.checkpoints import FoundCheckpoint
from detkit.engine.curves import CURVES
from detkit.engine.module import TrainableModule
from detkit.engine.run_pictures import PREDICTIONS
from detkit.errors import DataError
from detkit.evaluation.tables import baseline_text, metrics_text, render
from detkit.files import check_output, keep_inputs, overwrite_note, publish, staged, write_json
from detkit.tools.evaluate import RESAMPLES_FILE, report_of, with_intervals

if TYPE_CHECKING:
    from detkit.evaluation.bootstrap import Resamples

TRAINING = {CURVES: "Losses, learning rate and mAP over the steps", PREDICTIONS: "Images of the best validation"}
SHOWN = 3  # paths of a data set


def differences_text(rows: Sequence[Difference]) -> str:
    """A table of the options in which the checkpoint and the user's arguments differ."""
    table = Table()
    for column in ("option", "checkpoint", "asked for", "used"):
        table.add_column(column)
    for option, kept, asked, used in rows:
        table.add_row(escape(f"model.{option}"), escape(str(kept)), escape(str(asked)), used)
    parts: list[Any] = ["The checkpoint and what was asked for differ:", table]
    if any(row[3] == "checkpoint" for row in rows):
        parts.append("An option on the command line (--model.NAME VALUE) is used in place of the checkpoint's.")
    return render(*parts)


def describe_data(section: Mapping[str, Any]) -> str:
    """The data set of a config's section in words: its class and path, relative to the working directory."""
    name, path = section["class_path"].rpartition(".")[2], section.get("init_args", {}).get("path")
    paths = [path] if isinstance(path, str) else path or []
    shown = [os.path.relpath(each) if _is_below_here(each) else each for each in paths[:SHOWN]]
    more = ", ..." if len(paths) > SHOWN else ""
    return f"{name}({', '.join(shown)}{more})" if shown else name


def _is_below_here(path: str) -> bool:
    return os.path.isabs(path) and Path(path).is_relative_to(Path.cwd())


def check_outputs(files: Sequence[Path], data: Mapping[str, Any], read: Sequence[Any], option: str) -> None:
    """Refuse, before the work begins, files that cannot be written or that are read.

    Args:
        files: what is written, into one folder.
        data: the data set's section of the config; its texts may be files, also in its path.
        read: other files that are read.
        option: the option that names another folder.

    Raises:
        ConfigError: which file, and the option.
    """
    check_output(files[0].parent)
    arguments = data.get("init_args") or {}
    values = [each for value in arguments.values() for each in (value if isinstance(value, list) else [value])]
    texts = [value for value in values if isinstance(value, str)]
    root = arguments.get("path")
    in_root = [os.path.join(root, text) for text in texts] if isinstance(root, str) else []
    keep_inputs(files, [*read, *texts, *in_root], option)


def report_fit(trainer: Trainer, model: TrainableModule, folder: Path | None) -> None:
    """Say which checkpoint a fit has left in the run's folder, if there is one."""
    if folder is None:
        return
    stopping = trainer.early_stopping_callback
    if stopping is not None and stopping.wait_count >= stopping.patience:
        print(f"stopped early: {stopping.monitor} was not better in the last {stopping.patience} validations")
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    callback = trainer.checkpoint_callback
    if isinstance(callback, ModelCheckpoint) and callback.best_model_score is not None and best.is_file():
        protocol = f" ({model.protocol_description})" if model.protocol_description else ""
        score = f"{callback.monitor} {float(callback.best_model_score):.4f}"
        print(f"checkpoint: {best} (best, {score}{protocol})", flush=True)
    elif last.is_file():
        print(f"checkpoint: {last} (last; no validation chose a best one)", flush=True)
    if best.is_file() or last.is_file():
        print(next_steps(model, folder), flush=True)


def report_finished(trainer: Trainer, model: TrainableModule, checkpoint: FoundCheckpoint, folder: Path) -> None:
    """Say that a run was finished before, so that nothing was trained and ``folder`` is removed, and how to go on."""
    reached = {"max_steps": trainer.global_step, "max_epochs": trainer.current_epoch}
    limits = {name: getattr(trainer, name) for name in reached}
    ended = [name for name, limit in limits.items() if limit is not None and 0 < limit <= reached[name]]
    command = f"detkit fit --ckpt_path {shlex.quote(str(checkpoint.path))} --trainer"
    raised = f"{command}.{ended[0]} {2 * limits[ended[0]]}" if ended else f"{command}.max_time, longer than before"
    print(
        f"finished before: the run has ended with epoch {trainer.current_epoch}, step {trainer.global_step}; nothing "
        f"was trained, and {folder} is removed\nto train longer: {raised}",
        flush=True,
    )
    print(next_steps(model, checkpoint.folder), flush=True)


def next_steps(model: TrainableModule, folder: Path) -> str:
    """The commands that come after a fit, as they are typed from here."""
    run = shlex.quote(str(folder))
    commands = [f"detkit test {run}"]
    if isinstance(model, Detector):
        commands.append(f"detkit predict {run} PHOTOS")
    return "\n".join(f"{'next:' if i == 0 else '':<6}{command}" for i, command in enumerate(commands))


def report_metrics(model: TrainableModule, title: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Print the metrics of a validation or a test, with `more` of them, and return them.

    Raises:
        DataError: there are none.
    """
    metrics = model.last_metrics
    if not metrics:
        raise DataError("No metric was computed: is the split empty?")
    metrics = {**metrics, **(more or {})}
    images = f", {metrics['num_images']} images" if "num_images" in metrics else ""
    print(metrics_text(metrics, f"{title}{images}"), flush=True)
    return metrics


def report_test(
    model: TrainableModule,
    datamodule: DataModule,
    data: str,
    checkpoint: FoundCheckpoint,
    baseline: dict[str, Any] | None,
    resampled: Resamples | None,
    folder: Path,
    score_threshold: float | None,
) -> None:
    """Print the metrics of a test and write the report into a folder.

    ``baseline`` and ``resampled`` are the metrics and the resamples of an earlier report. ``score_threshold`` is the
    least score of what the report shows and counts, in 0..1; None takes that of the best F1.

    Raises:
        ConfigError: the report cannot be written.
    """
    from detkit.evaluation.bootstrap import bootstrap  # here, for numba takes a second

    resamples, intervals = None, {}
    if model.last_evaluated is not None and model.last_metrics:
        resamples = bootstrap(model.last_evaluated, model.class_names, model.metric.protocol)
        intervals = with_intervals(resamples, model.last_evaluated, baseline, resampled)
    metrics = report_metrics(model, f"test: {data}", intervals)
    about = {"checkpoint": str(checkpoint.path), "data": data, "split": datamodule.test_split, "detkit": __version__}
    content = {**metrics, "detector": type(model).__name__, **about}
    with staged(folder) as part:
        if model.last_evaluated is None:  # a classifier: nothing to draw
            path = folder / "metrics.json"
            write_json(part / path.name, content)
        else:
            annotations = datamodule.annotations("test")
            images = [] if annotations is None else range(len(annotations))
            paths = {annotations.image_id(i): annotations.path(i) for i in images}
            page = report_of(
                model.last_evaluated,
                model.class_names,
                model.metric.protocol,
                folder=part,
                metrics=content,
                image_paths=paths,
                title=f"{type(model).__name__} on {data}",
                score_threshold=score_threshold,
                baseline=baseline,
                training={caption: checkpoint.folder / name for name, caption in TRAINING.items()},
            )
            path = folder / page.name
            resamples.save(part / RESAMPLES_FILE)
        replaced = publish(part, folder)
    if baseline is not None:
        print(baseline_text(content, baseline))
    print(f"report: {path}{overwrite_note(replaced, '--output')}", flush=True)
