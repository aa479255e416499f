"""Features of the training regions in half precision on disk, while R-CNN's SVMs and box regressors learn.

The authors kept pool5 of every proposal: 200 GB for VOC 2007 (papers.md 2.1). Here pool5 is stored only for the box
regressors' examples, a few dozen of an image's 2,000 regions; and fc7 for all regions if that fits the budget,
otherwise for the ground truth only, and computed again in each pass of the mining.

    RUN/features/RUN_ID-DIGEST/fc7.npy, pool5.npy    float16 (rows, D7) and (rows, D5), image after image
    RUN/features/RUN_ID-DIGEST/done                  a byte for each image; a fit goes on with those that are not done
    RUN/features/RUN_ID-DIGEST.lock                  held by the fit that uses them
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from detkit.detectors.rcnn.training_regions import TrainingRegions
from detkit.errors import ConfigError
from detkit.features import CropFeatures
from detkit.files import to_json
from detkit.progress import Progress
from detkit.settings import check_range
from detkit.types import Sample

#: Computes the features of boxes (N, 4), in the image's own pixels, of a sample.
ReadFeatures = Callable[[Sample, Tensor], CropFeatures]
#: Seconds to wait for a lock: DataLoader workers of a killed fit, which inherit its lock, end within that time.
LOCK_TIMEOUT = 10.0
#: Seconds between two times that images are marked as done, which waits for the disk.
FLUSH_EVERY = 5.0


@dataclass(frozen=True)
class FeatureFileSettings:
    """The features that a fit keeps on disk while the SVMs and box regressors learn.

    Args:
        budget: GB they may take; if fc7 of all proposals does not fit, it is computed again in each pass.
        keep: keep them after the fit.
    """

    budget: float = 50.0
    keep: bool = False

    def __post_init__(self) -> None:
        check_range("feature_files.budget", self.budget, 0, open_low=True)


class FeatureLayout:
    """Which rows the two arrays have: the images' rows one after another, the ground truth first in each image.

    Args:
        regions: of the training split; all their overlaps are computed.
        sizes: D5 and D7.
        budget: GB that the arrays may take.
        all_fc7: fc7 of all regions is wanted, if it fits.

    Attributes:
        complete: whether fc7 of all regions is stored, and not only of the ground truth.
        objects: int64 (images,), the number of ground-truth boxes of each.
        starts: int64 (images + 1,), where the rows of each image begin, by the arrays' names.

    Raises:
        ConfigError: if the budget does not hold the ground truth and the examples.
    """

    def __init__(self, regions: TrainingRegions, sizes: tuple[int, int], budget: float, all_fc7: bool = True) -> None:
        boxes, self.objects, examples = regions.counts().T
        pool5, fc7 = sizes
        least = 2 * int(examples.sum() * pool5 + self.objects.sum() * fc7)
        most = 2 * int(examples.sum() * pool5 + boxes.sum() * fc7)
        if least > budget * 1e9:
            raise ConfigError(
                f"feature_files.budget: {budget:g} GB is too little, ground truth and the box regressors' examples "
                f"alone take {least / 1e9:.3g} GB; raise it, or raise box.min_iou, or set box_regression: false"
            )
        self.complete = all_fc7 and most <= budget * 1e9
        self.bytes = most if self.complete else least
        rows = {"fc7": boxes if self.complete else self.objects, "pool5": examples}
        self.starts = {name: np.cumsum([0, *counts]) for name, counts in rows.items()}
        self.shapes = {"fc7": (int(self.starts["fc7"][-1]), fc7), "pool5": (int(self.starts["pool5"][-1]), pool5)}


@dataclass
class RegionFeatures:
    """Computes by the network ``read``, stores and reads the features of a split's training regions."""

    regions: TrainingRegions
    layout: FeatureLayout
    dataset: Dataset
    read: ReadFeatures
    folder: Path
    _arrays: dict[str, np.memmap] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.regions)

    def create(self) -> None:
        """Create the files, with all their disk space, unless they are there. The file ``done`` comes last."""
        if self._is_created():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        check_room(self.folder, self.layout.bytes)
        self.folder.mkdir(parents=True)
        for name, shape in self.layout.shapes.items():
            array = np.lib.format.open_memmap(self._path(name), mode="w+", dtype=np.float16, shape=shape)
            if hasattr(os, "posix_fallocate"):  # elsewhere a full disk is noticed only while the file is filled
                with open(self._path(name), "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
        part = self.folder / "done.part"
        part.write_bytes(bytes(len(self)))
        os.replace(part, self.folder / "done")

    def _is_created(self) -> bool:
        try:
            arrays = {name: np.lib.format.open_memmap(self._path(name), mode="r") for name in self.layout.shapes}
            done = (self.folder / "done").stat().st_size
        except Exception:  # missing or damaged, of which NumPy makes nearly any error
            return False
        fits = all(a.shape == self.layout.shapes[name] and a.dtype == np.float16 for name, a in arrays.items())
        return fits and done == len(self)

    def missing(self) -> list[int]:
        """Indices of the images that are not done. The files must have been created."""
        return np.flatnonzero(np.fromfile(self.folder / "done", np.uint8) == 0).tolist()

    def fill(self, images: list[int], loader: Callable[[Dataset], DataLoader], show: bool) -> None:
        """Compute and store the features of these images; ``loader`` makes a loader of one sample a batch."""
        pending: list[int] = []
        flushed = time.monotonic()
        try:
            with Progress("features", len(self), len(self) - len(self.missing()), show=show) as progress:
                for index, (sample,) in zip(images, loader(Subset(self.dataset, images)), strict=True):
                    self._store(index, sample)
                    pending.append(index)
                    progress.step()
                    if time.monotonic() - flushed > FLUSH_EVERY:
                        self._mark_done(pending)
                        pending, flushed = [], time.monotonic()
        finally:
            self._mark_done(pending)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _store(self, index: int, sample: Sample) -> None:
        regions = self.regions[index]
        objects = len(regions.labels)
        if self.layout.complete:
            features = self.read(sample, regions.boxes)
            fc7, pool5 = features.fc7, features.pool5[regions.examples.to(features.pool5.device)]
        else:
            rows = torch.cat([torch.arange(objects), regions.examples])
            features = self.read(sample, regions.boxes[rows])
            fc7, pool5 = features.fc7[:objects], features.pool5[objects:]
        # Not through a memory map: on a full disk that kills the process, and it writes whole pages, also those in
        # which another machine's rows begin.
        for name, values in (("fc7", fc7), ("pool5", pool5)):
            array = self._array(name)
            with open(self._path(name), "r+b") as file:
                file.seek(array.offset + int(self.layout.starts[name][index]) * array.strides[0])
                file.write(values.half().cpu().numpy().tobytes())

    def _mark_done(self, images: list[int]) -> None:
        """Mark images as done once their rows are on the disk."""
        for name in self.layout.shapes:
            with open(self._path(name), "r+b") as file:
                os.fsync(file.fileno())
        with open(self.folder / "done", "r+b") as file:
            for index in images:
                file.seek(index)
                file.write(b"\1")

    def fc7(self, index: int) -> Tensor:
        """(R, D7) of all regions of an image, from the disk or computed now."""
        if self.layout.complete:
            return self._rows("fc7", index)
        return self.read(self.dataset[index], self.regions[index].boxes).fc7.half().cpu()

    def truth(self, index: int) -> Tensor:
        """(G, D7) of the ground truth of an image."""
        return self._rows("fc7", index, int(self.layout.objects[index]))

    def pool5(self, index: int) -> Tensor:
        """(E, D5) of the box regressors' examples of an image."""
        return self._rows("pool5", index)

    def pool5_rows(self, rows: Tensor) -> Tensor:
        """(n, D5) of some of all examples, which are numbered through the images."""
        return torch.from_numpy(self._array("pool5")[rows.numpy()])

    def _rows(self, name: str, index: int, count: int | None = None) -> Tensor:
        start, end = (int(self.layout.starts[name][i]) for i in (index, index + 1))
        rows = self._array(name)[start : end if count is None else start + count]
        return torch.from_numpy(np.array(rows))

    def _array(self, name: str) -> np.memmap:
        if name not in self._arrays:
            self._arrays[name] = np.lib.format.open_memmap(self._path(name), mode="r")
        return self._arrays[name]


def check_room(folder: Path, size: int, spare: int = 0) -> None:
    """Refuse files of ``size`` bytes where the disk has no room for them, ``spare`` bytes of it being given up."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free + spare
    if size > free:
        raise ConfigError(
            f"{folder}: the features take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; set "
            "trainer.default_root_dir to a larger disk, or lower feature_files.budget"
        )


def acquire_lock(folder: Path, user: str) -> FileLock:
    """Lock a folder of features; a ConfigError names the fit (its ``user``) that holds the lock."""
    path = _lock_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=LOCK_TIMEOUT)
    except Timeout:
        holder = "another fit"
        with suppress(OSError):  # Windows does not let a locked file be read
            holder = path.read_text(encoding="utf-8", errors="replace") or holder
        raise ConfigError(
            f"{folder}: {holder} continues from the same checkpoint and uses these features; wait until it has ended, "
            "or set trainer.default_root_dir to another folder"
        ) from None
    with suppress(OSError):  # on a full disk the message names no fit
        path.write_text(user, encoding="utf-8", errors="backslashreplace")
    return lock


def delete_folder(folder: Path) -> None:
    """Delete a folder of features, unless another fit holds its lock."""
    with suppress(OSError, Timeout), FileLock(_lock_path(folder)).acquire(timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
        _lock_path(folder).unlink(missing_ok=True)


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def digest(network: torch.nn.Module, about: Mapping[str, Any]) -> str:
    """16 hex digits that differ where the network's weights or the settings differ."""
    total = hashlib.sha256(repr(to_json(about)).encode())
    for name, value in sorted(network.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:16]
