"""Optimizer and schedule: SGD as the papers ran it, stepped per batch; either can be replaced from YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from detkit.errors import ConfigError

#: Number of steps of a run whose length is not known.
UNKNOWN = 2**62
SCHEDULES = ("multistep", "cosine", "constant")


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, decay_biases: bool, bias_lr_factor: float
) -> list[dict[str, Any]]:
    """The trainable parameters, biases apart where they are treated otherwise.

    Args:
        module: whose parameters with ``requires_grad`` are taken.
        lr: learning rate of weights.
        weight_decay: of weights; of biases and batch norms too if ``decay_biases``.
        bias_lr_factor: learning rate of biases relative to ``lr``; 2 in the papers' solvers (papers.md 2.1, 2.2).

    Raises:
        ConfigError: if nothing is trainable.
    """
    weights, biases, norms = [], [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            kind = weights if parameter.ndim > 1 else biases if name.endswith("bias") else norms
            kind.append(parameter)
    if not (weights or biases or norms):
        raise ConfigError("nothing is trainable: every parameter is frozen")
    decay = weight_decay if decay_biases else 0.0
    groups = [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": norms, "lr": lr, "weight_decay": decay},
        {"params": biases, "lr": lr * bias_lr_factor, "weight_decay": decay},
    ]
    return [group for group in groups if group["params"]]


def schedule(
    kind: str,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    warmup_factor: float = 0.001,
    milestones: Iterable[float] = (),
    gamma: float = 0.1,
) -> Callable[[int], float]:
    """The learning rate's factor as a function of the step (0-based).

    Args:
        kind: ``multistep``, ``cosine`` (to 0 at the end) or ``constant``.
        total_steps: length of the run; needed by ``cosine`` and by milestones below 1.
        warmup_steps: the factor rises linearly from ``warmup_factor`` to 1 within them.
        milestones: steps at which the rate is multiplied by ``gamma``; below 1: as a fraction of the run.

    Raises:
        ConfigError: for an unknown kind, or where the run's length is needed and not known.
    """
    if kind not in SCHEDULES:
        raise ConfigError(f"unknown schedule {kind!r}; the known ones are {', '.join(SCHEDULES)}")
    fractions = kind == "cosine" or any(0 < m < 1 for m in milestones)
    if fractions and not 0 < total_steps < UNKNOWN:
        raise ConfigError(f"schedule {kind} with milestones {list(milestones)} needs max_epochs or max_steps")
    steps = sorted(m * total_steps if 0 < m < 1 else m for m in milestones)

    def factor(step: int) -> float:
        warm = min(1.0, warmup_factor + (1 - warmup_factor) * step / warmup_steps) if warmup_steps else 1.0
        if kind == "cosine":
            return warm * 0.5 * (1 + torch.tensor(torch.pi * min(step / total_steps, 1.0)).cos().item())
        return warm * (gamma ** sum(step >= m for m in steps) if kind == "multistep" else 1.0)

    return factor
