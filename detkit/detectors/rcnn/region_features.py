"""The features of a training split's regions, in half precision on disk while R-CNN's SVMs and regressors learn.

The authors kept pool5 of every proposal: 200 GB for VOC 2007 (papers.md 2.1). Here pool5 is kept of the box regressors'
examples only, a few dozen of an image's 2,000 regions; and fc7 of all regions if that fits the budget, otherwise of the
ground truth only, and computed again in each pass of the mining.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from detkit.detectors.rcnn.training_regions import ImageRegions, TrainingRegions
from detkit.errors import ConfigError, DataError
from detkit.features import CropFeatures
from detkit.files import plain
from detkit.progress import Progress
from detkit.proposals.store_lock import open_locked

#: Reads the features of boxes (N, 4), in the image's own pixels, of a sample.
Read = Callable[[dict[str, Any], Tensor], CropFeatures]
#: In a folder of features: who uses it, locked as long as that goes on.
LOCK = "lock"
#: Seconds that a lock is waited for: who holds it may be about to delete the folder.
PATIENCE = 10.0


class RegionFeatures:
    """Fills and reads the files, one for each image: a fit that is stopped goes on behind the last of them.

    Args:
        regions: of the split.
        dataset: its samples, without augmentation.
        read: the network.
        sizes: D5 and D7.
        folder: where the files go; they are this network's and these regions'.
        budget: GB that they may take.
        every: fc7 of all regions is wanted, if it fits.
        spare: bytes on the disk that will make room for these.
        counts: `counts` of an earlier look at the same regions; otherwise they are all gone through.

    Raises:
        ConfigError: if the disk has not as much room as is needed.
    """

    def __init__(
        self,
        regions: TrainingRegions,
        dataset: Dataset,
        read: Read,
        sizes: tuple[int, int],
        folder: Path,
        budget: float,
        every: bool = True,
        spare: int = 0,
        counts: tuple[int, int, int] | None = None,
    ) -> None:
        self.regions, self.dataset, self.read, self.folder = regions, dataset, read, folder
        #: How many regions, objects among them and examples there are.
        self.counts = self._count() if counts is None else counts
        boxes, truth, examples = (2 * count for count in self.counts)  # bytes of a number of each
        pool5, fc7 = sizes
        least, most = examples * pool5 + truth * fc7, examples * pool5 + boxes * fc7
        if least > budget * 1e9:
            raise ConfigError(
                f"feature_budget {budget:g} GB: the box regressors' examples alone take {least / 1e9:.3g} GB; raise "
                "it, or raise box_min_iou, or set box_regression: false"
            )
        self.complete = every and most <= budget * 1e9
        self.bytes = most if self.complete else least
        self.todo = self.missing()
        self._check_room(len(self.todo) / max(len(regions), 1), spare)

    def __len__(self) -> int:
        return len(self.regions)

    def __iter__(self) -> Iterator[ImageRegions]:
        return (self.regions[i] for i in range(len(self.regions)))

    def fill(self, loader: Callable[[Dataset], DataLoader], show: bool) -> None:
        """Compute what is missing.

        Args:
            loader: makes a loader of one sample a batch.
            show: say how far it is.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = len(self.regions) - len(self.todo)
        with Progress("features", len(self.regions), done, show=show) as progress:
            for index, (sample,) in zip(self.todo, loader(Subset(self.dataset, self.todo)), strict=True):
                self._write(index, sample)
                progress.step()
        self.todo = []

    def fc7(self, index: int) -> Tensor:
        """(R, D7) of all regions of an image, from the disk or computed now."""
        if self.complete:
            truth, _, others = self._load(index, 3)
            return torch.cat([truth, others])
        return self.read(self.dataset[index], self.regions[index].boxes).fc7.half().cpu()

    def truth(self, index: int) -> Tensor:
        """(G, D7) of the ground truth of an image."""
        return self._load(index, 1)[0]

    def pool5(self, index: int) -> Tensor:
        """(E, D5) of the box regressors' examples of an image."""
        return self._load(index, 2)[1]

    def missing(self) -> list[int]:
        """The images that have no file yet."""
        return [i for i in range(len(self)) if not self._file(i).is_file()]

    def _count(self) -> tuple[int, int, int]:
        boxes = truth = examples = 0
        for found in self:
            boxes += len(found.boxes)
            truth += len(found.labels)
            examples += len(found.examples)
        return boxes, truth, examples

    def _write(self, index: int, sample: dict[str, Any]) -> None:
        found = self.regions[index]
        objects = len(found.labels)
        if self.complete:
            features = self.read(sample, found.boxes)
            pool5, others = features.pool5[found.examples.to(features.pool5.device)], features.fc7[objects:]
        else:
            rows = torch.cat([torch.arange(objects), found.examples])
            features = self.read(sample, found.boxes[rows])
            pool5, others = features.pool5[objects:], features.fc7[:0]
        part = self._file(index).with_suffix(".part")
        with open(part, "wb") as file:
            # The large one last, so that who wants one of the others need not read it.
            for array in (features.fc7[:objects], pool5, others):
                np.save(file, array.half().cpu().numpy(), allow_pickle=False)
        os.replace(part, self._file(index))

    def _load(self, index: int, count: int) -> list[Tensor]:
        """The first arrays of an image's file."""
        path = self._file(index)
        try:
            with open(path, "rb") as file:
                arrays = [np.lib.format.read_array(file, allow_pickle=False) for _ in range(count)]
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it and go on with the fit") from error
        return [torch.from_numpy(array) for array in arrays]

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.features"

    def _check_room(self, share: float, spare: int) -> None:
        place = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        needed, free = self.bytes * share, shutil.disk_usage(place).free + spare
        if needed > free:
            raise ConfigError(
                f"{self.folder}: the features take {needed / 1e9:.1f} GB, and there are {free / 1e9:.1f} GB left; set "
                "trainer.default_root_dir to a larger disk, or lower feature_budget"
            )


def hold(folder: Path, user: str) -> BinaryIO:
    """Keep other fits out of a folder of features until the file that is returned is closed, or the process ends.

    Args:
        folder: made where missing.
        user: who holds it, for the others to read.

    Raises:
        ConfigError: another fit holds it.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open_locked(folder / LOCK, _do_not_wait)
            break
        except (BlockingIOError, FileNotFoundError):  # held, or just now deleted by who held it
            if time.monotonic() > end:
                raise ConfigError(
                    f"{folder}: {_user(folder)} goes on from the same checkpoint and uses these features; wait until "
                    "it has ended, or set trainer.default_root_dir to another folder, for features of this fit's own"
                ) from None
            time.sleep(0.2)
    with suppress(OSError):  # a full disk: then nobody knows who it is
        file.truncate(0)
        os.write(file.fileno(), user.encode(errors="backslashreplace"))
    if os.name == "nt":  # no locks, and what is open cannot be deleted
        file.close()
    else:  # a loader's workers outlive a fit that is killed for some seconds, and would hold it on
        os.register_at_fork(after_in_child=file.close)
    return file


def delete(folder: Path) -> None:
    """Delete a folder of features, unless a fit holds it."""
    with suppress(OSError), open_locked(folder / LOCK, _do_not_wait) as file:
        if os.name == "nt":
            file.close()
        shutil.rmtree(folder, ignore_errors=True)


def _do_not_wait() -> None:
    raise BlockingIOError


def _user(folder: Path) -> str:
    try:
        return (folder / LOCK).read_text(encoding="utf-8") or "another fit"
    except (OSError, ValueError):
        return "another fit"


def digest(network: torch.nn.Module, settings: dict[str, Any]) -> str:
    """What tells one network's features of one set of regions from another's."""
    total = hashlib.sha256(repr(plain(settings)).encode())
    for name, value in sorted(network.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:16]
