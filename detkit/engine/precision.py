"""Precisions that a CPU only imitates: refused, because a run would take many times as long without a reason."""

from __future__ import annotations

import os

import torch

from detkit.errors import ConfigError
from detkit.features.crop_reader import has_bf16

#: Set to 1, it allows them.
VARIABLE = "DETKIT_SLOW_PRECISION"


def check_precision(precision: str | int | None, device: torch.device) -> None:
    """Refuse bfloat16 on a CPU that does not compute in it, and float16 on any CPU.

    Args:
        precision: as the trainer was asked for, such as "bf16-mixed"; others than strings and numbers are let through.
        device: where the trainer runs.

    Raises:
        ConfigError: the reason, and how to run it all the same.
    """
    kind = str(precision).partition("-")[0]
    if device.type != "cpu" or kind not in ("bf16", "16") or os.environ.get(VARIABLE) == "1":
        return
    # Of other processors than x86 torch does not tell how they compute in bfloat16.
    if kind == "bf16" and (has_bf16(device) or torch.cpu.get_capabilities().get("architecture") != "x86_64"):
        return
    why = "this CPU has no bfloat16 and would imitate it: about 8 times slower than 32-true"
    if kind == "16":
        why = "CPUs do not compute in float16" + ("; this one has bf16-mixed" if has_bf16(device) else "")
    raise ConfigError(
        f"trainer.precision {precision}: {why}. Leave it out (32-true), or set the environment variable {VARIABLE}=1"
    )
