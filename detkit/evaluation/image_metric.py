"""What the metrics over images share: what they keep, and how several processes put it together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torchmetrics import Metric


class ImageMetric(Metric):
    """A metric that keeps small arrays of every image, on the CPU, until it is asked for its numbers.

    torchmetrics' states are tensors, to be gathered one by one: they would have to be equally many on each rank, and
    on the GPU for NCCL. What is kept here is no state in that sense but a list of its own, `parts`, which is gathered
    once, as objects; these need not be there at all, and PyTorch carries them as bytes on the device the backend
    wants (for NCCL the current CUDA device: `torch.cuda.set_device`, which Lightning and torchrun scripts call). Every
    rank makes this same call, so that none waits for another forever.

    A metric implements `update`, which appends to `parts`, `compute`, and `join` and `count` of parts.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts: list[Any] = []

    @staticmethod
    def join(parts: Iterable[Any]) -> list[Any]:
        """The parts with each image once, by its id, in an order that does not depend on who saw which image."""
        raise NotImplementedError("a metric over images must implement join")

    @staticmethod
    def count(parts: Sequence[Any]) -> int:
        """How many images the parts hold."""
        raise NotImplementedError("a metric over images must implement count")

    def joined(self) -> list[Any]:
        """`parts` with each image once; says so if this process has met one more than once."""
        joined = self.join(self.parts)
        repeated = self.count(self.parts) - self.count(joined)
        if repeated:
            rank_zero_warn(
                f"{type(self).__name__}: {repeated} images came again and were not counted again; if they are other "
                "images, give each an image_id of its own"
            )
        return joined

    def reset(self) -> None:
        """Forgets all images."""
        super().reset()
        self.parts = []

    def merge_state(self, incoming_state: ImageMetric) -> None:
        """Takes over the images of another metric of the same kind."""
        self.parts = [*self.parts, *incoming_state.parts]
        self._computed = None

    def _copy_state_dict(self) -> dict[str, Any]:
        # What torchmetrics puts back after a forward and after the processes are done together.
        return {"parts": list(self.parts)}

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        group = process_group or self.process_group
        gathered: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, self.joined(), group=group)
        self.parts = self.join(part for parts in gathered for part in parts)

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> ImageMetric:
        """Nothing moves: all is arrays on the CPU, wherever the model goes."""
        return self
