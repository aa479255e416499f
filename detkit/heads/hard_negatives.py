"""Hard negative mining: SVMs trained on more negatives than fit in memory (rcnn_train.m; papers.md 2.1).

Each SVM has a cache of negatives. An image's negatives with a score above -1 under the current SVM are added; after
enough additions the SVM is trained again, and negatives that it now scores low are evicted. An example beyond the
margin has no loss: when a pass over the images adds no negative, the SVM is that of all negatives.

Shape letters: K classes, D features, P regions of an image, G ground-truth boxes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detkit.errors import CheckpointError, ConfigError, TrainingError
from detkit.heads.linear_svm import (
    BIAS_FEATURE,
    MINING_TOLERANCES,
    TOLERANCES,
    LinearSVMs,
    Objective,
    fit_svm,
    objective,
)
from detkit.heads.negative_rows import NegativeRows
from detkit.settings import check_range

FINAL = -1  # image number of the final training
#: Negatives with a larger margin are added: a little below -1, where the loss begins.
HARD_MARGIN = -1.0001
#: After a training, negatives with a smaller margin are evicted.
EVICT_MARGIN = -1.2
#: An SVM is trained again when more negatives than this have been added.
RETRAIN_AFTER = 2000
#: Least number of negatives kept for each positive and unit of its weight: a positive inside the margin has as much
#: influence as its weight in negatives, so a smaller cache would change the SVM.
MIN_NEGATIVES = 4


@dataclass(frozen=True)
class SVMSettings:
    """How R-CNN's linear SVMs learn (rcnn_train.m); the defaults are the paper's.

    Args:
        c: weight of the hinge losses against the regularisation.
        positive_weight: factor of the positives' losses.
        negative_iou: regions with a smaller IoU with every object of a class are its negatives; positives are the
            ground-truth boxes.
        passes: over the training images, mining hard negatives; a pass that finds none is the last.
    """

    c: float = 1e-3
    positive_weight: float = 2.0
    negative_iou: float = 0.3
    passes: int = 1

    def __post_init__(self) -> None:
        check_range("svm.c", self.c, 0, open_low=True)
        check_range("svm.positive_weight", self.positive_weight, 0, open_low=True)
        check_range("svm.negative_iou", self.negative_iou, 0, 1, open_low=True)
        check_range("svm.passes", self.passes, 1)


class Training(NamedTuple):
    """A row of the mining log: one training of one SVM.

    label: the class, 1 to K.
    image: the image after which it was trained, -1 for the final training.
    positives: number of positives.
    added: negatives added since the last training.
    evicted, kept: negatives evicted after this training, and those still cached.
    positive, negative, regularization: the objective's terms on the cache before the eviction.
    seconds: duration.
    """

    label: int
    image: int
    positives: int
    added: int
    evicted: int
    kept: int
    positive: float
    negative: float
    regularization: float
    seconds: float

    @property
    def objective(self) -> float:
        return Objective(self.positive, self.negative, self.regularization).total


class HardNegativeMiner:
    """Trains the SVMs of K classes on images that are given one after another.

    A class without positives, or without negatives in all images, is never trained: its margins stay -inf.

    Args:
        positives: of each class the ground truth's features (P_k, D), scaled, on the CPU; not copied.
        settings: see `SVMSettings`.
        scale: the factor that all features were multiplied by; stored in `svms`.
        max_negatives: limit on a class's negatives after a training, for features so weak that nearly every negative is
            hard; those with the largest margins are kept, at least `MIN_NEGATIVES` times the positives' weight. None:
            no limit.
        retrain_after: see `RETRAIN_AFTER`.

    Attributes:
        capped: bool (K,), whether ``max_negatives`` removed hard negatives of a class.

    Raises:
        ConfigError: without classes, or where their features differ in length.
    """

    def __init__(
        self,
        positives: Sequence[Tensor],
        settings: SVMSettings = SVMSettings(),
        scale: float = 1.0,
        *,
        max_negatives: int | None = None,
        retrain_after: int = RETRAIN_AFTER,
    ) -> None:
        lengths = {p.shape[1] for p in positives}
        if len(lengths) != 1:
            raise ConfigError(f"SVMs: positives of every class, all with as many features; not {sorted(lengths)}")
        self.settings = settings
        self.max_negatives = max_negatives
        self.retrain_after = retrain_after
        self.positives = list(positives)
        self.svms = LinearSVMs(lengths.pop(), len(positives))
        self.svms.scale.fill_(scale)
        self.rows = NegativeRows(self.svms.weight.shape[1], len(positives))
        self.log: list[Training] = []
        self.capped = np.zeros(len(positives), bool)
        self._added = np.zeros(len(positives), np.int64)  # negatives since the last training

    @torch.no_grad()
    def update(self, image: int, features: Tensor, overlaps: Tensor) -> int:
        """Add an image's hard negatives, and train the SVMs that have enough new ones.

        A class is first trained at the first image that has negatives for it.

        Args:
            image: its number, from 0; the same one in each pass.
            features: (P, D) of its proposals and its ground truth, scaled, in the same order in each pass.
            overlaps: (P, K), the largest IoU of each with an object of each class.

        Returns:
            The number of negatives added, over all classes; 0 in a whole pass means that no hard negative is left.

        Raises:
            TrainingError: for features that are not finite.
        """
        features = features.to("cpu", torch.float16)
        if not torch.isfinite(features.sum(dtype=torch.float32)):
            raise TrainingError(f"SVMs: features of image {image} are not finite in float16: are they scaled?")
        hard = (self.svms.margins(features) > HARD_MARGIN) | ~self.svms.trained
        negative = overlaps.cpu() < self.settings.negative_iou
        has_positives = torch.tensor([len(p) > 0 for p in self.positives])
        added = self.rows.add(image, features, (hard & negative & has_positives).numpy())
        self._added += added
        for k, count in enumerate(self._added):
            if count > (self.retrain_after if self.svms.trained[k] else 0):
                self._train(k, image)
        return int(added.sum())

    @torch.no_grad()
    def finish(self) -> LinearSVMs:
        """Train every class that has examples once more, precisely; another pass may follow."""
        for k, positives in enumerate(self.positives):
            if len(positives) and self.rows.used[:, k].any():
                self._train(k, FINAL)
        return self.svms

    def weak_classes(self) -> list[int]:
        """Classes, 1 to K, whose objective is hardly better than that of the best constant score on the same examples.

        Reasons are a c that is too small for the number of positives, or features that do not tell the class apart.
        """
        s = self.settings
        weak = []
        for label, line in sorted({line.label: line for line in self.log}.items()):
            positives = s.positive_weight * line.positives
            negatives = line.kept + line.evicted
            bias = min(max(s.c * BIAS_FEATURE**2 * (positives - negatives), -1.0), 1.0)
            losses = s.c * (positives * (1 - bias) + negatives * (1 + bias))
            if line.objective >= 0.99 * (losses + 0.5 * (bias / BIAS_FEATURE) ** 2):
                weak.append(label)
        return weak

    def state_dict(self) -> dict[str, Any]:
        """The state as plain tensors that share memory with this object: save them before the next `update`."""
        return {
            "svms": self.svms.state_dict(),
            "rows": self.rows.state_dict(),
            "added": torch.from_numpy(self._added),
            "capped": torch.from_numpy(self.capped),
            "positives": torch.tensor([len(p) for p in self.positives]),
            "log": torch.tensor(self.log, dtype=torch.float64).reshape(-1, len(Training._fields)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; its tensors are used, not copied.

        Raises:
            CheckpointError: for the state of other classes, features or positives.
        """
        counts = torch.tensor([len(p) for p in self.positives])
        if state["svms"]["weight"].shape != self.svms.weight.shape or not torch.equal(state["positives"], counts):
            raise CheckpointError(
                "the mined negatives belong to other training data: "
                f"{state['positives'].tolist()} positives with {state['svms']['weight'].shape[1]} features, "
                f"here {counts.tolist()} with {self.svms.weight.shape[1]}; delete them and mine again"
            )
        self._added = state["added"].numpy()
        self.capped = state["capped"].numpy()
        self.svms.load_state_dict(state["svms"])
        self.rows.load_state_dict(state["rows"])
        self.log = [Training(*(int(v) for v in row[:6]), *row[6:]) for row in state["log"].tolist()]

    def _train(self, k: int, image: int) -> None:
        start = time.perf_counter()
        s, positives, slots = self.settings, self.positives[k], self.rows.slots_of(k)
        x = torch.empty(len(positives) + len(slots), self.svms.weight.shape[1], dtype=torch.float64)
        x[: len(positives)] = positives
        self.rows.read(slots, x[len(positives) :])
        examples = x.numpy()
        negatives = examples[len(positives) :]
        y = np.arange(len(examples)) < len(positives)
        final = image == FINAL
        tolerances = TOLERANCES if final else MINING_TOLERANCES
        weight, bias = fit_svm(
            examples, y, c=s.c, positive_weight=s.positive_weight, tolerances=tolerances, strict=final
        )
        terms = objective(weight, bias, examples[: len(positives)], negatives, s.c, s.positive_weight)
        margins = negatives @ weight.astype(np.float64) + bias
        easy = margins < EVICT_MARGIN
        if self.max_negatives is not None:
            limit = max(self.max_negatives, int(MIN_NEGATIVES * s.positive_weight * len(positives)))
            if (~easy).sum() > limit:
                easy[np.argsort(-margins, kind="stable")[limit:]] = True
                self.capped[k] = True
        self.rows.remove(k, slots[easy])
        self.svms.set(k + 1, weight, bias)
        evicted = int(easy.sum())
        seconds = round(time.perf_counter() - start, 3)
        counts = (len(positives), int(self._added[k]), evicted, len(slots) - evicted)
        self.log.append(Training(k + 1, image, *counts, *terms, seconds))
        self._added[k] = 0
