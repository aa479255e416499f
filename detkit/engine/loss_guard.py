"""Stop training on a loss that is not finite, and name the images it came from."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from detkit.errors import TrainingError


class LossGuard:
    """Watches the losses without making the device wait at every step.

    On the CPU every loss is read before its gradient is taken. On another device reading a value stalls it, so losses
    are kept there and read together every ``interval`` steps, when Lightning logs, and before anything is saved.

    Args:
        interval: steps between two readings on a device other than the CPU.
    """

    def __init__(self, interval: int) -> None:
        self.interval = max(interval, 1)
        self._recent: deque[tuple[Tensor, list[Any]]] = deque()

    def watch(self, losses: dict[str, Tensor], batch: list[dict[str, Any]]) -> None:
        """Take note of one step's losses.

        Raises:
            TrainingError: if a loss that is read now is not finite.
        """
        finite = torch.isfinite(torch.stack([loss.detach() for loss in losses.values()]))
        self._recent.append((finite, [list(losses), [sample.get("image_id") for sample in batch]]))
        if finite.device.type == "cpu" or len(self._recent) >= self.interval:
            self.check()

    def check(self) -> None:
        """Read what was kept.

        Raises:
            TrainingError: naming the losses and the image ids of the first batch that was not finite.
        """
        while self._recent:
            finite, (names, ids) = self._recent.popleft()
            if not bool(finite.all()):
                self._recent.clear()
                bad = ", ".join(n for n, good in zip(names, finite.tolist(), strict=True) if not good)
                raise TrainingError(
                    f"{bad} became NaN or infinite in the batch of images {ids}; training stops, and the last good "
                    "checkpoint is kept. Lower model.lr, lengthen model.warmup_steps, set trainer.gradient_clip_val, "
                    "or look at these images' boxes"
                )


def check_finite(state: dict[str, Tensor]) -> None:
    """Refuse to save weights that are not finite: a finite loss may have had a gradient that was not.

    Raises:
        TrainingError: naming the first few of them.
    """
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    if not bool(torch.stack([value.isfinite().all() for value in floats.values()]).all()):
        bad = [name for name, value in floats.items() if not bool(value.isfinite().all())]
        raise TrainingError(
            f"{len(bad)} weights became NaN or infinite ({', '.join(bad[:3])}, ...); training stops, and the last good "
            "checkpoint is kept. Lower model.lr, lengthen model.warmup_steps, or set trainer.gradient_clip_val"
        )
