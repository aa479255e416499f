"""The DataLoaders: batches are plain lists, and a training epoch can be taken up in its middle."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from detkit.data.sampler import EvalSampler, TrainSampler


def collate(batch: list[Any]) -> list[Any]:
    """The batch itself: images differ in size, so nothing is stacked here."""
    return batch


def init_worker(worker_id: int) -> None:
    """Keep a worker to one thread; more of them only fight for the cores."""
    import sys

    torch.set_num_threads(1)
    if "cv2" in sys.modules or "albumentations" in sys.modules:
        import cv2

        cv2.setNumThreads(0)
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")


def default_workers() -> int:
    """One less than the cores this process may use, at most 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(4, cores - 1))


class TrainLoader(DataLoader):
    """A DataLoader that Lightning may resume in the middle of an epoch.

    Its state is empty: the TrainSampler works out the place from the trainer's own progress
    (`resume_position`), and having a state says that resuming is exact.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def resume_position(trainer: Any) -> tuple[int, int]:
    """(epoch, batches of it that are done) at which the fit of a Lightning 2.6 trainer will begin.

    Lightning makes the iterator of the first epoch, and workers fetch from it, before it tells
    the sampler the epoch, and it counts done batches without leaving them out: so the sampler
    has to know both when it is built. The cases follow `_TrainingEpochLoop.reset`.
    """
    loop = trainer.fit_loop
    epochs = loop.epoch_progress.current
    if not loop.restarting:
        return epochs.processed, 0
    if epochs.ready == epochs.processed:
        _begin_next_epoch(loop)
        return epochs.processed, 0
    batches = loop.epoch_loop.batch_progress
    done, total = batches.current.completed, batches.total
    if total.ready == total.started == total.processed == total.completed + 1:
        done += 1  # saved in on_train_batch_end: trained on, not yet counted
    if batches.is_last_batch and done == batches.current.ready:
        return epochs.processed + 1, 0
    return epochs.processed, done


def _begin_next_epoch(loop: Any) -> None:
    """Tell a fit loop that the epoch of its checkpoint is over.

    With max_epochs Lightning sees that by itself. With max_steps it takes any checkpoint for one
    from the middle of an epoch, and begins with an epoch of no or one batch, which it counts.
    """
    loop._restarting = False  # the property's setter would set it again
    loop.epoch_loop.restarting = False


def make_train_loader(dataset: Dataset, sampler: TrainSampler, batch_size: int, num_workers: int) -> TrainLoader:
    """Batches in the sampler's order."""
    return TrainLoader(dataset, batch_size=batch_size, sampler=sampler, **_common(num_workers))


def make_eval_loader(dataset: Dataset, batch_size: int, num_workers: int) -> DataLoader:
    """Batches in the data set's order, shared out among ranks."""
    sampler = EvalSampler(len(dataset))  # type: ignore[arg-type]
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, **_common(num_workers))


def make_own_loader(dataset: Dataset, num_workers: int) -> DataLoader:
    """One sample a batch, in the data set's order: all of it, also where there are other ranks."""
    return DataLoader(dataset, batch_size=1, **_common(num_workers))


def _common(num_workers: int) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "collate_fn": collate,
        "worker_init_fn": init_worker,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }
