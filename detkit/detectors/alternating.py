"""The paper's 4-step alternating training (Ren et al. 2015, section 3.2), as one fit.

1. The RPN learns on a backbone of its own, which begins with the given weights.
2. The region classifier learns, on a second backbone with the same beginning and with step 1's proposals.
3. The RPN's own layers are tuned on step 2's backbone, which is fixed from now on: both share it.
4. The region classifier's own layers are tuned on step 3's proposals.

The authors' run has 80k, 40k, 80k and 40k steps, each with its own drop of the rate (papers.md 2.3); here the four
share a run's steps in the same proportion.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.nn.modules.batchnorm import _BatchNorm

from detkit.engine.optimization import UNKNOWN
from detkit.errors import ConfigError

if TYPE_CHECKING:
    from detkit.detectors.faster_rcnn import FasterRCNN

STEPS = 4
SHARES = (2 / 6, 1 / 6, 2 / 6, 1 / 6)


def bounds(total_steps: int) -> list[int]:
    """The training step at which each of the four steps ends."""
    ends, passed = [], 0.0
    for share in SHARES:
        passed += share
        ends.append(round(passed * total_steps))
    return ends


def step_at(training_step: int, total_steps: int) -> int:
    """Which of the four steps, 0 to 3, a training step belongs to."""
    return min(sum(training_step >= end for end in bounds(total_steps)), STEPS - 1)


def repeated(factor_of: Callable[[int], Callable[[int], float]], total_steps: int) -> Callable[[int], float]:
    """A schedule of the learning rate that runs anew in each of the four steps.

    Args:
        factor_of: from a number of steps to the factor as a function of the step.
        total_steps: of the whole run.
    """
    ends = bounds(total_steps)
    starts = [0, *ends[:-1]]
    factors = [factor_of(max(end - start, 1)) for start, end in zip(starts, ends, strict=True)]

    def factor(step: int) -> float:
        current = step_at(step, total_steps)
        return factors[current](step - starts[current])

    return factor


#: The parts that learn in each of the four steps.
LEARNING = (("rpn_backbone", "rpn"), ("backbone", "roi_heads"), ("rpn",), ("roi_heads",))


class Alternation:
    """Moves a `FasterRCNN` through the four steps.

    Args:
        model: with a backbone of the RPN's own, ``rpn_backbone``. What its transfer policy fixes stays fixed.
    """

    def __init__(self, model: FasterRCNN) -> None:
        self.step = 0
        self._trainable = [name for name, p in model.named_parameters() if p.requires_grad]

    @property
    def shares_backbone(self) -> bool:
        """Whether the RPN reads the same features as the region classifier (from the third step on)."""
        return self.step >= 2

    def release(self, model: FasterRCNN) -> None:
        """Let everything learn that does in any step; a fit begins with it."""
        for name in self._trainable:
            model.get_parameter(name).requires_grad_(True)

    def advance(self, model: FasterRCNN, training_step: int, total_steps: int) -> None:
        """Let those parts learn whose turn it is; called before each training step.

        Raises:
            ConfigError: if the run's length is not known.
        """
        if not 0 < total_steps < UNKNOWN:
            raise ConfigError("training_scheme: alternating needs trainer.max_epochs or trainer.max_steps")
        # A run that is resumed with a later end does not go back: the RPN's own backbone is gone after step 2.
        now = max(self.step, step_at(training_step, total_steps)) if training_step else 0
        if now != self.step:
            for optimizer in model.trainer.optimizers:
                optimizer.state.clear()  # momentum of the step before
        self.step = now
        for name in self._trainable:
            model.get_parameter(name).requires_grad_(name.split(".")[0] in LEARNING[now])
        # What does not learn keeps its batch norms' statistics too (a ResNet's conv5 is the head of each region).
        for part, module in model.named_children():
            for norm in (m for m in module.modules() if isinstance(m, _BatchNorm)):
                norm.train(part in LEARNING[now])


def check_strategy(model: FasterRCNN) -> None:
    """Refuse a DDP that waits for gradients of parts whose turn it is not.

    Raises:
        ConfigError: naming the strategy to choose.
    """
    options = getattr(model.trainer.strategy, "_ddp_kwargs", {})
    if model.trainer.world_size > 1 and not options.get("find_unused_parameters"):
        raise ConfigError(
            "training_scheme: alternating on several devices needs trainer.strategy: ddp_find_unused_parameters_true"
        )


class AlternatingMixin:
    """The hooks of a fit in four steps, for `FasterRCNN`; a joint one is not touched."""

    def set_training_scheme(self, scheme: str) -> None:
        """Train jointly or in four steps; for the first two of these the RPN gets a backbone of its own.

        Raises:
            ConfigError: for another scheme than ``joint`` and ``alternating``.
        """
        if scheme not in ("joint", "alternating"):
            raise ConfigError(f"unknown training_scheme {scheme!r}; the known ones are joint, alternating")
        self.rpn_backbone = copy.deepcopy(self.backbone) if scheme == "alternating" else None
        self.alternation = Alternation(self) if scheme == "alternating" else None

    def configure_optimizers(self) -> Any:
        """One optimizer for what learns in any of the four steps."""
        if self.alternation is not None:
            self.alternation.release(self)
        return super().configure_optimizers()

    def on_fit_start(self) -> None:
        """Print what learns; check that the strategy can do it."""
        super().on_fit_start()
        if self.alternation is not None:
            check_strategy(self)

    def on_train_batch_start(self, batch: list[dict[str, Any]], batch_idx: int) -> None:
        """Let those parts learn whose turn it is."""
        super().on_train_batch_start(batch, batch_idx)
        if self.alternation is not None:
            total = int(min(self.trainer.estimated_stepping_batches, UNKNOWN))
            self.alternation.advance(self, self.trainer.global_step, total)

    def lr_factor(self, total_steps: int) -> Callable[[int], float]:
        """The learning rate's factor; the schedule runs anew in each of the four steps."""
        if self.alternation is None:
            return super().lr_factor(total_steps)
        return repeated(super().lr_factor, total_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the step, and the RPN's own backbone only while it is needed."""
        super().on_save_checkpoint(checkpoint)
        if self.alternation is not None:
            checkpoint["detkit"]["alternating_step"] = self.alternation.step
            if self.alternation.shares_backbone:
                for name in [n for n in checkpoint["state_dict"] if n.startswith("rpn_backbone.")]:
                    del checkpoint["state_dict"][name]

    def restore_parts(self, checkpoint: dict[str, Any]) -> None:
        """Go on in the step that was saved, whose weights may lack the RPN's own backbone."""
        if self.alternation is not None:
            self.alternation.step = checkpoint["detkit"].get("alternating_step", 0)
            for name, value in self.rpn_backbone.state_dict().items():
                checkpoint["state_dict"].setdefault(f"rpn_backbone.{name}", value)
