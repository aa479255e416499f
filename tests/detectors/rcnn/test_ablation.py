"""The ways in which the weights of one R-CNN can detect: each as an evaluation of its own, in a test and in a fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import detkit
from detkit.data import Shapes
from detkit.evaluation import MeanAveragePrecision
from detkit.heads import Variant

from .rcnn_fits import WARNINGS, Fit, Fitted
from .rcnn_parts import with_proposals

pytestmark = WARNINGS


@torch.no_grad()
def test_each_variant_of_a_checkpoint_as_an_evaluation_of_its_own(
    whole_fit: Fitted, shapes: Callable[..., Shapes], trainer: Any, tmp_path: Path
) -> None:
    data = with_proposals(shapes())
    trainer().test(whole_fit.model, datamodule=data, verbose=False)
    rows = whole_fit.model.last_metrics["ablation"]
    assert [row["variant"] for row in rows if row["used"]] == ["SVM + boxes"]
    numbers = []
    for row, (classifier, boxes) in zip(rows, [(c, b) for c in ("softmax", "svm") for b in (False, True)], strict=True):
        content = whole_fit.state()
        content["hyper_parameters"] |= {"classifier": classifier, "box_regression": boxes}
        torch.save(content, tmp_path / "other.ckpt")
        alone = detkit.load(tmp_path / "other.ckpt")
        assert str(alone.roi_heads.variant) == row["variant"]
        metric = MeanAveragePrecision("coco", alone.class_names)
        for i in range(3):
            sample = data.dataset("test")[i]
            metric.update(alone.detect([sample]), [sample])
        result = metric.compute()
        assert row["map"] == pytest.approx(float(result["map"]), abs=1e-9)
        assert row["map_50"] == pytest.approx(float(result["map_50"]), abs=1e-9)
        numbers.append(row["map_50"])
    assert len(set(numbers)) > 1
    plain, boxes, svm, both = (row["map"] for row in rows)
    nan = math.nan
    gains = [(nan, nan), (nan, boxes - plain), (svm - plain, nan), (both - boxes, both - svm)]
    found = [(row["svm_gain"], row["box_gain"]) for row in rows]
    assert found == [pytest.approx(pair, abs=1e-12, nan_ok=True) for pair in gains]
    assert any(gain != 0 for pair in found for gain in pair if not math.isnan(gain))
    assert whole_fit.model.last_metrics["map"] == pytest.approx(rows[3]["map"], abs=1e-9)


@torch.no_grad()
def test_the_limit_over_the_set_is_one_of_the_test(
    whole_fit: Fitted, shapes: Callable[..., Shapes], trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_proposals(shapes())
    model = detkit.load(whole_fit.checkpoints)
    model.max_per_set = 3
    seen: list[Any] = []
    monkeypatch.setattr(model.metric, "update", lambda found, samples: seen.extend(found))
    trainer().test(model, datamodule=data, verbose=False)
    free = [model.detect([data.dataset("test")[i]])[0] for i in range(3)]
    heads, everything = model.roi_heads, []
    for i in range(3):
        sample = data.dataset("test")[i]
        images = model.encode([sample])
        features = model.reader.read(images[0], sample["proposals"][:25])
        everything.append(heads.scores(features.fc7, "svm"))
    for k in range(model.num_classes):
        scores = torch.cat(everything)[:, k].sort(descending=True).values
        for limited, whole_image in zip(seen, free, strict=True):
            own = whole_image["scores"][whole_image["labels"] == k + 1]
            within = own[own >= scores[8] - 1e-6]  # the nine best of three images
            torch.testing.assert_close(limited["scores"][limited["labels"] == k + 1], within)
    assert sum(len(found["scores"]) for found in seen) < sum(len(found["scores"]) for found in free)


def test_gains_are_told_only_over_what_is_there(whole_fit: Fitted, shapes: Callable[..., Shapes], trainer: Any) -> None:
    model = detkit.load(whole_fit.checkpoints)
    model.roi_heads.box_regressors.trained[:] = False
    trainer().test(model, datamodule=with_proposals(shapes()), verbose=False)
    softmax, svm = model.last_metrics["ablation"]
    assert math.isnan(softmax["svm_gain"]) and svm["svm_gain"] == svm["map"] - softmax["map"]
    assert math.isnan(softmax["box_gain"]) and math.isnan(svm["box_gain"])


def test_the_comparison_reads_as_much_as_a_validation_does(fit_rcnn: Fit, tmp_path: Path) -> None:
    assert fit_rcnn(tmp_path, limit=1).calls["validation"] == 1


def test_what_is_asked_for_and_not_trained_is_said(
    fit_rcnn: Fit, tmp_path: Path, trainer: Any, shapes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fit_rcnn(tmp_path, epochs=1, classifier="softmax").model
    model.roi_heads.requested = Variant("svm", True)
    for name in ("validate", "test", "predict"):
        capsys.readouterr()
        getattr(trainer(), name)(model, datamodule=with_proposals(shapes(seed=5)))
        assert "SVM + boxes was requested; used is what is trained: softmax + boxes" in capsys.readouterr().out
