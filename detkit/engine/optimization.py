"""Optimizer and schedule: SGD as the papers ran it, or AdamW, stepped per batch; either can be replaced from YAML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from detkit.errors import ConfigError
from detkit.settings import check_choice, check_range

#: Number of steps of a run whose length is not known.
UNKNOWN = 2**62
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("multistep", "cosine", "constant")


@dataclass(frozen=True)
class OptimSettings:
    """The optimizer, its schedule, and the average of the weights.

    Args:
        lr: learning rate of weights; of four for adamw 0.001 was the best in runs of 208 steps on blood cells.
        momentum: of SGD.
        weight_decay: of weights.
        decay_biases: decay biases and batch norms too.
        bias_lr_factor: learning rate of biases relative to ``lr``; 2 in the papers' solvers (papers.md 2.1, 2.2).
        backbone_lr_factor: learning rate of the backbone's body, and of its last layers where they are the head,
            relative to ``lr``: what is pre-trained changes less than what is new. DETR has 0.1.
        schedule: multistep, cosine (to 0 at the end) or constant.
        warmup_steps: steps over which the rate rises linearly to ``lr``.
        warmup_factor: where it begins, relative to ``lr``.
        milestones: steps at which the rate is multiplied by ``gamma``; below 1: as a fraction of the run.
        gamma: factor of each drop.
        optimizer: sgd or adamw; in short runs adamw with a cosine schedule is better (`benchmarks/what_helps.py`).
        ema: decay (0-1) of a moving average of the weights, which is validated and saved in their place, such as 0.998;
            null: none.
    """

    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_biases: bool = True
    bias_lr_factor: float = 1.0
    backbone_lr_factor: float = 1.0
    schedule: str = "multistep"
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    milestones: tuple[float, ...] = (0.67, 0.92)
    gamma: float = 0.1
    optimizer: str = "sgd"
    ema: float | None = None

    def __post_init__(self) -> None:
        check_choice("optim.optimizer", self.optimizer, OPTIMIZERS)
        check_range("optim.ema", self.ema, 0, 1)
        check_choice("optim.schedule", self.schedule, SCHEDULES)
        factors = ("bias_lr_factor", "backbone_lr_factor", "warmup_factor", "gamma")
        for name in ("lr", "momentum", "weight_decay", "warmup_steps", *factors):
            check_range(f"optim.{name}", getattr(self, name), 0)
        object.__setattr__(self, "milestones", tuple(self.milestones))


def parameter_groups(
    module: nn.Module, settings: OptimSettings, lr_factor: float = 1.0, backbone: Iterable[nn.Module] = ()
) -> list[dict[str, Any]]:
    """What the optimizer is given: the trainable parameters, biases apart where they are treated otherwise.

    Args:
        module: whose parameters they are.
        settings: rates and decay.
        lr_factor: of all rates.
        backbone: the parts of the module that learn ``settings.backbone_lr_factor`` times as fast.

    Raises:
        ConfigError: if nothing is trainable.
    """
    slow = {id(p) for part in backbone for p in part.parameters()} if settings.backbone_lr_factor != 1 else set()
    learning = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not learning:
        raise ConfigError("nothing is trainable: every parameter is frozen; set features.transfer: partial or full")
    own = [(name, p) for name, p in learning if id(p) not in slow]
    theirs = [(name, p) for name, p in learning if id(p) in slow]
    return _groups(own, settings, lr_factor) + _groups(theirs, settings, lr_factor * settings.backbone_lr_factor)


def _groups(
    parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimSettings, lr_factor: float
) -> list[dict[str, Any]]:
    """Weights, batch norms and biases, those that there are."""
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    for name, parameter in parameters:
        group = weights if parameter.ndim > 1 else biases if name.endswith("bias") else norms
        group.append(parameter)
    lr, decay = settings.lr * lr_factor, settings.weight_decay
    bias_decay = decay if settings.decay_biases else 0.0
    groups = [
        {"params": weights, "lr": lr, "weight_decay": decay},
        {"params": norms, "lr": lr, "weight_decay": bias_decay},
        {"params": biases, "lr": lr * settings.bias_lr_factor, "weight_decay": bias_decay},
    ]
    more = {"momentum": settings.momentum} if settings.optimizer == "sgd" else {}
    return [group | more for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, Any]], settings: OptimSettings) -> Optimizer:
    """The optimizer of groups as `parameter_groups` makes them."""
    return SGD(groups, lr=settings.lr) if settings.optimizer == "sgd" else AdamW(groups, lr=settings.lr)


def depends_on_length(settings: OptimSettings) -> bool:
    """Whether the schedule depends on the number of steps of the run."""
    fractions = any(0 < m < 1 for m in settings.milestones)
    return settings.schedule == "cosine" or (settings.schedule == "multistep" and fractions)


def schedule(settings: OptimSettings, total_steps: int) -> Callable[[int], float]:
    """The learning rate's factor as a function of the step (0-based) of a run of ``total_steps``.

    Raises:
        ConfigError: for ``cosine`` or milestones below 1 where the run's length is not known.
    """
    s = settings
    if depends_on_length(s) and not 0 < total_steps < UNKNOWN:
        raise ConfigError(
            f"optim.schedule: {s.schedule} with milestones {list(s.milestones)} needs trainer.max_epochs or max_steps"
        )
    steps = sorted(m * total_steps if 0 < m < 1 else m for m in s.milestones)

    def factor(step: int) -> float:
        warmup = 1.0
        if s.warmup_steps:
            warmup = min(1.0, s.warmup_factor + (1 - s.warmup_factor) * step / s.warmup_steps)
        if s.schedule == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1.0)))
        if s.schedule == "multistep":
            return warmup * s.gamma ** sum(step >= m for m in steps)
        return warmup

    return factor
