"""The paper's 4-step alternating training (Ren et al. 2015, section 3.2), as one fit.

1. The RPN learns on a backbone of its own, which has the given initial weights.
2. The second stage learns, on another backbone with the same initial weights and with step 1's proposals.
3. The RPN's own layers are tuned on step 2's backbone, which is fixed from now on: both share it.
4. The second stage's own layers are tuned on step 3's proposals.

The steps have the proportions of the authors' 80k, 40k, 80k and 40k, each with its own schedule (papers.md 2.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from detkit.engine.optimization import UNKNOWN
from detkit.errors import ConfigError
from detkit.torch_files import check_form
from detkit.types import Batch

SHARES = (2 / 6, 1 / 6, 2 / 6, 1 / 6)
#: The parts that learn in each of the four steps.
LEARNING = (("rpn_backbone", "rpn"), ("backbone", "roi_heads"), ("rpn",), ("roi_heads",))
#: From this step on (counted from 0) both stages read the same features.
SHARED_FROM = 2


def bounds(total_steps: int) -> list[int]:
    """The training step at which each of the four steps ends."""
    ends, share_so_far = [], 0.0
    for share in SHARES:
        share_so_far += share
        ends.append(round(share_so_far * total_steps))
    return ends


def step_at(training_step: int, total_steps: int) -> int:
    """Which of the four steps, 0 to 3, a training step belongs to."""
    return min(sum(training_step >= end for end in bounds(total_steps)), len(SHARES) - 1)


def repeated(factor_of: Callable[[int], Callable[[int], float]], total_steps: int) -> Callable[[int], float]:
    """A schedule of the learning rate, for a number of steps, that runs anew in each of the four steps."""
    ends = bounds(total_steps)
    starts = [0, *ends[:-1]]
    factors = [factor_of(max(end - start, 1)) for start, end in zip(starts, ends, strict=True)]

    def factor(step: int) -> float:
        current = step_at(step, total_steps)
        return factors[current](step - starts[current])

    return factor


class AlternatingSchedule(Callback):
    """Moves a `FasterRCNN` through the four steps of a fit; what the transfer policy fixes stays fixed in all."""

    def __init__(self) -> None:
        self.step = 0
        self._paused: list[str] = []

    @property
    def shares_backbone(self) -> bool:
        """Whether the RPN reads the same features as the second stage (from the third step on)."""
        return self.step >= SHARED_FROM

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the optimizer is made: let everything learn that does in any step."""
        if stage == "fit":
            for name in self._paused:
                pl_module.get_parameter(name).requires_grad_(True)
            self._paused = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a DDP that waits for gradients of parts that do not learn in a step."""
        # Lightning has no public name for it; test_alternating.py tells when it changes. torch's own error does not say
        # what to set.
        options = getattr(trainer.strategy, "_ddp_kwargs", {})
        if trainer.world_size > 1 and not options.get("find_unused_parameters"):
            raise ConfigError(
                "training_scheme: alternating on several devices needs trainer.strategy: "
                "ddp_find_unused_parameters_true"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Let the parts of the current step learn; refuse a run whose length is not known."""
        total_steps = int(min(trainer.estimated_stepping_batches, UNKNOWN))
        if not 0 < total_steps < UNKNOWN:
            raise ConfigError("training_scheme: alternating needs trainer.max_epochs or trainer.max_steps")
        # A run that is resumed with a later end does not go back: the RPN's own backbone is gone after step 2.
        step = max(self.step, step_at(trainer.global_step, total_steps)) if trainer.global_step else 0
        if step != self.step:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()  # momentum of the step before
        self.step = step
        self._pause(pl_module)

    def _pause(self, model: LightningModule) -> None:
        """Fix what does not learn in this step, its batch norms' statistics too."""
        for name in self._paused:
            model.get_parameter(name).requires_grad_(True)
        learning = LEARNING[self.step]
        self._paused = [
            name for name, p in model.named_parameters() if p.requires_grad and name.split(".")[0] not in learning
        ]
        for name in self._paused:
            model.get_parameter(name).requires_grad_(False)
        # A ResNet's conv5, which is the head of each region, has batch norms too.
        for part, module in model.named_children():
            for norm in (m for m in module.modules() if isinstance(m, _BatchNorm)):
                norm.train(part in learning)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_form(state_dict, {"step": 0}, "callbacks.AlternatingSchedule")
        self.step = min(state_dict["step"], len(SHARES) - 1)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave the RPN's own backbone out once it is not needed any more."""
        if self.shares_backbone:
            for name in [n for n in checkpoint["state_dict"] if n.startswith("rpn_backbone.")]:
                del checkpoint["state_dict"][name]

    def restore(self, model: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Share the backbone where a checkpoint has none of the RPN's own, and give it one that is not read."""
        weights = checkpoint["state_dict"]
        if not any(name.startswith("rpn_backbone.") for name in weights):
            self.step = max(self.step, SHARED_FROM)
        for name, value in model.rpn_backbone.state_dict().items():
            weights.setdefault(f"rpn_backbone.{name}", value)
