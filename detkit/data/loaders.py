"""The DataLoaders: batches are plain lists, and training can be resumed within an epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from detkit.data.sampler import EvalSampler
from detkit.signals import let_parent_end_worker
from detkit.system import available_cores


def collate(batch: list[Any]) -> list[Any]:
    """The batch itself: images differ in size, so nothing is stacked here."""
    return batch


def init_worker(worker_id: int) -> None:
    """Keep a worker to one thread, since more of them only fight for the cores, and let only its parent end it."""
    import sys

    let_parent_end_worker()
    torch.set_num_threads(1)
    if "cv2" in sys.modules or "albumentations" in sys.modules:
        import cv2

        cv2.setNumThreads(0)
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")


def default_workers() -> int:
    """One less than the cores this process may use, at most 4."""
    return min(4, available_cores() - 1)


class TrainLoader(DataLoader):
    """A DataLoader that begins when its first batch is asked for, and that Lightning may resume within an epoch.

    Lightning makes the first epoch's iterator before it has read how far a resumed run came, and workers fetch at once:
    they would begin with the wrong samples. The state is empty, since the sampler asks the trainer (`samples_done`);
    having one tells Lightning that resuming is exact.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def samples_done(trainer: L.Trainer | None, batch_size: int) -> Callable[[], int]:
    """What a TrainSampler asks: how many samples of the epoch this rank has trained on, when the epoch begins.

    Lightning counts the batches of an epoch; at its beginning there are none, unless the run is resumed within it.
    """
    if trainer is None:
        return lambda: 0
    return lambda: trainer.fit_loop.epoch_loop.batch_progress.current.ready * batch_size


def begin_next_epoch(trainer: L.Trainer) -> None:
    """Let a fit that is resumed from the end of an epoch begin with the next one; to be called in `on_train_start`.

    With max_epochs Lightning does so by itself. With max_steps it takes any checkpoint for one from the middle of an
    epoch, and begins with an epoch without batches, which it counts.
    """
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.current  # its type lacks `processed`
    if loop.restarting and not loop.restarted_mid_epoch and epochs.ready == epochs.processed:
        if epochs.completed < epochs.processed:
            loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        loop.epoch_loop.reset_restart_stage()
        loop.epoch_loop.restarting = False


def make_eval_loader(dataset: Dataset, batch_size: int, num_workers: int) -> DataLoader:
    """Batches in the data set's order, shared out among ranks."""
    sampler = EvalSampler(len(dataset))  # type: ignore[arg-type]
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, **loader_options(num_workers))


def make_own_loader(dataset: Dataset, num_workers: int) -> DataLoader:
    """One sample a batch, in the data set's order; each rank reads all of it."""
    return DataLoader(dataset, batch_size=1, **loader_options(num_workers))


def loader_options(num_workers: int) -> dict[str, Any]:
    """What all DataLoaders are given."""
    return {
        "num_workers": num_workers,
        "collate_fn": collate,
        "worker_init_fn": init_worker,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }
