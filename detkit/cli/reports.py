"""What is said and written after each command: where the run is, the metric, the predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from detkit.__about__ import __version__
from detkit.cli.resume import Plan
from detkit.engine.checkpoints import run_folder
from detkit.engine.predictions import PredictionWriter
from detkit.errors import ConfigError, DataError
from detkit.evaluation.tables import baseline_text, metrics_text
from detkit.files import overwrite_note, write_json


class Reports:
    """The `after_*` hooks of LightningCLI; mixed into `DetkitCLI`, which sets the attributes."""

    folder: Path | None
    plan: Plan
    trainer: Trainer
    model: LightningModule
    datamodule: LightningDataModule
    writer: PredictionWriter
    command: str
    #: What an earlier test found, to compare with.
    baseline: dict[str, Any] | None

    def after_fit(self) -> None:
        """Says where the run is."""
        if self.folder is not None and self.trainer.is_global_zero:
            folder, callback = self.folder / "checkpoints", self.trainer.checkpoint_callback
            score = getattr(callback, "best_model_score", None)
            if (folder / "best.ckpt").is_file() and score is not None:
                protocol = getattr(getattr(self.model, "metric", None), "protocol", None)
                by = f"{callback.monitor} {float(score):.4f}" + (f" ({protocol})" if protocol else "")
                print(f"checkpoint: {folder / 'best.ckpt'} (best, {by})", flush=True)
            elif (folder / "last.ckpt").is_file():
                print(f"checkpoint: {folder / 'last.ckpt'} (last; no validation chose a best one)", flush=True)
            if not (folder / "last.ckpt").is_file() and self.plan.checkpoint is not None:
                print(
                    f"Nothing was left to train: the checkpoint has ended epoch {self.trainer.current_epoch}; "
                    "--trainer.max_epochs says how many there are in all.",
                    flush=True,
                )

    def after_validate(self) -> None:
        """Prints the metric."""
        if self.trainer.is_global_zero:
            print(metrics_text(self._metrics(), f"validation: {self._data_in_words()}{self._images()}"))

    def after_test(self) -> None:
        """Prints the metric and writes the report, into the run's folder unless `--output` says otherwise.

        A report that is there is replaced, and that is said.
        """
        if not self.trainer.is_global_zero:
            return
        print(metrics_text(self._metrics(), f"test: {self._data_in_words()}{self._images()}"))
        options = self.config[self.command]
        checkpoint = self.plan.checkpoint.path
        folder = Path(options.output) if options.output else run_folder(checkpoint) / "report"
        split = getattr(self.datamodule, "test_split", "test")
        about = {"checkpoint": str(checkpoint), "data": self._data_in_words(), "split": split, "detkit": __version__}
        content = {**self._metrics(), "detector": type(self.model).__name__, **about}
        earlier = overwrite_note(folder / "metrics.json", "--output")
        try:
            path = self._write_report(folder, content, options.score_threshold)
        except OSError as error:
            raise ConfigError(f"the report cannot be written ({error}); choose a folder with --output") from None
        if self.baseline is not None:
            print(baseline_text(content, self.baseline))
        print(f"report: {path}{earlier}", flush=True)

    def _write_report(self, folder: Path, metrics: dict[str, Any], score_threshold: float | None) -> Path:
        if self.model.last_evaluated is None:  # a classifier: nothing to draw
            write_json(folder / "metrics.json", metrics)
            return folder / "metrics.json"
        # Imported here: numba and the templates take a second, which only tests need.
        from detkit.evaluation.analysis import analyse
        from detkit.evaluation.report import write_report

        protocol = self.model.metric.protocol
        evaluated, limits = protocol.seen(self.model.last_evaluated), protocol.max_detections
        most = {} if limits is None else {"max_detections": limits[-1]}
        analysis = analyse(evaluated, list(self.model.class_names), score_threshold, **most)
        annotations = self.datamodule.annotations("test")
        images = [] if annotations is None else range(len(annotations))
        paths = {annotations.image_id(i): annotations.path(i) for i in images}
        title = f"{type(self.model).__name__} on {self._data_in_words()}"
        return write_report(folder, metrics, evaluated, analysis, paths, title, self.baseline)

    def after_predict(self) -> None:
        """Says where the predictions are."""
        if self.trainer.is_global_zero:
            print(f"predictions: {self.writer.folder / 'predictions.json'}{self.writer.overwrite_note}", flush=True)
            if self.writer.draw:
                share = f"{self.writer.num_drawn:,} of {self.writer.num_detections:,} detections"
                limit = f"those from a score of {self.writer.score_threshold:g} (--predictions.score_threshold)"
                told = f" ({share}, {limit})" if self.trainer.world_size == 1 else ""
                print(f"drawn: {self.writer.folder / 'predictions'}{told}", flush=True)

    def _metrics(self) -> dict[str, Any]:
        metrics = getattr(self.model, "last_metrics", None)
        if not metrics:
            raise DataError("No metric was computed: is the split empty?")
        return metrics

    def _images(self) -> str:
        count = self._metrics().get("num_images")
        return "" if count is None else f", {count} images"

    def _data_in_words(self) -> str:
        data = self._get(self.config, "data")
        name, path = data["class_path"].rsplit(".", 1)[-1], data.get("init_args", {}).get("path")
        return f"{name}({path})" if path else name
