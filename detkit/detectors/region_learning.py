"""What R-CNN learns on the features of a training split's regions: linear SVMs and box regressors, class by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.detectors.region_features import RegionFeatures
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


def learn_svms(features: RegionFeatures, svms: LinearSVMs, settings: StageSettings) -> HardNegativeMiner:
    """Train one linear SVM a class, mining hard negatives image by image.

    Args:
        features: of the training split.
        svms: what is trained.
        settings: with an ``svm_`` before their names.

    Returns:
        The miner, for its log and its negatives.
    """
    numbers = SVMSettings(
        C=settings.svm_c,
        positive_weight=settings.svm_positive_weight,
        negative_iou=settings.svm_negative_iou,
        passes=settings.svm_passes,
    )
    scale = _scale(features, features.fc7)
    truth = [(features.truth(i).float() * scale, found.labels) for i, found in enumerate(features)]
    positives = [torch.cat([x[labels == k + 1] for x, labels in truth]) for k in range(len(svms.trained))]
    miner = HardNegativeMiner(positives, numbers, scale)
    for number in range(numbers.passes):
        name = "SVMs" if numbers.passes == 1 else f"SVMs, pass {number + 1} of {numbers.passes}"
        with Progress(name, len(features)) as progress:
            added = 0
            for i, found in enumerate(features):
                added += miner.see(i, features.fc7(i).float() * scale, found.overlaps)
                progress.step()
        if not added:
            break
        miner.finish()  # the next pass is to meet SVMs that know all of this one
    svms.load_state_dict(miner.svms.state_dict())
    return miner


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
    scale = _scale(features, features.pool5)
    counts = torch.zeros(classes, dtype=torch.int64)
    for found in features:
        counts += torch.bincount(found.classes - 1, minlength=classes)
    # What a solver holds: examples, or their normal equations where these are smaller.
    memory = [min(4 * size * int(n), 8 * (size + 1) ** 2) / 1e9 for n in counts]
    todo = [k for k in range(classes) if counts[k]]
    while todo:
        solvers: dict[int, RidgeSolver] = {}
        while todo and (not solvers or sum(memory[k] for k in (*solvers, todo[0])) <= SOLVER_MEMORY):
            solvers[todo.pop(0)] = RidgeSolver(size, ridge)
        for i, found in enumerate(features):
            pool5 = features.pool5(i).float() * scale
            for k, solver in solvers.items():
                rows = found.classes == k + 1
                solver.add(pool5[rows], found.targets[rows])
        for k, solver in solvers.items():
            regressors.set(k + 1, solver.solve())
    regressors.scale.fill_(scale)
    return counts


def _scale(features: RegionFeatures, read: Callable[[int], Tensor]) -> float:
    """The factor that gives what `read` reads of some images, drawn once and for all, the norm the numbers are for."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(features), generator=generator)[:NORM_IMAGES].tolist()
    return feature_scale((read(i) for i in some), SVMSettings.mean_norm, NORM_BOXES, generator)
