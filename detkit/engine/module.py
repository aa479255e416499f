"""What every model of the project shares: optimizer and schedule, exact resumption, plain checkpoints."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from detkit.__about__ import __version__
from detkit.data.loaders import begin_next_epoch
from detkit.engine.loss_guard import LossGuard, check_finite
from detkit.engine.optimization import UNKNOWN, parameter_groups, schedule
from detkit.engine.summary import trainable_table
from detkit.errors import CheckpointError, ConfigError
from detkit.features.weights import Loaded


class TrainableModule(L.LightningModule):
    """Base of the detectors and of `ImageClassifier`.

    All hyper-parameters are plain values: a checkpoint is read with ``weights_only=True``, and it alone is enough to
    predict.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        category_ids: the data set's own ids of these classes. Given by the data set.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        decay_biases: decay biases and batch norms too.
        bias_lr_factor: learning rate of biases relative to ``lr``; 2 in the papers' solvers.
        lr_schedule: multistep, cosine or constant.
        warmup_steps: steps over which the rate rises to ``lr``.
        warmup_factor: where it begins, relative to ``lr``.
        lr_milestones: steps at which the rate drops; below 1: as a fraction of the run.
        lr_gamma: factor of each drop.
        optimizer: replaces SGD, e.g. {class_path: torch.optim.AdamW, init_args: {lr: 0.0001}}.
        lr_scheduler: replaces the schedule; it steps per batch.

    Raises:
        ConfigError: for class names that are missing or twice, or ids that do not go with them.
    """

    #: What `best.ckpt` is the best by, and whether larger (max) or smaller (min) is better.
    best_by = ("val/map", "max")

    def __init__(
        self,
        class_names: list[str],
        category_ids: list[int] | None = None,
        lr: float = 0.02,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        decay_biases: bool = True,
        bias_lr_factor: float = 1.0,
        lr_schedule: str = "multistep",
        warmup_steps: int = 500,
        warmup_factor: float = 0.001,
        lr_milestones: list[float] = [0.67, 0.92],  # noqa: B006 - never changed
        lr_gamma: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_plain_hyperparameters()
        if not class_names or len(set(class_names)) != len(class_names):
            raise ConfigError(f"class_names must be one or more different names, not {class_names}")
        if category_ids is not None and len(category_ids) != len(class_names):
            raise ConfigError(f"{len(category_ids)} category_ids for {len(class_names)} class_names")
        self.class_names = list(class_names)
        self.category_ids = list(category_ids or range(1, len(class_names) + 1))
        self.optimization = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decay_biases": decay_biases,
            "bias_lr_factor": bias_lr_factor,
            "lr_schedule": lr_schedule,
            "warmup_steps": warmup_steps,
            "warmup_factor": warmup_factor,
            "lr_milestones": lr_milestones,
            "lr_gamma": lr_gamma,
        }
        self.optimizer_callable = optimizer
        self.lr_scheduler_callable = lr_scheduler
        #: The numbers of the last validation or test.
        self.last_metrics: dict[str, Any] = {}
        self._guard = LossGuard(interval=1)
        self._overridden = False
        self._resumed_optimizer: str | None = None

    @property
    def num_classes(self) -> int:
        """Classes without background."""
        return len(self.class_names)

    # -- Lightning -----------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Go into training mode, and print what it begins with, what learns and what is fixed."""
        self._guard = LossGuard(interval=self.trainer.log_every_n_steps)
        if not self.training:  # as `detkit.load` and `from_torchvision` give it; Lightning leaves the mode alone
            self.train()
        if self.trainer.is_global_zero:
            found = [getattr(part, "loaded", None) for part in self.modules()]
            for loaded in dict.fromkeys(each for each in found if isinstance(each, Loaded)):
                self.print(f"weights: {loaded}")
            self.print(trainable_table(self))

    def on_train_start(self) -> None:
        """After a resume: begin with the right epoch, and apply what the command line overrides."""
        begin_next_epoch(self.trainer)
        optimizer = self.trainer.optimizers[0]
        if self._overridden and self.optimizer_callable is None:
            for group, wanted in zip(optimizer.param_groups, self.parameter_groups(), strict=True):
                group.update({k: wanted[k] for k in ("momentum", "weight_decay")}, initial_lr=wanted["lr"])
            for config in self.trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, LambdaLR):
                    config.scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
                    factors = [f(config.scheduler.last_epoch) for f in config.scheduler.lr_lambdas]
                    for group, factor in zip(optimizer.param_groups, factors, strict=True):
                        group["lr"] = group["initial_lr"] * factor

    def on_resume_override(self, changed: dict[str, Any]) -> None:
        """Hyper-parameters that win against those of the checkpoint a run is resumed from."""
        self._overridden = bool({"lr", "momentum", "weight_decay", "decay_biases", "bias_lr_factor"} & set(changed))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make the step's randomness a function of seed, step and rank, so that a resumed run goes on exactly."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        seed = (seed * 1_000_003 + step) * 1_009 + self.global_rank
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes milliseconds
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with warm-up and drops, or what ``optimizer`` and ``lr_scheduler`` say; schedules step per batch."""
        total = self._total_steps()
        if self.optimizer_callable is not None:
            optimizer = self.optimizer_callable([p for p in self.parameters() if p.requires_grad])
            ignored = "lr, momentum, weight_decay, decay_biases and bias_lr_factor"
            self.print(f"optimizer: {type(optimizer).__name__} as configured; {ignored} of the model do not count")
        else:
            optimizer = SGD(self.parameter_groups(), lr=self.optimization["lr"])
        self._check_resumed(optimizer)
        if self.lr_scheduler_callable is not None:
            scheduler = self.lr_scheduler_callable(optimizer)
        else:
            scheduler = LambdaLR(optimizer, self.lr_factor(total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _check_resumed(self, optimizer: Optimizer) -> None:
        """Refuse a checkpoint whose optimizer state is another optimizer's.

        Raises:
            CheckpointError: naming both.
        """
        if self.trainer.ckpt_path is not None and self._resumed_optimizer not in (None, type(optimizer).__name__):
            raise CheckpointError(
                f"the checkpoint was trained with {self._resumed_optimizer}, this run asks for "
                f"{type(optimizer).__name__}: its state does not fit. Resume with the same optimizer"
            )

    def _total_steps(self) -> int:
        """Optimizer steps of the whole run; `UNKNOWN` if it has no end."""
        return int(min(self.trainer.estimated_stepping_batches, UNKNOWN))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What SGD is given: the trainable parameters with their rates, momentum and decay."""
        o = self.optimization
        groups = parameter_groups(
            self,
            lr=o["lr"],
            weight_decay=o["weight_decay"],
            decay_biases=o["decay_biases"],
            bias_lr_factor=o["bias_lr_factor"],
        )
        return [{**group, "momentum": o["momentum"]} for group in groups]

    def lr_factor(self, total_steps: int) -> Callable[[int], float]:
        """The learning rate's factor as a function of the step; see `schedule`."""
        o = self.optimization
        return schedule(
            o["lr_schedule"],
            total_steps,
            warmup_steps=o["warmup_steps"],
            warmup_factor=o["warmup_factor"],
            milestones=o["lr_milestones"],
            gamma=o["lr_gamma"],
        )

    # -- checkpoints ---------------------------------------------------------------------------

    def save_plain_hyperparameters(self) -> None:
        """Keep the constructors' arguments, without what is no plain value (optimizer and scheduler factories)."""
        frame = inspect.currentframe().f_back  # the constructor; those of its subclasses are found from it
        left_out = ["preprocessing", "optimizer", "lr_scheduler", "_proposer"]
        self.save_hyperparameters(ignore=left_out, frame=frame, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write which model this is, and its arguments as plain values."""
        self._guard.check()
        check_finite(checkpoint["state_dict"])
        checkpoint["detkit"] = {"class": type(self).__name__, "version": __version__}
        if self.trainer.optimizers:
            checkpoint["detkit"]["optimizer"] = type(self.trainer.optimizers[0]).__name__
        arguments = checkpoint.get("hyper_parameters", {})
        kept = {k: v for k, v in arguments.items() if not k.startswith("_") and k not in ("optimizer", "lr_scheduler")}
        checkpoint["hyper_parameters"] = {**kept, "class_names": self.class_names, "category_ids": self.category_ids}

    def restore_parts(self, checkpoint: dict[str, Any]) -> None:
        """Make module and checkpoint have the same parts, before the weights are loaded."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which optimizer the state belongs to."""
        self.restore_parts(checkpoint)
        self._resumed_optimizer = checkpoint["detkit"].get("optimizer")
