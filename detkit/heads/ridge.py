"""Ridge regression of four whitened targets, for more features or more examples than is comfortable.

As rcnn_train_bbox_regressor.m does it (papers.md 2.1): targets are centred and whitened, a bias column stands beside
the features and is penalised like them, and (A^T A + ridge I) beta = A^T y is solved by Cholesky. With fewer examples
than features the same beta is A^T (A A^T + ridge I)^-1 y, a system of the number of examples.

Shape letters: D features, n examples; A is (n, D + 1), the features and the bias column.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.errors import ConfigError, TrainingError

CHUNK = 1024  # examples that are in double precision at a time
SMALLEST = 0.001  # variance added to that of the targets before it is divided by


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
    deviations = (variances.clamp(min=0) + SMALLEST).sqrt()
    return Whitening(mean, axes / deviations @ axes.T, axes * deviations @ axes.T)


class RidgeSolver:
    """Takes examples as they come and holds whatever is smaller: them, or their normal equations.

    Args:
        features: D.
        ridge: the penalty on the squared weights, above 0.
        examples: how many there will be, where that is known: of more than D none is held for long.

    Attributes:
        count: n so far.
    """

    def __init__(self, features: int, ridge: float = 1000.0, examples: int | None = None) -> None:
        if ridge <= 0:
            raise ConfigError(f"box regression: ridge must be above 0, not {ridge}")
        self.features, self.ridge = features, ridge
        self._many = examples is not None and examples > features
        self._forget()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(t.nbytes for t in (*self._rows, *self._targets, *self._normal))

    def add(self, x: Tensor, targets: Tensor) -> None:
        """More examples: features (n, D), kept in their own type, and targets (n, 4).

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
        enough = CHUNK * size * x.dtype.itemsize if self._normal or self._many else 8 * size**2
        if sum(row.nbytes for row in self._rows) > enough:
            self._fold()

    def solve(self) -> Ridge:
        """The regression of all examples. It takes the place they were held in: afterwards there are none.

        Raises:
            TrainingError: without examples.
        """
        if self.count == 0:
            raise TrainingError("box regression: there is no example to learn from")
        whitening = whiten(torch.cat(self._targets))
        if self._normal or self.count > self.features:
            beta = self._solve_normal(whitening)
        else:
            beta = self._solve_dual(whitening)
        self._forget()
        return Ridge(beta[:-1], beta[-1], whitening.inverse, whitening.mean)

    def _forget(self) -> None:
        self.count = 0
        self._rows: list[Tensor] = []
        self._targets: list[Tensor] = []  # all of them: they are few beside the features
        self._folded = 0  # examples that are in the normal equations, the first ones
        self._normal: tuple[Tensor, ...] = ()  # A^T A, its lower half, and A^T of the targets as they came

    def _fold(self) -> None:
        """Put the rows that are held into the normal equations."""
        from scipy.linalg.blas import dsyrk

        size = self.features + 1
        if not self._normal:
            self._normal = (torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, 4, dtype=torch.float64))
        (gram, moment), targets = self._normal, torch.cat(self._targets)
        for a in self._chunks():
            # Half the products of a.T @ a, added in place. BLAS orders by columns: it sees everything transposed.
            dsyrk(1.0, a.numpy().T, 1.0, gram.numpy().T, overwrite_c=True)
            moment.addmm_(a.T, targets[self._folded : self._folded + len(a)])
            self._folded += len(a)
        self._rows = []

    def _solve_normal(self, whitening: Whitening) -> Tensor:
        """beta (D + 1, 4) by the normal equations; the whitening is done to A^T targets, as it is linear."""
        self._fold()
        gram, moment = self._normal
        of_ones = gram[-1, :, None]  # the last column of A is the bias column
        return _solve_positive(gram, self.ridge, (moment - of_ones * whitening.mean) @ whitening.matrix)

    def _solve_dual(self, whitening: Whitening) -> Tensor:
        """beta (D + 1, 4) by way of the examples' products with each other, of which the lower half is computed."""
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
        """The rows that are held, some at a time, as parts of A in double precision."""
        start = 0
        while start < len(self._rows):
            stop, count = start, 0
            while stop < len(self._rows) and count < CHUNK:
                count, stop = count + len(self._rows[stop]), stop + 1
            a = torch.ones(count, self.features + 1, dtype=torch.float64)
            a[:, :-1] = torch.cat(self._rows[start:stop])
            yield a
            start = stop


def fit_ridge(x: Tensor, targets: Tensor, ridge: float = 1000.0) -> Ridge:
    """The regression of targets (n, 4) on features (n, D) that are all at hand; see `RidgeSolver`."""
    solver = RidgeSolver(x.shape[1], ridge)
    solver.add(x, targets)
    return solver.solve()


def _solve_positive(matrix: Tensor, ridge: float, right: Tensor) -> Tensor:
    """(matrix + ridge I)^-1 right, by Cholesky in the matrix's own place; only its lower half is read."""
    from scipy.linalg import cho_factor, cho_solve

    matrix.diagonal().add_(ridge)
    # LAPACK orders by columns: in its eyes the lower half is the upper one.
    factor = cho_factor(matrix.numpy().T, lower=False, overwrite_a=True, check_finite=False)
    return torch.from_numpy(cho_solve(factor, right.numpy(), check_finite=False))
