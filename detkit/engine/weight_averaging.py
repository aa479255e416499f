"""The moving average of a run's weights, which is validated and saved in place of the last step's."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from detkit.errors import CheckpointError
from detkit.torch_files import check_fits, is_plain_tensor


class MovingAverage(WeightAveraging):
    """Keeps an exponential moving average of the weights; see `OptimSettings.ema`.

    The decay rises with the number n of steps, as min(decay, (1 + n) / (10 + n)), so that the first steps, in which the
    weights change most, are soon forgotten. A checkpoint has the average as its weights, and the last step's beside
    it, with which a resumed run goes on.
    """

    def __init__(self, decay: float) -> None:
        def average(old: list[Tensor], new: list[Tensor], _: Tensor | int) -> None:
            steps = int(self._average_model.n_averaged)
            get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(old, new, steps)

        super().__init__(multi_avg_fn=average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average; its count stays on the CPU, so that no step waits for the device."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average and the weights of the last step; a test or prediction has the average as the weights."""
        if self._average_model is None:
            return
        if "current_model_state" in checkpoint:
            weights, steps = checkpoint["current_model_state"], checkpoint.get("averaging_state")
            for name, state in (("current_model_state", weights), ("averaging_state", steps)):
                if not isinstance(state, dict) or not all(is_plain_tensor(value) for value in state.values()):
                    raise CheckpointError(f"its entry {name} is not as detkit writes it")
            check_fits(weights, pl_module.state_dict(), "its entry current_model_state")
            check_fits(steps, {"n_averaged": torch.tensor(0)}, "its entry averaging_state")
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
