"""What R-CNN learns on the features of a training split's regions: linear SVMs and box regressors, class by class."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from detkit.detectors.rcnn.region_features import RegionFeatures
from detkit.errors import CheckpointError, ConfigError
from detkit.heads import (
    BoxRegressors,
    HardNegativeMiner,
    LinearSVMs,
    RidgeSolver,
    SVMSettings,
    feature_scale,
)
from detkit.progress import Progress

#: Of how many images, and boxes of each, the mean norm of the features is measured (rcnn_feature_stats.m:27-28).
NORM_IMAGES, NORM_BOXES = 200, 200
#: GB that the box regressors of several classes may take at once while they learn.
SOLVER_MEMORY = 1.5
#: GB that the negatives of one class may take while its SVM is trained, with liblinear's own copy (24 bytes a number);
#: more only for a class with very many objects, see `detkit.heads.hard_negatives.NEEDED`.
SVM_MEMORY = 1.0
#: Seconds between two times that what was mined is written.
SAVE_EVERY = 300.0


@dataclass(frozen=True)
class StageSettings:
    """The numbers of the stages after fine-tuning; see `RCNN`."""

    svm_c: float
    svm_positive_weight: float
    svm_negative_iou: float
    svm_passes: int
    box_min_iou: float
    box_lambda: float
    feature_budget: float
    keep_features: bool

    def __post_init__(self) -> None:
        for name in ("svm_c", "svm_positive_weight", "box_lambda", "feature_budget"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} {getattr(self, name)} must be above 0")
        if self.svm_passes < 1:
            raise ConfigError(f"svm_passes {self.svm_passes} must be at least 1")
        if not 0 < self.svm_negative_iou <= 1:
            raise ConfigError(f"svm_negative_iou {self.svm_negative_iou} must be above 0 and at most 1")
        if not 0 <= self.box_min_iou < 1:
            raise ConfigError(f"box_min_iou {self.box_min_iou} must be from 0 to below 1")

    def of_svms(self) -> SVMSettings:
        """The miner's."""
        return SVMSettings(
            C=self.svm_c,
            positive_weight=self.svm_positive_weight,
            negative_iou=self.svm_negative_iou,
            passes=self.svm_passes,
        )


def learn_svms(features: RegionFeatures, svms: LinearSVMs, settings: StageSettings) -> HardNegativeMiner:
    """Train one linear SVM a class, mining hard negatives image by image.

    Args:
        features: of the training split.
        svms: what is trained.
        settings: with an ``svm_`` before their names.

    Returns:
        The miner, for its log and its negatives.
    """
    most = int(SVM_MEMORY * 1e9 / (24 * svms.weight.shape[1]))
    numbers = replace(settings.of_svms(), max_negatives=most)
    scale = _scale(features, features.fc7)
    truth = [(features.truth(i).float() * scale, found.labels) for i, found in enumerate(features)]
    positives = [torch.cat([x[labels == k + 1] for x, labels in truth]) for k in range(len(svms.trained))]
    miner = HardNegativeMiner(positives, numbers, scale)
    state = MiningState(features.folder / "mining.state", miner)
    number, first, added = state.load()
    while number < numbers.passes:
        name = "SVMs" if numbers.passes == 1 else f"SVMs, pass {number + 1} of {numbers.passes}"
        with Progress(name, len(features), first) as progress:
            for i in range(first, len(features)):
                added += miner.see(i, features.fc7(i).float() * scale, features.regions[i].overlaps)
                progress.step()
                state.save_now_and_then(number, i + 1, added)
        if not added:
            break
        miner.finish()  # the next pass is to meet SVMs that know all of this one
        number, first, added = number + 1, 0, 0
    svms.load_state_dict(miner.svms.state_dict())
    return miner


class MiningState:
    """What was mined, on the disk every few minutes: a fit that is stopped goes on from there.

    Args:
        path: of the file.
        miner: whose state it is.
    """

    def __init__(self, path: Path, miner: HardNegativeMiner) -> None:
        self.path, self.miner, self._saved = path, miner, time.monotonic()

    def load(self) -> tuple[int, int, int]:
        """(pass, image to go on with, negatives that joined in this pass); the beginning where nothing fits."""
        try:
            found = torch.load(self.path, weights_only=True)
            if found["settings"] == asdict(self.miner.settings):
                self.miner.load_state_dict(found["miner"])
                return tuple(found["place"])
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError, CheckpointError):
            pass  # none, or no whole one
        return 0, 0, 0

    def save_now_and_then(self, *place: int) -> None:
        """Write it beside and rename, if the last time is long enough ago; a full disk does not end the mining."""
        if time.monotonic() - self._saved >= SAVE_EVERY:
            part = self.path.with_suffix(".part")
            content = {"settings": asdict(self.miner.settings), "place": place, "miner": self.miner.state_dict()}
            try:
                torch.save(content, part)
                os.replace(part, self.path)
            except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
                part.unlink(missing_ok=True)
                print(f"{self.path} cannot be written ({error}): a fit stopped here would mine again", flush=True)
            self._saved = time.monotonic()


def learn_boxes(features: RegionFeatures, regressors: BoxRegressors, ridge: float) -> Tensor:
    """Train four ridge regressors a class, as many classes at once as `SOLVER_MEMORY` takes.

    Args:
        features: of the training split.
        regressors: what is trained.
        ridge: lambda.

    Returns:
        How many examples each class has, int64 (K,).
    """
    classes, size = len(regressors.trained), regressors.weight.shape[1]
    regressors.trained.fill_(False)  # what an earlier fit learnt is of other features
    scale = _scale(features, features.pool5)
    counts = torch.zeros(classes, dtype=torch.int64)
    for found in features:
        counts += torch.bincount(found.classes - 1, minlength=classes)
    # What a solver takes: few examples and their products with each other, or the normal equations of many.
    memory = [(4 * size * n + 8 * n**2 if n <= size else 8 * (size + 1) ** 2) / 1e9 for n in counts.tolist()]
    todo = [k for k in range(classes) if counts[k]]
    while todo:
        solvers: dict[int, RidgeSolver] = {}
        while todo and (not solvers or sum(memory[k] for k in (*solvers, todo[0])) <= SOLVER_MEMORY):
            k = todo.pop(0)
            solvers[k] = RidgeSolver(size, ridge, int(counts[k]))
        with Progress(f"box regressors of {len(solvers)} classes", len(features)) as progress:
            for i, found in enumerate(features):
                pool5 = features.pool5(i).float() * scale
                for k, solver in solvers.items():
                    rows = found.classes == k + 1
                    solver.add(pool5[rows], found.targets[rows])
                progress.step()
        for k, solver in solvers.items():
            regressors.set(k + 1, solver.solve())
    regressors.scale.fill_(scale)
    return counts


def _scale(features: RegionFeatures, read: Callable[[int], Tensor]) -> float:
    """The factor that gives what `read` reads of some images, drawn once and for all, the norm the numbers are for."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(features), generator=generator)[:NORM_IMAGES].tolist()
    return feature_scale((read(i) for i in some), SVMSettings.mean_norm, NORM_BOXES, generator)
