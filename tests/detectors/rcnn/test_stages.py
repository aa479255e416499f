"""What a fit of R-CNN does after fine-tuning: its stages in their order, what each leaves, and fewer of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import detkit
from detkit.data import Shapes
from detkit.detectors.rcnn.stages import STAGES
from detkit.engine.callbacks import LastCheckpoint
from detkit.engine.checkpoints import read_checkpoint
from detkit.errors import CheckpointError
from tests.detectors.conftest import differing

from .rcnn_fits import WARNINGS, Fit, Fitted, stage_of
from .rcnn_parts import rcnn, with_proposals

pytestmark = WARNINGS


def test_stages_run_in_their_order_and_each_leaves_a_checkpoint(
    fit_rcnn: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, str, bool, bool]] = []
    save = LastCheckpoint._save

    def watched(self: LastCheckpoint, trainer: L.Trainer) -> None:
        save(self, trainer)
        content = read_checkpoint(self.path)
        trained = [bool(content["state_dict"][f"roi_heads.{p}.trained"].any()) for p in ("svms", "box_regressors")]
        told.append((stage_of(content), content["detkit"]["class"].rpartition(".")[2], *trained))

    monkeypatch.setattr(LastCheckpoint, "_save", watched)
    found = fit_rcnn(tmp_path)
    tuning, svms, boxes, comparison = STAGES
    assert told == [
        (tuning, "RCNN", False, False),
        (tuning, "RCNN", False, False),
        (svms, "RCNN", True, False),
        (boxes, "RCNN", True, True),
        (comparison, "RCNN", True, True),
    ]
    assert found.calls == {"step": 8, "features": 8, "SVMs": 1, "boxes": 1, "validation": 2}
    out = capsys.readouterr().out
    places = [out.index(text) for text in ("features of all regions: 8 images", "SVMs: ", "box regressors: ", "gain")]
    assert places == sorted(places)
    assert [line.split("  ")[0] for line in out[places[-1] :].splitlines()[1:5]] == [
        "softmax",
        "softmax + boxes",
        "SVM",
        "SVM + boxes (used)",
    ]


@pytest.mark.parametrize(
    "change", [{"run_id": "../../a"}, {"run_id": "*"}, {"run_id": 5}, {"stage": "x"}, {"stage": 3}]
)
def test_a_checkpoint_names_no_folders(change: dict[str, Any]) -> None:
    stages = rcnn().stages
    stages.load_state_dict({"stage": "SVMs", "run_id": "0123abcd"})
    with pytest.raises(CheckpointError, match=r"entry callbacks\.RCNNStages"):
        stages.load_state_dict({"stage": "SVMs", "run_id": "0123abcd"} | change)


def test_best_is_the_complete_detector(whole_fit: Fitted) -> None:
    best, last = whole_fit.state("best"), whole_fit.state("last")
    assert not differing(best["state_dict"], last["state_dict"])
    assert not differing(best["state_dict"], whole_fit.model.state_dict())
    assert stage_of(best) == "comparison"
    assert best["state_dict"]["roi_heads.svms.trained"].any()
    assert str(detkit.load(whole_fit.checkpoints / "best.ckpt").roi_heads.variant) == "SVM + boxes"
    kept = best["callbacks"][next(name for name in best["callbacks"] if name.startswith("BestCheckpoint"))]
    assert kept["best_model_score"] == whole_fit.metrics["val/map"]


def test_the_metric_told_last_is_that_of_the_complete_detector(whole_fit: Fitted, shapes: Any, trainer: Any) -> None:
    (found,) = trainer().validate(whole_fit.model, datamodule=with_proposals(shapes()), verbose=False)
    assert found["val/map"] == pytest.approx(float(whole_fit.metrics["val/map"]), abs=1e-6)
    assert found["val/map_50"] == pytest.approx(float(whole_fit.metrics["val/map_50"]), abs=1e-6)


def test_features_stay_where_they_are_wanted(whole_fit: Fitted, fit_rcnn: Fit, tmp_path: Path) -> None:
    assert sorted(path.name for path in whole_fit.folder.iterdir()) == ["checkpoints", "svm_mining.csv"]
    found = fit_rcnn(tmp_path, feature_files__keep=True)
    assert sorted(path.name for path in found.feature_files) == ["done", "fc7.npy", "pool5.npy"]
    assert not differing(found.model.state_dict(), whole_fit.model.state_dict())


def test_without_fc7_on_disk_the_same_comes_out(whole_fit: Fitted, fit_rcnn: Fit, tmp_path: Path) -> None:
    found = fit_rcnn(tmp_path, feature_files__budget=0.0003)  # 300 kB
    assert found.calls == whole_fit.calls
    ours, theirs = found.model.state_dict(), whole_fit.model.state_dict()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_the_mining_is_written_down(whole_fit: Fitted) -> None:
    lines = (whole_fit.folder / "svm_mining.csv").read_text().splitlines()
    names = lines[0].split(",")
    assert names[0] == "class" and {"image", "added", "evicted", "kept", "objective"} <= set(names)
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    trained = whole_fit.model.roi_heads.svms.trained
    expected = {name for name, known in zip(whole_fit.model.class_names, trained, strict=True) if known}
    assert {row["class"] for row in rows} == expected and rows[-1]["image"] == "-1"
    for row in rows:
        parts = sum(float(row[part]) for part in ("positive", "negative", "regularization"))
        assert float(row["objective"]) == pytest.approx(parts, rel=1e-4)


def test_a_class_without_positives_is_not_available_and_never_fires(
    fit_rcnn: Fit, tmp_path: Path, shapes: Callable[..., Shapes], capsys: pytest.CaptureFixture[str]
) -> None:
    import detkit.data.datamodule as module

    read = module.DetectionDataModule.annotations

    def without_stars(self: Any, split: str) -> Any:
        found = read(self, split)
        if found is not None and split == "train":
            found.difficult[found.labels == self.class_names.index("star") + 1] = True
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.DetectionDataModule, "annotations", without_stars)
        found = fit_rcnn(tmp_path, epochs=1)
    heads, star = found.model.roi_heads, found.model.class_names.index("star")
    assert not heads.svms.trained[star] and not heads.box_regressors.trained[star]
    assert heads.svms.trained.sum() == heads.box_regressors.trained.sum() > 1
    assert "no SVM, without examples: star" in capsys.readouterr().out
    data = with_proposals(shapes())
    detections = found.model.eval().detect([data.dataset("test")[i] for i in range(3)])
    labels = torch.cat([d["labels"] for d in detections])
    assert len(labels) > 3 and star + 1 not in labels


@pytest.mark.parametrize(("svm_c", "weak"), [(1e-8, True), (0.1, False)])
def test_svms_that_are_hardly_better_than_a_constant_are_named(
    fit_rcnn: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], svm_c: float, weak: bool
) -> None:
    found = fit_rcnn(tmp_path, epochs=1, svm__c=svm_c)  # with so few examples the usual 0.001 is little too
    told = [line for line in capsys.readouterr().out.splitlines() if "SVMs with near-zero weights" in line]
    assert len(told) == weak
    trained = found.model.roi_heads.svms.trained
    names = [name for name, known in zip(found.model.class_names, trained, strict=True) if known]
    assert all(f"which reject everything: {', '.join(names)}; fine-tune longer" in line for line in told)


@pytest.mark.parametrize(
    ("options", "calls", "variant"),
    [
        ({"classifier": "softmax", "box_regression": False}, {}, "softmax"),
        ({"classifier": "softmax"}, {"features": 8, "boxes": 1, "validation": 2}, "softmax + boxes"),
        ({"box_regression": False}, {"features": 8, "SVMs": 1, "validation": 2}, "SVM"),
    ],
    ids=["softmax", "softmax + boxes", "SVM"],
)
def test_stages_that_nobody_asked_for_are_skipped(
    fit_rcnn: Fit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    calls: dict[str, int],
    variant: str,
) -> None:
    found = fit_rcnn(tmp_path, epochs=1, **options)
    only_examples = "features of ground truth and the regressors' examples" in capsys.readouterr().out
    assert only_examples == (variant == "softmax + boxes")
    assert found.calls == {"step": 4} | calls
    assert str(found.model.roi_heads.variant) == variant
    assert found.stage("best") == ("comparison" if calls else "fine-tuning")
    assert not (tmp_path / "features").exists()


def test_svms_alone_want_no_examples_for_regressors(fit_rcnn: Fit, tmp_path: Path) -> None:
    found = fit_rcnn(tmp_path, epochs=1, box_regression=False, feature_files__keep=True)
    # fc7 of at most 40 regions and some objects of 8 images in half precision, and no pool5.
    assert 0 < sum(path.stat().st_size for path in found.feature_files) < 8 * (50 * 84 * 2 + 512)
