"""Ridge regression of four whitened targets on examples that need not fit in memory (papers.md 2.1).

As in rcnn_train_bbox_regressor.m: targets are centred and whitened, a bias column is appended to the features and
penalised like them, and (A^T A + ridge I) beta = A^T y is solved by Cholesky. With at most as many examples as features
the same beta is A^T (A A^T + ridge I)^-1 y, a system of n equations. scipy's BLAS and LAPACK work in place: half the
products, and no second matrix of D^2 numbers (5 GB for VGG16's 25,088 features).

Shape letters: D features, n examples; A is (n, D + 1), the features and the bias column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.errors import TrainingError

CHUNK = 1024  # examples in double precision at a time
MIN_VARIANCE = 0.001  # added to the variances of the targets


class Whitening(NamedTuple):
    """Targets of mean 0 whose covariance is (almost) the identity: (targets - mean) @ matrix. All float64.

    mean: (4,); matrix: (4, 4), V diag(1 / sqrt(d + 0.001)) V^T of the covariance V diag(d) V^T; inverse: (4, 4).
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor


class Ridge(NamedTuple):
    """A regression: x @ weight + bias is whitened, (x @ weight + bias) @ inverse + mean is not. All float64.

    weight: (D, 4); bias, mean: (4,); inverse: (4, 4).
    """

    weight: Tensor
    bias: Tensor
    inverse: Tensor
    mean: Tensor


def whiten(targets: Tensor) -> Whitening:
    """The whitening of targets (n, 4), n from 1."""
    targets = targets.double()
    mean = targets.mean(0)
    centred = targets - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(targets))
    deviations = (variances.clamp(min=0) + MIN_VARIANCE).sqrt()
    return Whitening(mean, axes / deviations @ axes.T, axes * deviations @ axes.T)


def fit_ridge(read: Callable[[int, int], Tensor], targets: Tensor, features: int, ridge: float) -> Ridge:
    """The regression of the targets on the features.

    Args:
        read: (start, end) -> the features (end - start, D) of these examples, at most `CHUNK` of them; an example may
            be read more than once.
        targets: (n, 4), n from 1.
        features: D.
        ridge: penalty on the squared weights, above 0.

    Raises:
        TrainingError: for features or targets that are not finite.
    """
    from scipy.linalg.blas import dsyrk

    n = len(targets)
    if not torch.isfinite(targets).all():
        raise TrainingError("box regression: targets that are not finite")
    whitening = whiten(targets)
    whitened = (targets.double() - whitening.mean) @ whitening.matrix

    def rows(start: int) -> Tensor:
        """A chunk of A."""
        x = read(start, min(start + CHUNK, n))
        if not torch.isfinite(x.sum(dtype=torch.float64)):
            raise TrainingError("box regression: features that are not finite")
        a = torch.ones(len(x), features + 1, dtype=torch.float64)
        a[:, :-1] = x
        return a

    starts = range(0, n, CHUNK)
    if n > features:
        gram = torch.zeros(features + 1, features + 1, dtype=torch.float64)  # A^T A, its lower half
        moment = torch.zeros(features + 1, 4, dtype=torch.float64)  # A^T y
        for start in starts:
            a = rows(start)
            # Adds the lower half of a.T @ a in place. BLAS is column-major: it sees the transposes.
            dsyrk(1.0, a.numpy().T, 1.0, gram.numpy().T, overwrite_c=True)
            moment.addmm_(a.T, whitened[start : start + CHUNK])
        beta = _solve_positive(gram, ridge, moment)
    else:
        kernel = torch.zeros(n, n, dtype=torch.float64)  # A A^T, its lower half
        for start in starts:
            a = rows(start)
            for column in range(0, start + 1, CHUNK):
                b = a if column == start else rows(column)
                kernel[start : start + CHUNK, column : column + CHUNK] = a @ b.T
        alpha = _solve_positive(kernel, ridge, whitened)
        beta = torch.zeros(features + 1, 4, dtype=torch.float64)
        for start in starts:
            beta.addmm_(rows(start).T, alpha[start : start + CHUNK])
    return Ridge(beta[:-1], beta[-1], whitening.inverse, whitening.mean)


def _solve_positive(matrix: Tensor, ridge: float, right: Tensor) -> Tensor:
    """(matrix + ridge I)^-1 right, by Cholesky, which overwrites the matrix; only its lower half is read."""
    from scipy.linalg import cho_factor, cho_solve

    matrix.diagonal().add_(ridge)
    # LAPACK is column-major: the lower half is its upper one.
    factor = cho_factor(matrix.numpy().T, lower=False, overwrite_a=True, check_finite=False)
    return torch.from_numpy(cho_solve(factor, right.numpy(), check_finite=False))
