"""Linear SVMs: the optimum they are trained to, their margins, and the scale of the features."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.svm import LinearSVC

from detkit.errors import TrainingError
from detkit.heads import LinearSVMs, feature_scale, fit_svm, objective


def examples(n: int = 80, features: int = 6, positives: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n) < positives)
    return (rng.normal(size=(n, features)) * 3 + y[:, None] * 2).astype(np.float32), y


def dual_optimum(x: np.ndarray, y: np.ndarray, c: float, positive_weight: float) -> tuple[np.ndarray, float]:
    """By a general minimiser: max sum a - |sum a s x|^2 / 2 with a from 0 to the example's cost."""
    s = np.where(y, 1.0, -1.0)
    z = np.column_stack([x, np.full(len(x), 10.0)]) * s[:, None]
    found = minimize(
        lambda a: (0.5 * (a @ z) @ (a @ z) - a.sum(), z @ (a @ z) - 1),
        np.zeros(len(x)),
        jac=True,
        bounds=[(0, c * (positive_weight if own else 1)) for own in y],
        method="L-BFGS-B",
        options={"maxiter": 20_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-9},
    )
    w = found.x @ z
    return w[:-1], w[-1] * 10.0


@pytest.mark.parametrize("costs", [{"c": 1e-3, "positive_weight": 2.0}, {"c": 0.01, "positive_weight": 5.0}])
def test_an_svm_is_the_optimum(costs: dict[str, float]) -> None:
    x, y = examples()
    w, b = fit_svm(x, y, **costs)
    expected_w, expected_b = dual_optimum(x, y, **costs)
    assert w.dtype == np.float32
    np.testing.assert_allclose(np.append(w, b), np.append(expected_w, expected_b), rtol=0, atol=1e-3)
    best = objective(expected_w, expected_b, x[y], x[~y], **costs).total
    assert objective(w, b, x[y], x[~y], **costs).total == pytest.approx(best, rel=1e-4)


def test_an_svm_is_scikit_learns() -> None:
    x, y = examples(200, 30)
    w, b = fit_svm(x, y)
    svm = LinearSVC(
        loss="hinge", C=1e-3, class_weight={1: 2, -1: 1}, intercept_scaling=10, random_state=0, tol=1e-8, max_iter=10**6
    ).fit(x.astype(np.float64), np.where(y, 1, -1))
    np.testing.assert_allclose(w, svm.coef_[0], rtol=0, atol=1e-4)
    again = fit_svm(x.astype(np.float64), np.where(y, 1, -1))
    assert np.array_equal(w, again[0]) and b == again[1]
    assert b == pytest.approx(float(svm.intercept_[0]), abs=1e-3)


def test_the_objective_as_it_is_written() -> None:
    rng = np.random.default_rng(1)
    w, b = rng.normal(size=5), 0.7
    positives, negatives = rng.normal(size=(7, 5)), rng.normal(size=(2500, 5))
    found = objective(w, b, positives, negatives, c=0.01, positive_weight=3)
    of_positives = sum(max(0.0, 1 - (float(x @ w) + b)) for x in positives)
    of_negatives = sum(max(0.0, 1 + (float(x @ w) + b)) for x in negatives)
    assert found.positive == pytest.approx(0.01 * 3 * of_positives)
    assert found.negative == pytest.approx(0.01 * of_negatives)
    assert found.regularization == pytest.approx(0.5 * sum(v * v for v in w) + 0.5 * (0.7 / 10) ** 2)
    assert found.total == pytest.approx(found.positive + found.negative + found.regularization)
    halves = torch.from_numpy(negatives).half()
    assert objective(w, b, positives, halves).negative == pytest.approx(
        objective(w, b, positives, halves.double().numpy()).negative, rel=1e-12
    )
    assert objective(w, b, positives, negatives[:0]).negative == 0


def test_a_coarser_accuracy_is_taken_without_a_word_where_the_finest_is_not_reached() -> None:
    x, y = examples()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        w, b = fit_svm(x, y, c=0.1, tolerances=(1e-15, 1e-2), max_iter=1000)
        with pytest.raises(TrainingError, match=r"80 examples did not converge in 5 iterations.*mean norm is \d+"):
            fit_svm(x * 100, y, c=1.0, max_iter=5)
        assert np.isfinite(fit_svm(x * 100, y, c=1.0, max_iter=5, strict=False)[0]).all()
    expected = objective(*dual_optimum(x, y, 0.1, 2.0), x[y], x[~y], c=0.1).total
    assert objective(w, b, x[y], x[~y], c=0.1).total == pytest.approx(expected, rel=1e-2)


def test_margins() -> None:
    svms = LinearSVMs(5, 3)
    x = torch.randn(7, 5)
    assert (svms(x) == -torch.inf).all() and svms(x).shape == (7, 3)
    weight = np.random.default_rng(0).normal(size=5).astype(np.float32)
    svms.set(2, weight, 0.5)
    svms.scale.fill_(3.0)
    expected = x @ torch.from_numpy(weight)
    torch.testing.assert_close(svms(x)[:, 1], 3 * expected + 0.5)
    torch.testing.assert_close(svms.margins(x)[:, 1], expected + 0.5)
    assert (svms(x)[:, [0, 2]] == -torch.inf).all()
    assert svms(x[:0]).shape == (0, 3)
    assert not list(svms.parameters()) and len(svms.state_dict()) == 4  # buffers, which a checkpoint holds


def test_margins_are_single_precision_whatever_is_asked() -> None:
    svms = LinearSVMs(300, 2)
    svms.set(1, np.random.default_rng(0).normal(size=300), -0.5)
    x = torch.randn(20, 300)
    with torch.autocast("cpu", torch.bfloat16):
        found = svms(x)
    assert found.dtype == torch.float32 and torch.equal(found, svms(x))
    half = x.half()
    assert torch.equal(svms(half), svms(half.float()))


def test_features_are_scaled_to_a_mean_norm() -> None:
    images = [torch.randn(30, 8) * 4, torch.zeros(0, 8), torch.randn(5, 8).half()]
    scale = feature_scale(images)
    norms = torch.cat([image.float() * scale for image in images]).norm(dim=1)
    assert norms.mean() == pytest.approx(20, rel=1e-5)
    assert feature_scale([]) == feature_scale([torch.zeros(3, 8)]) == 1


def test_only_some_regions_of_an_image_are_looked_at() -> None:
    norms = torch.cat([torch.ones(200), torch.full((200,), 3.0)])
    image = torch.diag_embed(norms)
    scales = {feature_scale([image], per_image=10, generator=torch.Generator().manual_seed(s)) for s in range(20)}
    means = sorted(20 / scale for scale in scales)
    assert len(means) > 2 and all(abs(m * 10 - round(m * 10)) < 1e-4 for m in means)  # 10 of them, not all 400
    assert 1.2 < means[0] < 2 < means[-1] < 2.8  # from anywhere


def test_the_solvers_are_imported_when_they_are_needed() -> None:
    code = "import sys, detkit.heads; print([name for name in ('sklearn', 'scipy') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
