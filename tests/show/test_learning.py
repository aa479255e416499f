"""Class probabilities, curves, the paths of optimizers and what layers pass on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from scipy.special import softmax

from detkit import show
from detkit.errors import ConfigError
from detkit.show.canvas import BLUE, COLOURS, GREEN

from .conftest import photo, texts


def test_each_bar_is_the_probability_of_its_class() -> None:
    logits = torch.tensor([1.0, -2.0, 3.5], requires_grad=True)
    left, right = show.probabilities(photo(), logits, ["cat", "dog", "cow"], label=1).axes
    expected = softmax([1.0, -2.0, 3.5])
    bars = right.patches
    assert [bar.get_width() for bar in bars] == pytest.approx(expected.tolist())
    assert [bar.get_y() + bar.get_height() / 2 for bar in bars] == pytest.approx([0, 1, 2])
    assert [label.get_text() for label in right.get_yticklabels()] == ["cat", "dog", "cow"]
    assert right.get_ylim()[0] > right.get_ylim()[1]  # the first class is at the top
    assert [to_rgb(bar.get_facecolor()) for bar in bars] == [to_rgb(colour) for colour in (BLUE, GREEN, BLUE)]
    assert texts(right) == [f"{p:.3f}  (score {s:.2f})" for p, s in zip(expected, (1, -2, 3.5), strict=True)]
    assert np.array_equal(left.images[0].get_array(), photo()) and left.get_title() == "image, class dog"


def test_scores_of_any_size_become_probabilities() -> None:
    figure = show.probabilities(photo(), torch.tensor([1000.0, 999.0]), ["a", "b"])
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx(softmax([1, 0]).tolist())
    assert figure.axes[0].get_title() == "image"
    for logits, label in ((torch.zeros(3), None), (torch.zeros(1, 2), None), (torch.zeros(2), 2)):
        with pytest.raises(ConfigError, match=r"do not fit 2 classes, 0\.\.1"):
            show.probabilities(photo(), logits, ["a", "b"], label)


def test_curves_are_drawn_where_they_are(ax: Axes) -> None:
    series = {"few": [3.0, 0.1, 0.001], "other": [1.0, 2.0, 4.0]}
    show.curves(series, "pictures", "accuracy", "More is better", x=(5, 20, 80), logarithmic="xy", ax=ax)
    for line, (name, values), colour in zip(ax.lines, series.items(), COLOURS, strict=False):
        assert list(line.get_xdata()) == [5, 20, 80] and list(line.get_ydata()) == values
        assert (line.get_label(), line.get_color(), line.get_marker()) == (name, colour, "o")
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()  # to be told apart without colours
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["5", "20", "80"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("pictures", "accuracy", "More is better")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["few", "other"]


def test_values_without_positions_are_counted_from_1(ax: Axes) -> None:
    show.curves({"long": list(range(50)), "short": [2.0]}, "step", "loss", "Loss", ax=ax)
    long, short = ax.lines
    assert list(long.get_xdata()) == list(range(1, 51)) and list(short.get_xdata()) == [1]
    assert long.get_marker() == "None" and short.get_marker() == "o"
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")
    with pytest.raises(ConfigError, match="short has 1 values for 2 positions"):
        show.curves({"short": [2.0]}, "step", "loss", "Loss", x=[1, 2])
    with pytest.raises(ConfigError, match="give the values of a curve"):
        show.curves({}, "step", "loss", "Loss")


def bowl(weights: torch.Tensor) -> torch.Tensor:
    return weights[:, 0] ** 2 + 4 * weights[:, 1] ** 2


def test_paths_lie_over_the_contour_lines_of_the_loss(ax: Axes) -> None:
    paths = {"a": torch.tensor([[3.0, 1.0], [1.0, -0.5], [0.2, 0.1]]), "b": torch.tensor([[3.0, 1.0], [2.0, 0.5]])}
    show.descent(bowl, paths, limits=(-4, 4, -1, 3), ax=ax)
    a, b, start = ax.lines
    for line, path in ((a, paths["a"]), (b, paths["b"])):
        assert np.allclose(np.column_stack(line.get_data()), path) and line.get_marker() == "o"
    assert [float(value) for value in (*start.get_xdata(), *start.get_ydata())] == [3, 1]
    assert ax.get_xlim() == (-4, 4) and ax.get_ylim() == (-1, 3)
    (contours,) = ax.collections
    assert max(contours.levels) == 52 and sorted(contours.levels) == list(contours.levels)
    for level, line in zip(contours.levels, contours.get_paths(), strict=True):  # axes not mixed up
        for x, y in line.vertices[:-1]:
            assert x**2 + 4 * y**2 == pytest.approx(level, rel=0.02, abs=0.02)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "start"]


def test_without_limits_all_paths_are_seen(ax: Axes) -> None:
    show.descent(bowl, {"a": torch.tensor([[3.0, 1.0], [-1.0, 5.0]])}, ax=ax)
    assert ax.get_xlim() == pytest.approx((-1.4, 3.4)) and ax.get_ylim() == pytest.approx((0.6, 5.4))
    for paths in ({}, {"a": torch.zeros(3)}, {"a": torch.zeros(0, 2)}):
        with pytest.raises(ConfigError, match=r"each of shape \(T \+ 1, 2\)"):
            show.descent(bowl, paths, ax=ax)


def test_each_layer_has_a_histogram_on_the_same_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {name: [torch.randn(40, 5, generator=generator) * s for s in (1, 0.1)] for name in ("small", "large")}
    figure = show.distributions(rows, limits=(-2, 2))
    axes = np.array(figure.axes).reshape(2, 2)
    for row, (name, layers) in zip(axes, rows.items(), strict=True):
        assert row[0].get_ylabel() == name
        for ax, values in zip(row, layers, strict=True):
            counts, _ = np.histogram(values.double().clamp(-2, 2).numpy(), np.linspace(-2, 2, 31))
            assert [bar.get_height() for bar in ax.patches] == counts.tolist() and sum(counts) == 200
            assert ax.get_xlim() == (-2, 2)
            assert ax.get_title().splitlines()[-1] == f"std {values.double().numpy().std():.2g}"
    assert [ax.get_title().splitlines()[0] for ax in axes[0]] == ["layer 1", "layer 2"]


def test_without_limits_all_values_are_seen() -> None:
    figure = show.distributions({"a": [torch.tensor([-3.0, 1.0]), torch.tensor([0.0, 7.0])]})
    assert [ax.get_xlim() for ax in figure.axes] == [(-3, 7)] * 2
    for rows in ({}, {"a": []}, {"a": [torch.zeros(2)], "b": [torch.zeros(2)] * 2}):
        with pytest.raises(ConfigError, match="the same number of layers for each network"):
            show.distributions(rows)
