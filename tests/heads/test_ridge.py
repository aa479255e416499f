"""Ridge regression of whitened targets: scikit-learn's numbers by every way that leads there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as Reference
from torch import Tensor

from detkit.errors import TrainingError
from detkit.heads import fit_ridge, ridge
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


def solve(x: Tensor, targets: Tensor, penalty: float = 1000.0) -> ridge.Ridge:
    return fit_ridge(lambda start, end: x[start:end], targets, x.shape[1], penalty)


@pytest.mark.parametrize("penalty", [1.0, 1000.0])
@pytest.mark.parametrize("n", [1, 7, 40, 41, 42, 300, 2500])
def test_it_is_scikit_learns(n: int, penalty: float) -> None:
    x, targets = examples(n, 40)
    found = solve(x, targets, penalty)
    expected = reference(x, targets, penalty)
    np.testing.assert_allclose(found.weight.T, expected[:, :-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.bias, expected[:, -1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        solve(x.half(), targets, penalty).weight.T, reference(x.half(), targets, penalty)[:, :-1], rtol=0, atol=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), features=st.integers(1, 30), chunk=st.integers(1, 20))
def test_whatever_the_size_of_the_chunks(n: int, features: int, chunk: int) -> None:
    x, targets = examples(n, features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ridge, "CHUNK", chunk)
        found = solve(x, targets, 10.0)
    expected = reference(x, targets, 10.0)
    np.testing.assert_allclose(found.weight.T, expected[:, :-1], rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.bias, expected[:, -1], rtol=0, atol=1e-8)


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


@pytest.mark.parametrize("n", [100, 3000])
def test_at_most_a_chunk_is_read_at_a_time(n: int) -> None:
    x, targets = examples(n, 200)
    reads: list[tuple[int, int]] = []

    def read(start: int, end: int) -> Tensor:
        reads.append((start, end))
        return x[start:end]

    fit_ridge(read, targets, 200, 1000.0)
    assert set(reads) == {(start, min(start + ridge.CHUNK, n)) for start in range(0, n, ridge.CHUNK)}


@pytest.mark.parametrize("bad", ["features", "targets"])
def test_what_is_not_finite(bad: str) -> None:
    x, targets = examples(5, 3)
    (x if bad == "features" else targets)[2, 1] = torch.inf
    with pytest.raises(TrainingError, match=f"{bad} that are not finite"):
        solve(x, targets)
