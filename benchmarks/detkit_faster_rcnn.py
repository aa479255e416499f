"""detkit's side of the comparison: `detkit fit` with a clock on its steps, then the common evaluator.

python -m benchmarks.detkit_faster_rcnn --config benchmarks/bccd_mobilenet_v2.yaml --output ours.json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.side import StepClock, arguments, evaluate, finish, pin, read_config


class StepTimer(Callback):
    """Measures the steps of a fit, from the loaded batch to after the optimizer."""

    def __init__(self) -> None:
        self.clock = StepClock()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called by Lightning."""
        self.clock.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called by Lightning, after the optimizer's step."""
        self.clock.stop(outputs["loss"])
        self.clock.progress("detkit")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, print and write."""
    options = arguments(__doc__, argv)
    pin(options.core)
    config = read_config(options.config)
    from detkit.cli.lightning_cli import run
    from detkit.cli.noise import quiet

    quiet()
    extra = ["--trainer.enable_progress_bar", "false", "--trainer.callbacks+", f"{__spec__.name}.StepTimer"]
    extra += ["--trainer.limit_val_batches", "0"]  # the common evaluator validates
    if options.max_steps:
        extra += ["--trainer.max_steps", str(options.max_steps), "--trainer.max_epochs", "-1"]
    cli = run("fit", ["--config", options.config, *extra])
    model, data = cli.model.eval(), cli.datamodule
    (timer,) = (each for each in cli.trainer.callbacks if hasattr(each, "clock"))
    finish(options.output, "detkit", timer.clock, evaluate(model.detect, data), seed=config["seed_everything"])


if __name__ == "__main__":
    main()
