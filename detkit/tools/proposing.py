"""Computing proposals within Trainer.predict, which places the processes: each computes its share of the images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from detkit.data.annotations import Annotations
from detkit.data.datamodule import DetectionDataModule
from detkit.data.dataset import DetectionDataset, Sample
from detkit.data.loaders import collate, init_worker
from detkit.data.proposals import compute, find, finish, plan, say_waiting, say_what
from detkit.detectors import Detector
from detkit.errors import DataError
from detkit.progress import Progress
from detkit.proposals.store import ProposalStore
from detkit.proposals.store_journal import Computation, Journal
from detkit.system import available_cores


class Proposing(L.LightningModule):
    """Computes what is missing of a split's proposals.

    `trainer.predict(module)` computes this process's share; then every process calls `finish`.

    Args:
        data: the data set.
        split: "train", "val" or "test".
        method: of the proposals.
        parameters: of the method, all of them, as they will stand in the store.
        place: the store's path, from the split's annotations.

    Attributes:
        annotations: of the split.
        computation: what is to be made.
        seconds: that it took, once finished; None where the store was there already.
    """

    annotations: Annotations
    computation: Computation

    def __init__(
        self,
        data: DetectionDataModule,
        split: str,
        method: str,
        parameters: dict[str, Any],
        place: Callable[[Annotations], Path],
    ) -> None:
        super().__init__()
        self.data, self.split, self.method, self.options, self.place = data, split, method, parameters, place
        self.store: ProposalStore | None = None
        self.journal: Journal | None = None
        self.seconds: float | None = None
        self._everyone: Any = None

    def prepare_data(self) -> None:
        """The data set's own: downloads and the like, once a machine."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Find out what is to be done.

        Raises:
            DataError: there is no such split, or the store that is there does not fit.
        """
        annotations = self.data.annotations(self.split)
        if annotations is None:
            raise DataError(f"{type(self.data).__name__} has no {self.split} split with annotations to propose for")
        self.annotations = annotations
        self.computation = plan(annotations, self.place(annotations), self.method, self.options)
        self.store = find(self.computation)
        if torch.distributed.is_initialized():
            # The first process may be done hours before the last: the usual patience is half an hour.
            self._everyone = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=1000))
        if self.store is None:
            self._began = time.monotonic()
            self.journal = Journal(
                self.computation, self.trainer.global_rank, on_wait=lambda: say_waiting(self.computation.path)
            )

    def todo(self) -> list[int]:
        """The images that this process has to compute."""
        if self.journal is None:
            return []
        return self.journal.todo(self.trainer.global_rank, self.trainer.world_size)

    def finish(self) -> ProposalStore | None:
        """Wait for all processes; the first one then makes the store, the others have None.

        Raises:
            DataError: images that cannot be read, or that other processes kept in another folder; all others are kept.
        """
        if self._everyone is not None:
            torch.distributed.barrier(self._everyone)
        try:
            if self.trainer.is_global_zero and self.journal is not None:
                # Whoever wrote this very part before us may have made the store.
                self.store = find(self.computation) or finish(
                    self.annotations, self.computation, self.trainer.world_size
                )
                self.seconds = time.monotonic() - self._began
            if self.trainer.is_global_zero:
                self.computation.remove_abandoned_parts()
        finally:
            self.close()
        return self.store if self.trainer.is_global_zero else None

    def close(self) -> None:
        """Let go of this process's part."""
        if self.journal is not None:
            self.journal.close()


class ByThreads(Proposing):
    """For methods that need no network: one step, in which all threads work.

    Args:
        data, split, method, parameters, place: see `Proposing`.
        workers: threads of each process; None shares out the cores of the machine.
    """

    def __init__(self, *args: Any, workers: int | None = None) -> None:
        super().__init__(*args)
        self.workers = workers

    def predict_dataloader(self) -> DataLoader:
        """The one step."""
        return DataLoader([0])  # type: ignore[arg-type]

    def predict_step(self, batch: Any, batch_idx: int) -> bool:
        """This process's share."""
        if self.journal is not None:
            workers = max(1, available_cores() // self.trainer.num_devices) if self.workers is None else self.workers
            compute(
                self.annotations,
                self.journal,
                self.todo(),
                workers=workers,
                progress=self.trainer.is_global_zero,
            )
        return True  # Lightning warns of a step that gives nothing


class ByNetwork(Proposing):
    """By a detector's region proposal network, an image at a time: no image's boxes hang on its neighbours.

    Args:
        data, split, method, parameters, place: see `Proposing`.
        detector: with a region proposal network.
    """

    def __init__(self, *args: Any, detector: Detector) -> None:
        super().__init__(*args)
        self.detector = detector
        self.progress: Progress | None = None

    def predict_dataloader(self) -> Any:
        """This process's images."""
        todo = self.todo()
        if not todo:
            return [[]]  # Lightning leaves everything out where there is no step at all
        workers = self.data.num_workers
        options: dict[str, Any] = {"num_workers": workers, "worker_init_fn": init_worker, "collate_fn": collate}
        return DataLoader(Numbered(DetectionDataset(self.annotations), todo), batch_size=1, **options)

    def on_predict_start(self) -> None:
        """Say what is coming."""
        if self.journal is not None:
            todo, show = self.todo(), self.trainer.is_global_zero
            if show:
                say_what(self.journal, f"on {self.device}")
            earlier = int(self.journal.done.sum())
            self.progress = Progress("proposals", earlier + len(todo), earlier, show=show).__enter__()

    def predict_step(self, batch: Sequence[tuple[int, Sample | None]], batch_idx: int) -> bool:
        """Propose and keep; images that cannot be read are left for `finish`."""
        for index, sample in batch:
            if sample is None or self.journal is None or self.progress is None:
                continue
            height, width = sample["image"].shape[-2:]
            encoded = self.detector.encode([sample])
            (found,) = self.detector.propose([sample], encoded)
            boxes = encoded.images.to_original(found.boxes[found.valid], 0)
            self.journal.append(index, boxes.float().cpu().numpy(), (width, height))
            self.progress.step()
        return True

    def close(self) -> None:
        """Let go of this process's part, and of the terminal."""
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
            self.progress = None
        super().close()


class Numbered(Dataset):
    """Samples with their numbers; None for a sample whose image cannot be read."""

    def __init__(self, dataset: DetectionDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> tuple[int, Sample | None]:
        """(index, sample)."""
        index = self.indices[row]
        try:
            return index, self.dataset[index]
        except DataError:
            return index, None
