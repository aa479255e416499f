"""The proposals of a split, computed and kept in one file, for Fast R-CNN and R-CNN."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detkit.data.annotations import Annotations
from detkit.data.datamodule import DetectionDataModule
from detkit.data.dataset import DetectionDataset
from detkit.data.layouts import opened
from detkit.data.loaders import collate, init_worker
from detkit.detectors import Detector, FasterRCNN, ProposalSettings, load
from detkit.engine.checkpoints import find_checkpoint
from detkit.errors import ConfigError, DataError, DetkitError
from detkit.evaluation.proposal_recall import Recall, best_overlaps, summarise
from detkit.progress import Progress
from detkit.proposals.compute import ProposalTask, compute, finish
from detkit.proposals.methods import ProposalMethod, SelectiveSearch, StoredRPN
from detkit.proposals.store import ProposalStore
from detkit.proposals.store_writer import StoreWriter
from detkit.signals import SIGNALS
from detkit.system import available_cores, keep_freed_memory
from detkit.types import Sample

CHUNK = 1_000_000  # proposals whose overlaps are computed together: 32 MB


@dataclass(frozen=True)
class PlacementSettings:
    """Where to compute, as Lightning's Trainer has it.

    Args:
        accelerator: cpu, gpu, ...; auto is the GPU for StoredRPN, and the CPU for methods that gain nothing from a GPU.
        devices: processes on each machine; auto is all GPUs for StoredRPN, and otherwise one process, with a thread a
            core.
        num_nodes: machines; each is started with the same command, by torchrun or SLURM.
        strategy: ddp for several processes.
        precision: of the network, such as bf16-mixed.
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: int | str | None = None


@dataclass(frozen=True)
class ProposeResult:
    """What `propose` returns. Of several processes the first one has it; the others have no store, and no text.

    Attributes:
        store: the proposals.
        seconds: that computing took; None if the store was there already.
        recall: of all boxes; None without objects.
        text: counts, time, size, recall and the file.
    """

    store: ProposalStore | None = None
    seconds: float | None = None
    recall: Recall | None = None
    text: str = ""


def propose(
    data: DetectionDataModule,
    split: Literal["train", "val", "test"] = "train",
    method: ProposalMethod = SelectiveSearch(),
    output: str | None = None,
    ckpt_path: str | None = None,
    workers: int | None = None,
    trainer: PlacementSettings = PlacementSettings(),
) -> ProposeResult:
    """Compute boxes that may hold objects, keep them in a file, and say how many objects they cover.

    Args:
        data: The data set; from Python also its path.
        split: Of which images.
        method: SelectiveSearch, SlidingWindows, StoredRPN (by ckpt_path's network) or a class of your own.
        output: The file, whose name ends with .proposals, or a folder for it; by default proposals/ in the data set's
            folder.
        ckpt_path: StoredRPN: the run (runs/NAME) or checkpoint of a Faster R-CNN.
        workers: Threads of a process; by default one a core. Not for StoredRPN.
        trainer: Where to compute.

    Raises:
        DetkitError: an argument, a data set or a file that cannot be used. What was computed is kept.
        KeyboardInterrupt: it was stopped. What was computed is kept.
    """
    _check(method, ckpt_path, workers, trainer)
    placement, detector = asdict(trainer), None
    if isinstance(method, StoredRPN):
        detector, method = _load_rpn(str(ckpt_path), method, trainer)
    else:
        automatic = {"accelerator": "cpu", "devices": 1}
        placement |= {name: value for name, value in automatic.items() if placement[name] == "auto"}
        keep_freed_memory()
    settings = ProposalSettings(method, None if output is None else str(output))
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    runner = L.Trainer(**placement, **dict.fromkeys(quiet, False))
    data = opened(data)
    module = _Computation(data, data.test_split if split == "test" else split, settings, detector, workers)
    try:
        runner.predict(module, return_predictions=False)
        store = module.finish()
    except SystemExit:
        # What Lightning makes of Ctrl-C.
        if not runner.interrupted:
            raise
        raise KeyboardInterrupt("What is computed is kept: the same command goes on from there.") from None
    finally:
        module.resources.close()
    if store is None:
        return ProposeResult()
    recall = recall_of(store, module.annotations, len(data.class_names))
    return ProposeResult(store, module.seconds, recall, _summary(store, module.annotations, recall, module.seconds))


def recall_of(store: ProposalStore, annotations: Annotations, num_classes: int) -> Recall | None:
    """Recall of all boxes of a split's store, without difficult objects and crowds; None if there are no objects.

    ``num_classes`` is without background.
    """
    counted = ~(annotations.difficult | annotations.crowd)
    if not counted.any():
        return None
    best = np.zeros((len(annotations.boxes), 1))
    first, boxes, total = 0, [], 0
    for index in range(len(annotations)):
        boxes.append(store[annotations.image_id(index)].astype(np.float64))
        total += len(boxes[-1])
        if total < CHUNK and index + 1 < len(annotations):
            continue
        offsets = annotations.offsets[first : index + 2]
        part = slice(offsets[0], offsets[-1])
        ends = np.cumsum([0, *map(len, boxes)])
        truth = _sides(annotations.boxes[part].astype(np.float64))
        best[part] = best_overlaps(truth, offsets - offsets[0], _sides(np.concatenate(boxes)), ends, [max(total, 1)])
        first, boxes, total = index + 1, [], 0
    return summarise(best[counted], annotations.labels[counted].astype(np.int32), num_classes, (0.5, 0.7))


def _sides(boxes: np.ndarray) -> np.ndarray:
    """x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _summary(store: ProposalStore, annotations: Annotations, recall: Recall | None, seconds: float | None) -> str:
    position = {image_id: row for row, image_id in enumerate(store)}
    counts = store.counts[[position[image_id] for image_id in annotations.image_ids.tolist()]]
    spread = f"{counts.mean():,.0f} boxes an image ({counts.min():,} to {counts.max():,})"
    without = f", {(counts == 0).sum():,} without any" if (counts == 0).any() else ""
    size = f"{store.path.stat().st_size / 1e6:,.1f} MB"
    made = "already there" if seconds is None else f"in {seconds:,.1f} s"
    lines = [f"{len(annotations):,} images, {spread}{without}; {made}, {size}"]
    if recall is not None:
        objects = int((~(annotations.difficult | annotations.crowd)).sum())
        lines.append(
            f"recall {recall.recall_50[0]:.3f} at IoU 0.5, {recall.recall_70[0]:.3f} at 0.7; MABO {recall.mabo[0]:.3f} "
            f"({objects:,} objects; difficult and crowd are not counted)"
        )
    return "\n".join([*lines, f"proposals: {store.path}"])


def _check(method: ProposalMethod, ckpt_path: str | None, workers: int | None, trainer: PlacementSettings) -> None:
    """Refuse arguments of one method that are given for another."""
    if any(way in trainer.strategy for way in ("spawn", "fork", "notebook")):
        raise ConfigError(f"trainer.strategy {trainer.strategy} is not for proposals; take ddp")
    if isinstance(method, StoredRPN):
        if ckpt_path is None:
            raise ConfigError("method StoredRPN needs ckpt_path: the run (runs/NAME) or checkpoint of a Faster R-CNN")
        if workers is not None:
            raise ConfigError("workers is not for StoredRPN: the data set's num_workers is what reads its images")
    elif ckpt_path is not None:
        raise ConfigError(f"ckpt_path is for method StoredRPN, but the method is {type(method).__name__}")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")


def _load_rpn(ckpt_path: str, method: StoredRPN, trainer: PlacementSettings) -> tuple[FasterRCNN, StoredRPN]:
    """The detector, and the method with what tells its proposals from others."""
    path = find_checkpoint(ckpt_path).path
    detector = load(path)
    if not isinstance(detector, FasterRCNN):
        raise ConfigError(
            f"{path}: a {type(detector).__name__} has no region proposal network; ckpt_path must be of a Faster R-CNN"
        )
    if method.max_boxes is not None:
        settings = detector.rpn.settings
        detector.rpn.settings = replace(
            settings,
            post_nms=(settings.post_nms[0], method.max_boxes),
            pre_nms=(settings.pre_nms[0], max(settings.pre_nms[1], method.max_boxes)),
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    precision = str(trainer.precision or "32-true")
    return detector, StoredRPN(detector.rpn.settings.post_nms[1], digest, precision)


class _Computation(L.LightningModule):
    """Computes what is missing of a split's proposals within Trainer.predict, which places the processes.

    Each process computes its share of the images, by the detector's region proposal network or by threads; then each
    calls `finish`, and closes ``resources``. ``seconds`` is None if the store was there already.
    """

    annotations: Annotations
    task: ProposalTask

    def __init__(
        self,
        data: DetectionDataModule,
        split: str,
        settings: ProposalSettings,
        detector: Detector | None,
        workers: int | None,
    ) -> None:
        super().__init__()
        self.data, self.split, self.settings = data, split, settings
        self.detector, self.workers = detector, workers
        self.store: ProposalStore | None = None
        self.writer: StoreWriter | None = None
        self.todo: list[int] = []
        self.seconds: float | None = None
        self.progress: Progress | None = None
        self.resources = ExitStack()
        self._group: Any = None

    def prepare_data(self) -> None:
        """Downloads and the like, once a machine."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Find out what is to be done."""
        annotations = self.data.annotations(self.split)
        if annotations is None:
            raise DataError(f"{type(self.data).__name__} has no {self.split} split with annotations to propose for")
        self.annotations, self._began = annotations, time.monotonic()
        self.task = self.settings.task(annotations, self.split)
        if torch.distributed.is_initialized():
            # The first process may be done hours before the last; by default they wait for half an hour.
            self._group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=1000))
        rank, world = self.trainer.global_rank, self.trainer.world_size
        plan: list[Any] = [None]
        if rank == 0:
            try:
                plan = [self._begin()]
            except DetkitError as error:
                plan = [error]
        if self._group is not None:
            torch.distributed.broadcast_object_list(plan, src=0, group=self._group)
        if isinstance(plan[0], DetkitError):
            raise plan[0]
        if plan[0]:
            if self.writer is None:
                self.writer = self.resources.enter_context(self.task.writer(rank))
            self.todo = [index for index in plan[0][rank::world] if not self.writer.done[index]]

    def _begin(self) -> list[int]:
        """The images that all processes have to compute; makes the store where they are all there, in parts."""
        self.store = self.task.find()
        if self.store is None:
            self.writer = self.resources.enter_context(self.task.writer())
            self.store = self.task.find()  # another process may have made it while this one waited
        if self.store is None and not self.writer.todo():
            self.store = finish(self.task, self.writer)
        return [] if self.store is not None else self.writer.todo()

    def predict_dataloader(self) -> Any:
        """This process's images for the network; one step for threads, and where nothing is to be done."""
        if self.detector is None or not self.todo:
            return DataLoader([[]])  # Lightning calls no hooks where there is no step
        return DataLoader(
            _NumberedImages(DetectionDataset(self.annotations), self.todo),
            batch_size=1,
            num_workers=self.data.num_workers,
            worker_init_fn=init_worker,
            collate_fn=collate,
        )

    def on_predict_start(self) -> None:
        """Say what is about to be computed."""
        if self.detector is not None and self.writer is not None:
            done, show = int(self.writer.done.sum()), self.trainer.is_global_zero
            if show:
                self.task.announce(done, f"on {self.device}")
            self.progress = self.resources.enter_context(Progress("proposals", done + len(self.todo), done, show=show))

    def predict_step(self, batch: Sequence[tuple[int, Sample | None]], batch_idx: int) -> bool:
        """All of this process's images by threads, or one by the network: no image's boxes depend on a batch's others.

        Images that cannot be read are left for `finish`.
        """
        if self.writer is None:
            return True  # Lightning warns of a step that returns nothing
        if self.detector is None:
            workers = max(1, available_cores() // self.trainer.num_devices) if self.workers is None else self.workers
            compute(self.task, self.writer, self.todo, workers, progress=self.trainer.is_global_zero)
            return True
        for index, sample in batch:
            if sample is None:
                continue
            height, width = sample["image"].shape[-2:]
            with SIGNALS.postponed():
                encoded = self.detector.encode([sample])
                (proposals,) = self.detector.propose([sample], encoded)
                boxes = encoded.images.to_original(proposals.boxes[proposals.valid], 0)
                self.writer.add(index, boxes.float().cpu().numpy(), (width, height))
            if self.progress is not None:
                self.progress.step()
        return True

    def finish(self) -> ProposalStore | None:
        """Wait for all processes; the first one then makes the store, the others have None."""
        first = self.trainer.is_global_zero
        if not first:
            self.resources.close()  # the first process takes over this one's part
        if self._group is not None:
            torch.distributed.barrier(self._group)
        if first and self.store is None and self.writer is not None:
            self.store = finish(self.task, self.writer, self.trainer.world_size)
        if self.writer is not None:
            self.seconds = time.monotonic() - self._began
        return self.store if first else None


class _NumberedImages(Dataset):
    """Samples with their positions in the split; None for a sample whose image cannot be read."""

    def __init__(self, dataset: DetectionDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> tuple[int, Sample | None]:
        index = self.indices[row]
        try:
            return index, self.dataset[index]
        except DataError:
            return index, None
