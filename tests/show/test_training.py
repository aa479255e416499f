"""The losses of a run, from its log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detkit import show
from detkit.errors import DataError
from detkit.show.training import moving_mean


def write_log(folder: Path) -> Path:
    names = ["train/loss", *(f"train/loss_{n}" for n in ("box_reg", "classifier", "objectness", "rpn_box_reg"))]
    lines = [",".join(["epoch", "step", *names])]
    lines += [
        f"0,{step},{10 - step},{4 - step / 5},{3 - step / 5},{2 - step / 5},{1 - step / 20}" for step in range(10)
    ]
    path = folder / "metrics.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("as_file", [True, False])
def test_each_of_the_four_losses_has_a_picture(as_file: bool, tmp_path: Path) -> None:
    path = write_log(tmp_path)
    axes = show.losses(path if as_file else tmp_path, window=3).axes
    names = [ax.get_title().splitlines()[0] for ax in axes]
    assert names == ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"]
    for ax, start, fall in zip(axes, (2, 1, 3, 4), (1 / 5, 1 / 20, 1 / 5, 1 / 5), strict=True):
        logged, mean = ax.lines
        assert logged.get_xdata().tolist() == list(range(1, 11))  # steps are counted from 1
        values = start - fall * np.arange(10)
        assert np.allclose(logged.get_ydata(), values)
        assert np.allclose(mean.get_ydata(), [values[max(i - 2, 0) : i + 1].mean() for i in range(10)])
        assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] >= start


def test_the_mean_of_a_window_is_of_what_there_is() -> None:
    values = np.random.default_rng(0).normal(size=40)
    assert np.allclose(moving_mean(values, 7)[6:], np.convolve(values, np.ones(7) / 7, "valid"))
    assert moving_mean(values, 7)[0] == values[0] and len(moving_mean(values, 99)) == 40


def test_a_folder_without_losses_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no losses \(train/loss_...\) are logged there"):
        show.losses(tmp_path)
