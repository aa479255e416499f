"""R-CNN's classifier: one linear SVM a class (Girshick et al. 2014, section 2.3; papers.md 2.1).

Shape letters: K classes, D features, R regions, n examples.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detkit.errors import TrainingError

CHUNK = 1024  # examples in double precision at a time
BIAS_FEATURE = 10.0  # the constant feature of the bias, as in rcnn_train.m
MEAN_NORM = 20.0  # of the scaled features, as in rcnn_scale_features.m

#: liblinear's stopping tolerances, tried in this order until LinearSVC converges; 0.1 is its default.
TOLERANCES = (1e-3, 1e-2, 1e-1)
#: For SVMs that only serve to find the next negatives.
MINING_TOLERANCES = (1e-1,)
#: LinearSVC's `max_iter`: 1000 (its default), and more for small problems, up to this many feature values read.
MAX_ITER = 1000
MAX_VALUES = 4e9


class LinearSVMs(nn.Module):
    """The SVMs of all classes, K without background, as one matrix (K, D) of buffers: nothing learns by gradients."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    trained: Tensor

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, features))
        self.register_buffer("bias", torch.zeros(num_classes))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("trained", torch.zeros(num_classes, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """Margins float32 (R, K) of features (R, D) as the network gives them; -inf for classes without an SVM."""
        return self.margins(x.float() * self.scale)

    def margins(self, x: Tensor) -> Tensor:
        """Margins float32 (R, K) of scaled features (R, D); autocast has no effect."""
        with torch.autocast(x.device.type, enabled=False):
            margins = nn.functional.linear(x.float(), self.weight.float(), self.bias.float())
        return margins.masked_fill(~self.trained, -torch.inf)

    def set(self, label: int, weight: np.ndarray, bias: float) -> None:
        """Set the SVM of class `label` (1 to K): weight (D,) and bias."""
        self.weight[label - 1] = torch.as_tensor(weight)
        self.bias[label - 1] = float(bias)
        self.trained[label - 1] = True


class Objective(NamedTuple):
    """The three terms that an SVM's training minimises."""

    positive: float
    negative: float
    regularization: float

    @property
    def total(self) -> float:
        return self.positive + self.negative + self.regularization


def objective(
    weight: np.ndarray,
    bias: float,
    positives: np.ndarray | Tensor,
    negatives: np.ndarray | Tensor,
    c: float = 1e-3,
    positive_weight: float = 2.0,
) -> Objective:
    """c * (positive_weight * hinge of positives + hinge of negatives) + ||w||^2 / 2 + (b / BIAS_FEATURE)^2 / 2.

    Of a weight (D,) and features (P, D) and (N, D), in double precision; rcnn_train.m:155-162 prints the same.
    """
    w, b = np.asarray(weight, np.float64), float(bias)
    return Objective(
        c * positive_weight * float(np.maximum(0, 1 - _margins(positives, w, b)).sum()),
        c * float(np.maximum(0, 1 + _margins(negatives, w, b)).sum()),
        0.5 * float(w @ w) + 0.5 * (b / BIAS_FEATURE) ** 2,
    )


def fit_svm(
    x: np.ndarray,
    y: np.ndarray,
    *,
    c: float = 1e-3,
    positive_weight: float = 2.0,
    tolerances: Iterable[float] = TOLERANCES,
    max_iter: int | None = None,
    strict: bool = True,
) -> tuple[np.ndarray, float]:
    """Train one SVM on examples in memory with scikit-learn's LinearSVC (liblinear, dual coordinate descent).

    The same examples in the same order give the same SVM. liblinear's own copy takes up to 16 bytes a nonzero value.

    Args:
        x: features (n, D); row-major float64 arrays are not copied.
        y: (n,), above 0 for positives; at least one positive and one negative.
        c: cost of a unit of hinge loss.
        positive_weight: factor of the positives' losses.
        tolerances: stopping tolerances, tried in this order until one is reached.
        max_iter: passes over the examples, at most, for each tolerance; None: see `MAX_ITER`.
        strict: raise if no tolerance is reached; otherwise return the SVM as it is.

    Returns:
        w float32 (D,) and b: the margin of a feature vector x is w x + b.

    Raises:
        TrainingError: if no tolerance is reached, for example because the features are far too large.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    max_iter = max_iter or max(MAX_ITER, int(MAX_VALUES / max(x.size, 1)))
    for tolerance in tolerances:
        svm = LinearSVC(
            loss="hinge",
            dual=True,
            C=c,
            class_weight={True: positive_weight, False: 1.0},
            intercept_scaling=BIAS_FEATURE,
            random_state=0,
            tol=tolerance,
            max_iter=max_iter,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            svm.fit(x, np.asarray(y) > 0)
        if svm.n_iter_ < max_iter or not strict:
            return svm.coef_[0].astype(np.float32), float(np.float32(svm.intercept_[0]))
    raise TrainingError(
        f"an SVM on {len(x):,} examples did not converge in {max_iter:,} iterations; the features' mean norm is "
        f"{np.linalg.norm(x, axis=1).mean():.3g}: scale them to {MEAN_NORM:g} (see feature_scale), or lower svm.c"
    )


def feature_scale(images: Iterable[Tensor], per_image: int = 200, generator: torch.Generator | None = None) -> float:
    """The factor, 1 without features, that gives features a mean L2 norm of `MEAN_NORM` (rcnn_feature_stats.m).

    It makes c, the ridge penalty and the bias feature comparable between networks. Of each image's features (P, D) at
    most ``per_image`` rows are drawn.
    """
    total, count = 0.0, 0
    for features in images:
        if len(features) > per_image:
            features = features[torch.randperm(len(features), generator=generator)[:per_image].to(features.device)]
        total += float(features.float().norm(dim=1).double().sum())
        count += len(features)
    return MEAN_NORM * count / total if total > 0 else 1.0


def _margins(x: np.ndarray | Tensor, w: np.ndarray, b: float) -> np.ndarray:
    """w x + b of examples (n, D): (n,) in double precision, in chunks."""
    chunks = [np.asarray(x[i : i + CHUNK], np.float64) @ w for i in range(0, len(x), CHUNK)]
    return np.concatenate(chunks) + b if chunks else np.zeros(0)
