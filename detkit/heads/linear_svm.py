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

CHUNK = 1024  # examples that are in double precision at a time

#: Each accuracy of the margins is tried for this many sweeps over the examples; the last is liblinear's own default,
#: with which the authors trained, as are the fewest sweeps; small problems may have as many as this many numbers allow.
TOLERANCES = (1e-3, 1e-2, 1e-1)
#: For SVMs that only find the next negatives.
ROUGH = (1e-1,)
SWEEPS, NUMBERS = 1000, 4e9


class LinearSVMs(nn.Module):
    """The SVMs of all classes as one matrix: buffers only, nothing here learns by gradients.

    Args:
        features: D.
        num_classes: K, without background.
        bias_feature: the constant that stands beside the features while training; the larger it is, the less the bias
            is held back. `bias` is that feature already multiplied by its weight.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    trained: Tensor

    def __init__(self, features: int, num_classes: int, bias_feature: float = 10.0) -> None:
        super().__init__()
        self.bias_feature = bias_feature
        self.register_buffer("weight", torch.zeros(num_classes, features))
        self.register_buffer("bias", torch.zeros(num_classes))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("trained", torch.zeros(num_classes, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        """Margins float32 (R, K) of features (R, D) as the network gives them; -inf for classes without an SVM."""
        return self.margins(x.float() * self.scale)

    def margins(self, x: Tensor) -> Tensor:
        """Margins float32 (R, K) of features (R, D) that are scaled already, whatever precision autocast asks for."""
        with torch.autocast(x.device.type, enabled=False):
            margins = nn.functional.linear(x.float(), self.weight.float(), self.bias.float())
        return margins.masked_fill(~self.trained, -torch.inf)

    def set(self, label: int, weight: np.ndarray, bias: float) -> None:
        """Give the class `label` (1 to K) its SVM: weight (D,) and bias."""
        self.weight[label - 1] = torch.as_tensor(weight)
        self.bias[label - 1] = float(bias)
        self.trained[label - 1] = True


class Objective(NamedTuple):
    """What an SVM's training makes small, in its three parts."""

    positive: float
    negative: float
    regularization: float

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.positive + self.negative + self.regularization


def objective(
    weight: np.ndarray,
    bias: float,
    positives: np.ndarray | Tensor,
    negatives: np.ndarray | Tensor,
    C: float = 1e-3,
    positive_weight: float = 2.0,
    bias_feature: float = 10.0,
) -> Objective:
    """C * (positive_weight * hinge of positives + hinge of negatives) + ||w||^2 / 2 + (b / bias_feature)^2 / 2.

    As rcnn_train.m:155-162 prints it, in double precision.

    Args:
        weight, bias: (D,) and a number, as `fit_svm` gives them.
        positives, negatives: features (P, D) and (N, D) of any floating type.
        C, positive_weight, bias_feature: see `fit_svm`.
    """
    w, b = np.asarray(weight, np.float64), float(bias)
    return Objective(
        C * positive_weight * float(np.maximum(0, 1 - _margins(positives, w, b)).sum()),
        C * float(np.maximum(0, 1 + _margins(negatives, w, b)).sum()),
        0.5 * float(w @ w) + 0.5 * (b / bias_feature) ** 2,
    )


def fit_svm(
    x: np.ndarray,
    y: np.ndarray,
    *,
    C: float = 1e-3,
    positive_weight: float = 2.0,
    bias_feature: float = 10.0,
    tolerances: Iterable[float] = TOLERANCES,
    sweeps: int | None = None,
    strict: bool = True,
) -> tuple[np.ndarray, float]:
    """Train one SVM on examples that fit the memory: scikit-learn's LinearSVC, dual coordinate descent (liblinear).

    The same examples in the same order give the same SVM. Double precision and liblinear's own copy take 8 and up to
    16 bytes a number, the latter only of those that are not 0.

    Args:
        x: features (n, D); C-ordered float64 is not copied once more.
        y: (n,), above 0 for positives; both kinds must be there.
        C: cost of a unit of hinge loss.
        positive_weight: a positive's loss counts as often.
        bias_feature: see `LinearSVMs`.
        tolerances: accuracies of the margins, tried in this order until one is reached.
        sweeps: over the examples, at most, for each of them; None: 1,000, and more for few examples of few features.
        strict: refuse an SVM that reached none of the accuracies; otherwise it is taken as it is, as liblinear does.

    Returns:
        w float32 (D,) and b: the margin of a feature vector is w x + b.

    Raises:
        TrainingError: if no accuracy is reached, as with features that are far too large.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    sweeps = sweeps or max(SWEEPS, int(NUMBERS / max(x.size, 1)))
    for tolerance in tolerances:
        svm = LinearSVC(
            loss="hinge",
            dual=True,
            C=C,
            class_weight={True: positive_weight, False: 1.0},
            intercept_scaling=bias_feature,
            random_state=0,
            tol=tolerance,
            max_iter=sweeps,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            svm.fit(x, np.asarray(y) > 0)
        if svm.n_iter_ < sweeps or not strict:
            return svm.coef_[0].astype(np.float32), float(np.float32(svm.intercept_[0]))
    raise TrainingError(
        f"an SVM on {len(x):,} examples did not converge in {sweeps:,} sweeps; the features' mean norm is "
        f"{np.linalg.norm(x, axis=1).mean():.3g}: scale them to 20 (see feature_scale), or give a smaller C"
    )


def feature_scale(
    images: Iterable[Tensor], mean_norm: float = 20.0, per_image: int = 200, generator: torch.Generator | None = None
) -> float:
    """The factor that gives features the L2 norm `mean_norm` on average (rcnn_feature_stats.m, rcnn_scale_features.m).

    Without it C, the ridge penalty and the bias feature would mean something else for each network. The authors look
    at 200 regions, drawn at random, of each of 200 random images.

    Args:
        images: of each image, features (P, D).
        mean_norm: in what the factor leads to.
        per_image: regions looked at, at most.
        generator: draws them; where an image has no more, nothing is drawn.

    Returns:
        The factor; 1 where there are no features, or only zeros.
    """
    total, count = 0.0, 0
    for features in images:
        if len(features) > per_image:
            features = features[torch.randperm(len(features), generator=generator)[:per_image].to(features.device)]
        total += float(features.float().norm(dim=1).double().sum())
        count += len(features)
    return mean_norm * count / total if total > 0 else 1.0


def _margins(x: np.ndarray | Tensor, w: np.ndarray, b: float) -> np.ndarray:
    """w x + b of examples (n, D): (n,) in double precision, a part at a time."""
    parts = [np.asarray(x[i : i + CHUNK], np.float64) @ w for i in range(0, len(x), CHUNK)]
    return np.concatenate(parts) + b if parts else np.zeros(0)
