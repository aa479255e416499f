"""Ridge regression of whitened targets: scikit-learn's numbers by every way that leads there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as Reference
from torch import Tensor

from detkit.errors import TrainingError
from detkit.heads import RidgeSolver, ridge
from detkit.heads.ridge import whiten


def examples(n: int, features: int) -> tuple[Tensor, Tensor]:
    """Features with a mean, as after a ReLU, and targets that hang together with them and with each other."""
    generator = torch.Generator().manual_seed(n * 1000 + features)
    x = torch.randn(n, features, generator=generator).relu() * 3
    y = x[:, :1] * torch.tensor([0.1, 0.2, -0.1, 0.3]) + torch.randn(n, 4, generator=generator) * 0.2
    return x, y + torch.tensor([0.01, -0.02, 0.1, 0.3])


def reference(x: Tensor, targets: Tensor, penalty: float) -> np.ndarray:
    """scikit-learn's coefficients (4, D + 1), bias last, for whitened targets."""
    whitened = (targets.double().numpy() - whiten(targets).mean.numpy()) @ whiten(targets).matrix.numpy()
    a = np.column_stack([x.double().numpy(), np.ones(len(x))])
    return Reference(alpha=penalty, fit_intercept=False, solver="svd").fit(a, whitened).coef_


def solve(x: Tensor, targets: Tensor, penalty: float = 1000.0, parts: Sequence[int] = ()) -> ridge.Ridge:
    solver, parts = RidgeSolver(x.shape[1], penalty), parts or [len(x)]
    for some, of in zip(x.split(parts), targets.split(parts), strict=True):
        solver.add(some, of)
    assert solver.count == len(x)
    return solver.solve()


@pytest.mark.parametrize("penalty", [1.0, 1000.0])
@pytest.mark.parametrize("n", [1, 7, 40, 41, 42, 300, 2500])
def test_it_is_scikit_learns(n: int, penalty: float) -> None:
    x, targets = examples(n, 40)
    found = solve(x, targets, penalty)
    expected = reference(x, targets, penalty)
    np.testing.assert_allclose(found.weight.T, expected[:, :-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.bias, expected[:, -1], rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any),
    features=st.integers(1, 30),
    chunk=st.integers(1, 20),
)
def test_however_the_examples_come(parts: list[int], features: int, chunk: int) -> None:
    """Chunks of any size, in both forms, and from one into the other."""
    x, targets = examples(sum(parts), features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ridge, "CHUNK", chunk)
        found = solve(x, targets, 10.0, parts)
    expected = reference(x, targets, 10.0)
    np.testing.assert_allclose(found.weight.T, expected[:, :-1], rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.bias, expected[:, -1], rtol=0, atol=1e-8)


def test_half_precision_features_are_taken_at_their_word() -> None:
    x, targets = examples(500, 20)
    found = solve(x.half(), targets, 100.0, [100] * 5)
    np.testing.assert_allclose(found.weight.T, reference(x.half(), targets, 100.0)[:, :-1], rtol=0, atol=1e-9)


def test_whitened_targets_are_uncorrelated() -> None:
    _, targets = examples(400, 3)
    mean, matrix, inverse = whiten(targets)
    white = (targets.double() - mean) @ matrix
    covariance = torch.from_numpy(np.cov(targets.double().numpy().T, bias=True))
    variances = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(white.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    # 0.001 is added to the variances: they become a little less than 1, and none is divided by 0.
    torch.testing.assert_close(torch.linalg.eigvalsh(white.T @ white / 400), variances / (variances + 1e-3))
    torch.testing.assert_close(matrix @ inverse, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(inverse @ inverse, covariance + 1e-3 * torch.eye(4, dtype=torch.float64))


def test_targets_that_are_all_the_same_are_the_prediction() -> None:
    x, targets = examples(30, 5)
    found = solve(x, targets[:1].repeat(30, 1))
    predicted = (x.double() @ found.weight + found.bias) @ found.inverse + found.mean
    torch.testing.assert_close(predicted, targets[:1].repeat(30, 1).double(), rtol=0, atol=1e-6)


def nbytes(solver: RidgeSolver) -> int:
    return sum(t.nbytes for t in (*solver._rows, *solver._targets, *solver._normal))


def test_memory_is_that_of_the_smaller_form() -> None:
    features, n = 50, 3000
    x, targets = examples(n, features)
    equations, of_targets = 8 * (features + 1) * (features + 5), n * 4 * 8
    solver = RidgeSolver(features, 1000.0)
    for some, of in zip(x.half().split(100), targets.split(100), strict=True):
        solver.add(some, of)
        if solver.count <= 200:
            assert nbytes(solver) == solver.count * (features * 2 + 4 * 8)
    assert nbytes(solver) < equations + ridge.CHUNK * features * 2 + of_targets < n * features * 2 + of_targets
    solver.solve()
    assert nbytes(solver) == solver.count == 0


def test_of_many_examples_few_are_held_at_a_time_where_it_is_known() -> None:
    features, n = 1500, 4 * ridge.CHUNK
    x, targets = examples(n, features)
    found = []
    for known in (n, None):
        solver, most = RidgeSolver(features, 1000.0, known), 0
        for some, of in zip(x.split(512), targets.split(512), strict=True):
            solver.add(some, of)
            most = max(most, sum(len(row) for row in solver._rows))
        found.append((most, solver.solve().weight))
    (few, weight), (many, other) = found
    assert few <= ridge.CHUNK + 512 < many
    torch.testing.assert_close(weight, other, rtol=1e-7, atol=1e-9)


def test_what_is_given_may_change_afterwards() -> None:
    x, targets = examples(20, 5)
    expected = solve(x, targets)
    solver = RidgeSolver(5, 1000.0)
    given_x, given_targets = x.clone(), targets.double()
    solver.add(given_x, given_targets)
    given_x.zero_(), given_targets.zero_()
    assert torch.equal(solver.solve().weight, expected.weight)


def test_what_cannot_be_solved() -> None:
    solver = RidgeSolver(3, 1000.0)
    solver.add(torch.zeros(0, 3), torch.zeros(0, 4))
    with pytest.raises(TrainingError, match="there are no examples"):
        solver.solve()
    bad = torch.tensor([[0.0, torch.inf, 1.0]])
    with pytest.raises(TrainingError, match="not finite"):
        solver.add(bad, torch.zeros(1, 4))
    with pytest.raises(TrainingError, match="not finite"):
        solver.add(torch.zeros(1, 3), torch.full((1, 4), torch.nan))
