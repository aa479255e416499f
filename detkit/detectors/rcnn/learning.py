"""What R-CNN learns from the features of the training regions: linear SVMs and box regressors, class by class."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from detkit.detectors.rcnn.features import RegionFeatures
from detkit.errors import CheckpointError
from detkit.files import write_text
from detkit.heads import BoxRegressors, HardNegativeMiner, LinearSVMs, SVMSettings, Training, feature_scale, fit_ridge
from detkit.progress import Progress
from detkit.torch_files import read_torch_file

#: Number of images, and of boxes of each, on which the features' mean norm is measured (rcnn_feature_stats.m:27-28).
NORM_IMAGES = 200
NORM_BOXES = 200
#: GB that the negatives of a class may take while its SVM is trained, with liblinear's own copy (24 bytes a number).
SVM_MEMORY = 1.0
#: Seconds between two times that the mining state is saved.
SAVE_EVERY = 300.0


def learn_svms(features: RegionFeatures, svms: LinearSVMs, settings: SVMSettings) -> HardNegativeMiner:
    """Train one linear SVM a class, mining hard negatives image by image; the miner has its log and its negatives."""
    regions = features.regions
    scale = _scale(features, features.fc7)
    truth = [(features.truth(i).float() * scale, image.labels) for i, image in enumerate(regions)]
    positives = [torch.cat([x[labels == k + 1] for x, labels in truth]) for k in range(len(svms.trained))]
    max_negatives = int(SVM_MEMORY * 1e9 / (24 * svms.weight.shape[1]))
    miner = HardNegativeMiner(positives, settings, scale, max_negatives=max_negatives)
    state = MiningState(features.folder / "mining.state", miner)
    number, first, added = state.load()
    while number < settings.passes:
        name = "SVMs" if settings.passes == 1 else f"SVMs, pass {number + 1} of {settings.passes}"
        with Progress(name, len(regions), first) as progress:
            for i in range(first, len(regions)):
                added += miner.update(i, features.fc7(i).float() * scale, regions[i].overlaps)
                progress.step()
                state.save_if_due(number, i + 1, added)
        if not added:
            break
        miner.finish()  # so that the next pass begins with SVMs trained on all of this one's negatives
        number, first, added = number + 1, 0, 0
    svms.load_state_dict(miner.svms.state_dict())
    return miner


class MiningState:
    """The miner's state on disk, saved every few minutes; a fit that was stopped continues from it."""

    def __init__(self, path: Path, miner: HardNegativeMiner) -> None:
        self.path = path
        self.miner = miner
        self._saved = time.monotonic()

    def load(self) -> tuple[int, int, int]:
        """The pass, the image to continue with, and the negatives added in this pass; zeros without a fitting state."""
        with suppress(CheckpointError, KeyError):  # missing, damaged, or of other data: mine from the beginning
            content = read_torch_file(self.path, CheckpointError, "")
            if content["settings"] == asdict(self.miner.settings):
                self.miner.load_state_dict(content["miner"])
                return tuple(content["position"])
        return 0, 0, 0

    def save_if_due(self, *position: int) -> None:
        """Save the state if the last time is long enough ago; a full disk does not stop the mining."""
        if time.monotonic() - self._saved < SAVE_EVERY:
            return
        part = self.path.with_suffix(".part")
        content = {"settings": asdict(self.miner.settings), "position": position, "miner": self.miner.state_dict()}
        try:
            torch.save(content, part)
            os.replace(part, self.path)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            part.unlink(missing_ok=True)
            print(f"{self.path} cannot be written ({error}); a fit stopped now would mine again", flush=True)
        self._saved = time.monotonic()


def write_mining_log(path: Path, miner: HardNegativeMiner, class_names: list[str]) -> None:
    lines = [",".join(["class", *Training._fields[1:], "objective"])]
    for row in miner.log:
        values = [class_names[row.label - 1], *row[1:], row.objective]
        lines.append(",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values))
    write_text(path, "\n".join(lines) + "\n")


def learn_boxes(features: RegionFeatures, regressors: BoxRegressors, ridge: float) -> Tensor:
    """Train four ridge regressors a class; the number of examples of each class, int64 (K,)."""
    regressors.trained.fill_(False)  # what an earlier fit learned is of other features
    scale = _scale(features, features.pool5)
    regressors.scale.fill_(scale)
    examples = [(image.targets, image.classes) for image in features.regions]
    targets, classes = (torch.cat(parts) for parts in zip(*examples, strict=True))
    counts = torch.bincount(classes - 1, minlength=len(regressors.trained))
    with Progress("box regressors", int((counts > 0).sum()), unit="classes") as progress:
        for label in (counts.nonzero()[:, 0] + 1).tolist():
            (rows,) = torch.where(classes == label)

            def read(start: int, end: int, rows: Tensor = rows) -> Tensor:
                return features.pool5_rows(rows[start:end]).float() * scale

            regressors.set(label, fit_ridge(read, targets[rows], regressors.weight.shape[1], ridge))
            progress.step()
    return counts


def _scale(features: RegionFeatures, read: Callable[[int], Tensor]) -> float:
    """`feature_scale` of what `read` returns for some images, always the same random ones."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randperm(len(features.regions), generator=generator)[:NORM_IMAGES].tolist()
    return feature_scale((read(i) for i in images), per_image=NORM_BOXES, generator=generator)
