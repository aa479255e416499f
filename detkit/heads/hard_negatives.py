"""Hard negative mining: SVMs trained on far more negatives than fit the memory (rcnn_train.m; papers.md 2.1).

Each SVM keeps a cache of negatives. An image's negatives that the SVM of today does not reject with a margin of 1 join
it; after enough of them the SVM is trained anew, and the cache forgets those that it now rejects easily. An example
beyond the margin has no loss, so what is left out changes nothing: after passes that add none, the SVM is that of all
negatives. The authors found one pass to be enough.

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
from detkit.heads.linear_svm import ROUGH, TOLERANCES, LinearSVMs, Objective, fit_svm, objective
from detkit.heads.negative_rows import NegativeRows

FINAL = -1  # as the image of a training that no image asked for
#: Negatives that are kept, at least, for each positive and unit of its weight: one inside of the margin pulls as much
#: as its weight in negatives, so that with fewer than that the SVM is another one.
NEEDED = 4


@dataclass
class SVMSettings:
    """The numbers of the SVMs' training (rcnn_train.m, rcnn_scale_features.m).

    Args:
        C: cost of a unit of hinge loss.
        positive_weight: a positive's loss counts as often.
        bias_feature: constant beside the features.
        negative_iou: regions that overlap each object of a class by less are its negatives.
        hard_margin: negatives with a larger margin join the cache; a little under -1, where the loss begins.
        evict_margin: after training, negatives with a smaller margin leave it.
        retrain_after: an SVM is trained anew when more negatives than that have joined.
        passes: over all images.
        mean_norm: of the features, by `feature_scale`.
        half: negatives are held in half precision.
        max_negatives: of a class that are kept after a training, those with the largest margins; None: all that are not
            evicted. It bounds the memory where features are so poor that nearly every negative is hard. `NEEDED` times
            the positives' weight is kept in any case.
    """

    C: float = 1e-3
    positive_weight: float = 2.0
    bias_feature: float = 10.0
    negative_iou: float = 0.3
    hard_margin: float = -1.0001
    evict_margin: float = -1.2
    retrain_after: int = 2000
    passes: int = 1
    mean_norm: float = 20.0
    half: bool = True
    max_negatives: int | None = None

    def __post_init__(self) -> None:
        for name in ("C", "positive_weight", "bias_feature", "mean_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"SVMs: {name} must be above 0, not {getattr(self, name)}")
        if self.max_negatives is not None and self.max_negatives < 1:
            raise ConfigError(f"SVMs: max_negatives must be at least 1, not {self.max_negatives}")
        if self.passes < 1 or self.retrain_after < 0:
            raise ConfigError(f"SVMs: passes from 1, retrain_after from 0, not {self.passes}, {self.retrain_after}")
        if not self.evict_margin <= self.hard_margin < -1:
            raise ConfigError(
                "SVMs: evict_margin <= hard_margin < -1, or negatives that matter are left out; not "
                f"{self.evict_margin} and {self.hard_margin}"
            )


class Training(NamedTuple):
    """One line of the mining log: an SVM was trained.

    label: the class, 1 to K; image: the one that led to it, -1 for the final training; positives; added: negatives
    that joined since the last time; evicted, kept: negatives that left the cache then, and those still in it;
    positive, negative, regularization: the objective's parts on the cache before any left; seconds.
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
        """The sum of its parts."""
        return Objective(self.positive, self.negative, self.regularization).total


class HardNegativeMiner:
    """Trains the SVMs of K classes while it sees image after image.

    A class without positives is never trained, and one for which no negative was ever seen has nothing to be trained
    against: their margins stay -inf.

    Args:
        positives: of each class its ground truth's features (P_k, D), scaled; on the CPU, used as they are.
        settings: see `SVMSettings`.
        scale: the factor that all features were multiplied by; kept in `svms` for features that are not.

    Attributes:
        svms: the SVMs as they are now.
        log: what was trained so far.
        rows: the caches of all classes together.
        capped: bool (K,), whether `SVMSettings.max_negatives` cost a class negatives that were not easy.

    Raises:
        ConfigError: without classes, or where their features differ in length.
    """

    def __init__(self, positives: Sequence[Tensor], settings: SVMSettings | None = None, scale: float = 1.0) -> None:
        lengths = {p.shape[1] for p in positives}
        if len(lengths) != 1:
            raise ConfigError(f"SVMs: positives of every class, all with as many features; not {sorted(lengths)}")
        self.settings = settings or SVMSettings()
        self.positives = list(positives)
        self.svms = LinearSVMs(lengths.pop(), len(positives), self.settings.bias_feature)
        self.svms.scale.fill_(scale)
        self.rows = NegativeRows(
            self.svms.weight.shape[1], len(positives), torch.float16 if self.settings.half else torch.float32
        )
        self.log: list[Training] = []
        self.capped = np.zeros(len(positives), bool)
        self._fresh = np.zeros(len(positives), np.int64)  # negatives that joined since the last training

    @torch.no_grad()
    def see(self, image: int, features: Tensor, overlaps: Tensor) -> int:
        """Take an image's hard negatives, and train what is due.

        A class is trained first at the first image that has negatives for it, on all of them.

        Args:
            image: its number, from 0; the same one in each pass.
            features: (P, D) of its proposals and its ground truth, scaled, in the same order in each pass.
            overlaps: (P, K), IoU of each with the best object of each class.

        Returns:
            The negatives that joined a cache, over all classes: 0 in a whole pass means that there are no more.

        Raises:
            TrainingError: for features that are not finite.
        """
        s = self.settings
        features = features.to("cpu", self.rows.dtype)
        if not torch.isfinite(features.sum(dtype=torch.float32)):
            raise TrainingError(
                f"SVMs: features of image {image} are not finite in {self.rows.dtype}: are they scaled?"
            )
        hard = (self.svms.margins(features) > s.hard_margin) | ~self.svms.trained
        hard &= (overlaps.cpu() < s.negative_iou) & torch.tensor([len(p) > 0 for p in self.positives])
        joined = self.rows.add(image, features, hard.numpy())
        self._fresh += joined
        for k, fresh in enumerate(self._fresh):
            if fresh > (s.retrain_after if self.svms.trained[k] else 0):
                self._train(k, image)
        return int(joined.sum())

    @torch.no_grad()
    def finish(self) -> LinearSVMs:
        """Train every class that can be once more, on what its cache holds; further images may follow."""
        for k, positives in enumerate(self.positives):
            if len(positives) and self.rows.used[:, k].any():
                self._train(k, FINAL)
        return self.svms

    def weak(self) -> list[int]:
        """Classes, 1 to K, whose SVM is hardly better than one that looks at no feature: its weights are close to 0.

        So it goes where C is too small for so few positives, or where the features do not know the class. Held against
        it is the best constant on the same examples. (That its objects' mean margin is below 0 means little: few of
        them against so many negatives have it so, and are ranked before those all the same.)
        """
        s, found = self.settings, []
        for label, line in sorted({line.label: line for line in self.log}.items()):
            positives, negatives = s.positive_weight * line.positives, line.kept + line.evicted
            b = min(max(s.C * s.bias_feature**2 * (positives - negatives), -1.0), 1.0)
            constant = s.C * (positives * (1 - b) + negatives * (1 + b)) + 0.5 * (b / s.bias_feature) ** 2
            if line.objective >= 0.99 * constant:
                found.append(label)
        return found

    def state_dict(self) -> dict[str, Any]:
        """All that was mined, as plain tensors that share memory with this object: write them before going on."""
        return {
            "svms": self.svms.state_dict(),
            "rows": self.rows.state_dict(),
            "fresh": torch.from_numpy(self._fresh),
            "capped": torch.from_numpy(self.capped),
            "positives": torch.tensor([len(p) for p in self.positives]),
            "log": torch.tensor(self.log, dtype=torch.float64).reshape(-1, len(Training._fields)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, with the same positives and settings; its tensors become our own.

        Raises:
            CheckpointError: for the state of other classes, features or positives.
        """
        own = torch.tensor([len(p) for p in self.positives])
        if state["svms"]["weight"].shape != self.svms.weight.shape or not torch.equal(state["positives"], own):
            raise CheckpointError(
                "the mined negatives belong to other training data: "
                f"{state['positives'].tolist()} positives with {state['svms']['weight'].shape[1]} features, "
                f"here {own.tolist()} with {self.svms.weight.shape[1]}; delete them and mine again"
            )
        self._fresh, self.capped = state["fresh"].numpy(), state["capped"].numpy()
        self.svms.load_state_dict(state["svms"])
        self.rows.load_state_dict(state["rows"])
        self.log = [Training(*(int(v) for v in row[:6]), *row[6:]) for row in state["log"].tolist()]

    def _train(self, k: int, image: int) -> None:
        start = time.perf_counter()
        s, positives, places = self.settings, self.positives[k], self.rows.of(k)
        x = torch.empty(len(positives) + len(places), self.svms.weight.shape[1], dtype=torch.float64)
        x[: len(positives)] = positives
        self.rows.read(places, x[len(positives) :])
        of_positives, of_negatives = x.numpy()[: len(positives)], x.numpy()[len(positives) :]
        y = np.arange(len(x)) < len(positives)
        costs = {"C": s.C, "positive_weight": s.positive_weight, "bias_feature": s.bias_feature}
        final = image == FINAL
        weight, bias = fit_svm(x.numpy(), y, **costs, tolerances=TOLERANCES if final else ROUGH, strict=final)
        parts = objective(weight, bias, of_positives, of_negatives, **costs)
        margins = of_negatives @ weight.astype(np.float64) + bias
        easy = margins < s.evict_margin
        needed = int(NEEDED * s.positive_weight * len(positives))
        if s.max_negatives is not None and (~easy).sum() > (most := max(s.max_negatives, needed)):
            easy[np.argsort(-margins, kind="stable")[most:]] = True
            self.capped[k] = True
        self.rows.drop(k, places[easy])
        self.svms.set(k + 1, weight, bias)
        kept, added = int((~easy).sum()), int(self._fresh[k])
        seconds = time.perf_counter() - start
        self.log.append(Training(k + 1, image, len(positives), added, int(easy.sum()), kept, *parts, round(seconds, 3)))
        self._fresh[k] = 0
