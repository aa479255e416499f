"""The base of every LightningModule of detkit: optimizer and schedule, exact resumption, plain checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from detkit.__about__ import __version__
from detkit.classes import full_name
from detkit.data.loaders import begin_next_epoch
from detkit.engine.optimization import (
    UNKNOWN,
    OptimSettings,
    build_optimizer,
    depends_on_length,
    parameter_groups,
    schedule,
)
from detkit.engine.summary import random_lines, trainable_table
from detkit.engine.weight_averaging import MovingAverage
from detkit.errors import CheckpointError, ConfigError, TrainingError
from detkit.evaluation import EvaluationSet
from detkit.features.weights import Loaded
from detkit.files import to_json
from detkit.settings import check_class_names, to_plain
from detkit.torch_files import check_form
from detkit.types import Batch, Sample


class TrainableModule(L.LightningModule):
    """Base of the detectors and of `ImageClassifier`; it declares what the command line asks of a model.

    All hyper-parameters are plain values: a checkpoint is read with ``weights_only=True``, and it alone is enough to
    predict.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        category_ids: the data set's own ids of these classes. Given by the data set.
        optim: optimizer, schedule and the average of the weights.
        optimizer: replaces that optimizer, e.g. {class_path: torch.optim.RMSprop, init_args: {lr: 0.0001}}.
        lr_scheduler: replaces the schedule; it steps per batch.

    Attributes:
        last_metrics: the numbers of the last validation or test, by name.
        last_evaluated: what the last test was computed from, for the report; None for a classifier.
        stage: name of the stage that a fit of several stages is in; "" where there is one.

    Raises:
        ConfigError: for class names that are missing or twice, or ids that do not go with them.
    """

    #: The value that `best.ckpt` is chosen by, and whether larger (max) or smaller (min) is better.
    best_by: tuple[str, str] = ("val/map", "max")
    #: What a fit that was stopped goes on behind: the last epoch that ended.
    progress_unit: str = "epoch"
    #: Whether a fit has several stages, each with a schedule of its own.
    has_stages: bool = False

    def __init__(
        self,
        class_names: list[str],
        category_ids: list[int] | None = None,
        optim: OptimSettings = OptimSettings(),
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        # The arguments of the subclasses' constructors are among them; what is no plain value is left out.
        self.save_hyperparameters(ignore=["preprocessing", "optimizer", "lr_scheduler"], logger=False)
        for name, value in self.hparams.items():
            self.hparams[name] = to_plain(value)
        check_class_names(class_names, category_ids)
        self.class_names = list(class_names)
        self.category_ids = list(category_ids or range(1, len(class_names) + 1))
        self.optim = optim
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.last_metrics: dict[str, Any] = {}
        self.last_evaluated: EvaluationSet | None = None
        self.stage = ""
        self.loss_guard = LossGuard(interval=1)
        self._new_optim = False
        self._total_steps = 0  # of the run, once its schedule is made
        self._resumed: dict[str, Any] = {}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as plain values: those of checkpoints and loggers."""
        arguments = {name: to_plain(v) for name, v in self.hparams.items() if not name.startswith("_")}
        return arguments | {"class_names": self.class_names, "category_ids": self.category_ids}

    # -- what the command line asks for ----------------------------------------------------------

    @property
    def protocol_description(self) -> str:
        """The protocol of the numbers in `last_metrics`, in a few words; "" where there is none."""
        return ""

    def apply_overrides(self, changed: Mapping[str, Any], fit: bool) -> None:
        """Take note of hyper-parameters (by dotted name, such as ``optim.lr``) given against those of the checkpoint.

        A fit goes on from it, or otherwise it is tested or predicts.
        """
        self._new_optim = fit and any(name.startswith("optim.") for name in changed)

    def feature_lines(self) -> list[str]:
        """Lines about the feature maps, for `network.txt` in the run's folder."""
        return []

    def network_view(self, batch: Batch) -> list[Sample]:
        """The images of a batch as the network sees them (uint8), with their boxes; empty where nothing is drawn."""
        return []

    def restore_parts(self, checkpoint: dict[str, Any]) -> None:
        """Make module and checkpoint have the same parts, before the weights are loaded."""

    def finished_stage(self, checkpoint: dict[str, Any]) -> str:
        """The last stage that a checkpoint's fit has finished; "" where a fit has one stage, or none is finished."""
        return ""

    # -- Lightning -------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Go into training mode, and print which weights were loaded, what is trained and what is fixed."""
        self.loss_guard = LossGuard(interval=self.trainer.log_every_n_steps)
        self.last_metrics = {}  # of a test before it
        for logger in self.loggers:
            logger.log_hyperparams(self.arguments)
        if not self.training:  # as `detkit.load` and `from_torchvision` give it; Lightning leaves the mode alone
            self.train()
        if self.trainer.is_global_zero:
            loaded = [getattr(part, "loaded", None) for part in self.modules()]
            for weights in dict.fromkeys(each for each in loaded if isinstance(each, Loaded)):
                self.print(f"weights: {weights}")
            self.print("\n".join([trainable_table(self, detailed=False), *random_lines(self)]))
            every, epochs = self.trainer.check_val_every_n_epoch, self.trainer.max_epochs
            if every is not None and epochs is not None and 0 < epochs < every:
                self.print(
                    f"warning: no validation in {epochs} epochs (trainer.check_val_every_n_epoch is {every}), so no "
                    "best checkpoint is chosen"
                )

    def on_train_start(self) -> None:
        """After a resume: begin with the right epoch, and apply what the command line overrides."""
        begin_next_epoch(self.trainer)
        optimizer = self.trainer.optimizers[0]
        if self._new_optim and self.optimizer_factory is None:
            for group, wanted in zip(optimizer.param_groups, self.parameter_groups(), strict=True):
                group.update({k: v for k, v in wanted.items() if k not in ("params", "lr")}, initial_lr=wanted["lr"])
            for config in self.trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, LambdaLR):
                    config.scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
                    factors = [f(config.scheduler.last_epoch) for f in config.scheduler.lr_lambdas]
                    for group, factor in zip(optimizer.param_groups, factors, strict=True):
                        group["lr"] = group["initial_lr"] * factor

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make the step's randomness a function of seed, step and rank, so that a resumed run goes on exactly."""
        self._seed(self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Likewise for what the losses of a validation sample; every validation draws the same."""
        self._seed(batch_idx)

    def _seed(self, step: int) -> None:
        seed = (int(os.environ.get("PL_GLOBAL_SEED", 0)) * 1_000_003 + step) * 1_009 + self.global_rank
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes milliseconds
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    @property
    def logs_this_step(self) -> bool:
        """Whether Lightning writes what this training step logs; making up values in other steps costs time."""
        return (self.trainer.global_step + 1) % max(self.trainer.log_every_n_steps, 1) == 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and schedule of ``optim``, or those that replace them; schedules step per batch."""
        total_steps = int(min(self.trainer.estimated_stepping_batches, UNKNOWN))
        if self.optimizer_factory is not None:
            optimizer = self.optimizer_factory([p for p in self.parameters() if p.requires_grad])
            unused = "optim.lr, momentum, weight_decay, decay_biases, bias_lr_factor and backbone_lr_factor"
            self.print(f"optimizer: {type(optimizer).__name__}, as its own arguments say; {unused} are not used")
        else:
            optimizer = build_optimizer(self.parameter_groups(), self.optim)
        if self.lr_scheduler_factory is None and self.optim.warmup_steps >= total_steps // 2 > 0:
            self.print(
                f"warning: the run has {total_steps:,} steps, and the learning rate rises for "
                f"{self.optim.warmup_steps:,} of them (--model.optim.warmup_steps): train longer, or shorten it"
            )
        if self.lr_scheduler_factory is not None:
            scheduler = self.lr_scheduler_factory(optimizer)
        else:
            scheduler = LambdaLR(optimizer, self.lr_factor(total_steps))
        self._total_steps = total_steps
        self._check_resumed(optimizer, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """The moving average of the weights, if ``optim.ema`` asks for it."""
        if self.optim.ema is None:
            return []
        if self.has_stages:
            raise ConfigError("optim.ema: a fit of several stages keeps no average of the weights; set it to null")
        return [MovingAverage(self.optim.ema)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer is given: the trainable parameters with their rates and decay."""
        backbone = self.backbone_parts()
        if self.optim.backbone_lr_factor != 1 and not backbone:
            raise ConfigError(f"optim.backbone_lr_factor: {type(self).__name__} has no backbone; leave it out")
        return parameter_groups(self, self.optim, backbone=backbone)

    def backbone_parts(self) -> list[nn.Module]:
        """What learns ``optim.backbone_lr_factor`` times as fast."""
        return []

    def lr_factor(self, total_steps: int) -> Callable[[int], float]:
        """The learning rate's factor as a function of the step; see `schedule`."""
        return schedule(self.optim, total_steps)

    def _check_resumed(self, optimizer: Optimizer, scheduler: Any) -> None:
        """Refuse a checkpoint whose state of optimizer or schedule is another one's, or damaged."""
        resumed, self._resumed = self._resumed, {}
        if self.trainer.ckpt_path is None or not resumed:
            return
        before, now = resumed["detkit"].get("optimizer"), type(optimizer).__name__
        if before not in (None, now):
            raise CheckpointError(
                f"the checkpoint was trained with {before}, this run asks for {now}: its state does not fit. Resume "
                "with the same optimizer"
            )
        groups, name = optimizer.state_dict()["param_groups"], "optimizer_states"
        check_form(resumed[name], [{"state": {}, "param_groups": groups}], name)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        numbers = [number for group in resumed[name][0]["param_groups"] for number in group["params"]]
        shapes = {number: p.shape for number, p in zip(numbers, parameters, strict=True)}
        for number, values in resumed[name][0]["state"].items():
            where = f"{name}.0.state.{number}"
            check_form(values, {}, where)
            foreign = self.optimizer_factory is None and any(  # each is as large as its parameter
                value is not None and getattr(value, "shape", None) != (() if key == "step" else shapes.get(number))
                for key, value in values.items()
            )
            if number not in shapes or foreign:
                raise CheckpointError(f"its entry {where} is of another parameter")
        if self.lr_scheduler_factory is None:
            check_form(resumed["lr_schedulers"], [scheduler.state_dict()], "lr_schedulers")
            steps = resumed["detkit"].get("steps")
            if depends_on_length(self.optim) and steps not in (None, self._total_steps):
                self.print(
                    f"warning: the learning rate was to fall over {steps} steps, and falls over {self._total_steps:,} "
                    "now: the number of epochs, the batch size or the images are others than before"
                )
            if any(state is not None for state in resumed["lr_schedulers"][0]["lr_lambdas"]):  # functions have none
                raise CheckpointError("its entry lr_schedulers.0.lr_lambdas is not as detkit writes it for such a run")

    # -- checkpoints -----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write which class this is, its arguments and the last validation's numbers; refuse weights not finite."""
        self.loss_guard.check()
        check_finite(checkpoint["state_dict"])
        checkpoint["detkit"] = {"class": full_name(type(self)), "version": __version__}
        if self.trainer.optimizers:
            checkpoint["detkit"]["optimizer"] = type(self.trainer.optimizers[0]).__name__
            checkpoint["detkit"]["steps"] = self._total_steps
        if self.last_metrics:
            checkpoint["detkit"]["validation"] = to_json(self.last_metrics)
        checkpoint["hyper_parameters"] = self.arguments

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the state of optimizer and schedule until they are made."""
        self.restore_parts(checkpoint)
        names = ("detkit", "optimizer_states", "lr_schedulers")
        self._resumed = {name: checkpoint[name] for name in names if name in checkpoint}


class LossGuard:
    """Stops a fit at a loss that is not finite, and names the images, without making the device wait at every step.

    On the CPU every loss is read before its gradient is taken. On another device losses are kept there and read
    together every ``interval`` steps, when Lightning logs, and before anything is saved.
    """

    def __init__(self, interval: int) -> None:
        self.interval = max(interval, 1)
        self._unread: list[tuple[Tensor, list[str], list[Any]]] = []

    def watch(self, losses: dict[str, Tensor], batch: Batch) -> None:
        """Take one step's losses; a TrainingError if one that is read now is not finite."""
        finite = torch.isfinite(torch.stack([loss.detach() for loss in losses.values()]))
        self._unread.append((finite, list(losses), [sample.get("image_id") for sample in batch]))
        if finite.device.type == "cpu" or len(self._unread) >= self.interval:
            self.check()

    def check(self) -> None:
        """Read the losses that were kept; a TrainingError names losses and image ids of the first bad batch."""
        unread, self._unread = self._unread, []
        # One wait for the device, however many steps are read.
        if not unread or bool(torch.stack([finite.all() for finite, _, _ in unread]).all()):
            return
        for finite, names, image_ids in unread:
            if not bool(finite.all()):
                bad = ", ".join(name for name, good in zip(names, finite.tolist(), strict=True) if not good)
                raise TrainingError(
                    f"{bad} became NaN or infinite in the batch of images {image_ids}; training stops, and the last "
                    "good checkpoint is kept. Lower model.optim.lr, lengthen model.optim.warmup_steps, set "
                    "trainer.gradient_clip_val, or look at these images' boxes"
                )


def check_finite(state: dict[str, Tensor]) -> None:
    """Refuse to save weights that are not finite: a finite loss may have had a gradient that was not."""
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    if not bool(torch.stack([value.isfinite().all() for value in floats.values()]).all()):
        bad = [name for name, value in floats.items() if not bool(value.isfinite().all())]
        raise TrainingError(
            f"{len(bad)} weights became NaN or infinite ({', '.join(bad[:3])}, ...); training stops, and the last good "
            "checkpoint is kept. Lower model.optim.lr, lengthen model.optim.warmup_steps, or set "
            "trainer.gradient_clip_val"
        )
