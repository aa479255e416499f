"""Ridge regression of four whitened targets, in the memory of the smaller of examples and normal equations.

As in rcnn_train_bbox_regressor.m (papers.md 2.1): targets are centred and whitened, a bias column is appended to the
features and penalised like them, and (A^T A + ridge I) beta = A^T y is solved by Cholesky. With fewer examples than
features the same beta is A^T (A A^T + ridge I)^-1 y, a system of n equations.

The symmetric products and the factorisation use scipy's BLAS and LAPACK in place: half the products, and no second
matrix of D^2 numbers (5 GB for VGG16's 25,088 features), both of which torch would need.

Shape letters: D features, n examples; A is (n, D + 1), the features and the bias column.
"""

from __future__ import annotations

from collections.abc import Iterator
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


class RidgeSolver:
    """Collects examples, or their normal equations where these are smaller, and solves for the regression.

    Args:
        features: D.
        ridge: penalty on the squared weights, above 0.
        examples: how many there will be, if known: with more than D they are added to the normal equations in chunks.

    Attributes:
        count: n so far.
    """

    def __init__(self, features: int, ridge: float, examples: int | None = None) -> None:
        self.features = features
        self.ridge = ridge
        self._more_than_features = examples is not None and examples > features
        self._clear()

    def add(self, x: Tensor, targets: Tensor) -> None:
        """Add examples: features (n, D), stored in their own type, and targets (n, 4).

        Raises:
            TrainingError: for features or targets that are not finite.
        """
        if len(x) == 0:
            return
        if not torch.isfinite(x.sum(dtype=torch.float64)) or not torch.isfinite(targets).all():
            raise TrainingError("box regression: features or targets that are not finite")
        self._rows += [part.to("cpu", copy=True) for part in x.detach().split(CHUNK)]
        self._targets += [part.to("cpu", torch.float64, copy=True) for part in targets.detach().split(CHUNK)]
        self.count += len(x)
        size = self.features + 1
        limit = CHUNK * size * x.dtype.itemsize if self._normal or self._more_than_features else 8 * size**2
        if sum(rows.nbytes for rows in self._rows) > limit:
            self._add_to_normal()

    def solve(self) -> Ridge:
        """The regression of all examples; it uses their memory, so that the solver is empty afterwards.

        Raises:
            TrainingError: without examples.
        """
        if self.count == 0:
            raise TrainingError("box regression: there are no examples")
        whitening = whiten(torch.cat(self._targets))
        if self._normal or self.count > self.features:
            beta = self._solve_normal(whitening)
        else:
            beta = self._solve_dual(whitening)
        self._clear()
        return Ridge(beta[:-1], beta[-1], whitening.inverse, whitening.mean)

    def _clear(self) -> None:
        self.count = 0
        self._rows: list[Tensor] = []
        self._targets: list[Tensor] = []  # all of them: they are small
        self._in_normal = 0  # number of examples in the normal equations: the first ones
        self._normal: tuple[Tensor, ...] = ()  # the lower half of A^T A, and A^T targets

    def _add_to_normal(self) -> None:
        """Add the stored rows to the normal equations, and drop them."""
        from scipy.linalg.blas import dsyrk

        size = self.features + 1
        if not self._normal:
            self._normal = (torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, 4, dtype=torch.float64))
        (gram, moment), targets = self._normal, torch.cat(self._targets)
        for a in self._chunks():
            # Adds the lower half of a.T @ a in place. BLAS is column-major: it sees the transposes.
            dsyrk(1.0, a.numpy().T, 1.0, gram.numpy().T, overwrite_c=True)
            moment.addmm_(a.T, targets[self._in_normal : self._in_normal + len(a)])
            self._in_normal += len(a)
        self._rows = []

    def _solve_normal(self, whitening: Whitening) -> Tensor:
        """beta (D + 1, 4) by the normal equations; whitening is linear, so it is applied to A^T targets."""
        self._add_to_normal()
        gram, moment = self._normal
        of_ones = gram[-1, :, None]  # the last column of A is the bias column
        return _solve_positive(gram, self.ridge, (moment - of_ones * whitening.mean) @ whitening.matrix)

    def _solve_dual(self, whitening: Whitening) -> Tensor:
        """beta (D + 1, 4) by the dual system A A^T, of which the lower half is computed."""
        kernel = torch.zeros(self.count, self.count, dtype=torch.float64)
        end = 0
        for a in self._chunks():
            start, end, column = end, end + len(a), 0
            for b in self._chunks():
                kernel[start:end, column : column + len(b)] = a @ b.T
                column += len(b)
                if column == end:
                    break
        whitened = (torch.cat(self._targets) - whitening.mean) @ whitening.matrix
        alpha = _solve_positive(kernel, self.ridge, whitened)
        beta, end = torch.zeros(self.features + 1, 4, dtype=torch.float64), 0
        for a in self._chunks():
            start, end = end, end + len(a)
            beta.addmm_(a.T, alpha[start:end])
        return beta

    def _chunks(self) -> Iterator[Tensor]:
        """The stored rows as parts of A in double precision, of `CHUNK` rows or a little more."""
        start = 0
        while start < len(self._rows):
            stop, count = start, 0
            while stop < len(self._rows) and count < CHUNK:
                count, stop = count + len(self._rows[stop]), stop + 1
            a = torch.ones(count, self.features + 1, dtype=torch.float64)
            a[:, :-1] = torch.cat(self._rows[start:stop])
            yield a
            start = stop


def _solve_positive(matrix: Tensor, ridge: float, right: Tensor) -> Tensor:
    """(matrix + ridge I)^-1 right, by Cholesky, which overwrites the matrix; only its lower half is read."""
    from scipy.linalg import cho_factor, cho_solve

    matrix.diagonal().add_(ridge)
    # LAPACK is column-major: the lower half is its upper one.
    factor = cho_factor(matrix.numpy().T, lower=False, overwrite_a=True, check_finite=False)
    return torch.from_numpy(cho_solve(factor, right.numpy(), check_finite=False))
