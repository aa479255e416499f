"""A fit of R-CNN that is refused, killed in each of its stages, gone on with, or goes on from a checkpoint."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import detkit
from detkit.data import Shapes
from detkit.detectors import ProposalSettings
from detkit.detectors.rcnn import features as rcnn_features
from detkit.detectors.rcnn import stages as rcnn_stages
from detkit.detectors.rcnn.features import acquire_lock
from detkit.detectors.rcnn.stages import STAGES
from detkit.detectors.rcnn.training_regions import TrainingRegions
from detkit.errors import ConfigError
from tests.detectors.conftest import assert_same, differing

from .rcnn_fits import WARNINGS, Calls, Fit, Fitted, Stop
from .rcnn_parts import rcnn, with_proposals

pytestmark = WARNINGS
#: (where to kill: what is counted, and at which call) -> what the resumed fit still does
KILLS = {
    "fine-tuning": (("step", 6), {"step": 4, "features": 8, "SVMs": 1, "boxes": 1, "validation": 2}),
    "features": (("features", 4), {"features": 5, "SVMs": 1, "boxes": 1, "validation": 2}),
    "SVMs": (("SVMs", 1), {"SVMs": 1, "boxes": 1, "validation": 2}),
    "box regressors": (("boxes", 1), {"boxes": 1, "validation": 2}),
    "comparison": (("validation", 2), {"validation": 2}),
}


@pytest.mark.parametrize("options", [{}, {"classifier": "softmax"}, {"box_regression": False}])
def test_plain_loaders_are_refused_before_the_first_step(
    shapes: Callable[..., Shapes], trainer: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    data = with_proposals(shapes())
    loader = torch.utils.data.DataLoader(data.dataset("train"), batch_size=2, collate_fn=list)
    calls = Calls()
    runner = trainer(max_epochs=1, default_root_dir=str(tmp_path), callbacks=[Stop(calls, None)])
    with pytest.raises(ConfigError, match=r"fit with trainer.fit.model, datamodule., or set classifier: softmax"):
        runner.fit(rcnn(**options), loader)
    assert not calls
    model = rcnn(classifier="softmax", box_regression=False)
    runner = trainer(max_epochs=1, default_root_dir=str(tmp_path), callbacks=[Stop(calls, None)])
    runner.fit(model, loader)
    assert calls["step"] == 4


def test_a_budget_that_is_too_small_is_told_before_the_first_step(fit_rcnn: Fit, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"feature_files\.budget: 1e-06 GB"):
        fit_rcnn(tmp_path, model=rcnn(feature_files__budget=1e-6))
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("features"))


@pytest.mark.parametrize("epochs", [2, 3], ids=["used again", "stale"])
def test_a_disk_with_room_for_one_copy_is_enough_to_go_on(
    fit_rcnn: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    """Killed with all features there. With more fine-tuning these are deleted, and new ones take their place."""
    killed = fit_rcnn(tmp_path, kill=("SVMs", 1))
    size = 1.1 * sum(path.stat().st_size for path in killed.feature_files)

    def usage(place: Path) -> SimpleNamespace:
        return SimpleNamespace(free=size - sum(path.stat().st_size for path in tmp_path.rglob("*.npy")))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(ConfigError, match=r"the features take .* larger disk"):
        fit_rcnn(tmp_path)  # another fit's features make no room
    resumed = fit_rcnn(tmp_path, resume=True, epochs=epochs)
    assert resumed.calls["features"] == (8 if epochs == 3 else 0) and resumed.calls["validation"] == 2


def test_overlaps_are_counted_once_a_fit(fit_rcnn: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, count = [], TrainingRegions.counts
    monkeypatch.setattr(TrainingRegions, "counts", lambda self: looks.append(1) or count(self))
    model = rcnn()
    fit_rcnn(tmp_path, model=model, kill=("features", 1))
    assert len(looks) == 1
    fit_rcnn(tmp_path, model=model, kill=("features", 1))  # perhaps of other data
    assert len(looks) == 2


@pytest.mark.parametrize("stage", KILLS)
def test_a_kill_in_any_stage_changes_nothing(whole_fit: Fitted, fit_rcnn: Fit, tmp_path: Path, stage: str) -> None:
    kill, left = KILLS[stage]
    killed = fit_rcnn(tmp_path, kill=kill)
    reached = "fine-tuning" if stage == "features" else stage
    before = STAGES[max(STAGES.index(reached) - 1, 0)]
    assert killed.stage() == (before if reached != "fine-tuning" else "fine-tuning")
    resumed = fit_rcnn(tmp_path, resume=True)
    assert resumed.calls == left
    assert resumed.stage() == "comparison"
    assert not differing(whole_fit.model.state_dict(), resumed.model.state_dict())
    for name in ("best", "last"):
        assert not differing(whole_fit.state()["state_dict"], resumed.state(name)["state_dict"])
    assert resumed.metrics["val/map"] == whole_fit.metrics["val/map"]
    assert not resumed.feature_files and not (tmp_path / "features").exists()


def test_a_finished_fit_has_nothing_left(
    whole_fit: Fitted, fit_rcnn: Fit, tmp_path: Path, shapes: Callable[..., Shapes]
) -> None:
    shutil.copytree(whole_fit.folder, tmp_path, dirs_exist_ok=True)
    again = fit_rcnn(tmp_path, resume=True)
    assert not again.calls and not differing(whole_fit.model.state_dict(), again.model.state_dict())
    loaded, images = detkit.load(whole_fit.checkpoints), [shapes().dataset("test")[i]["image"] for i in range(3)]
    found = whole_fit.model.eval().predict(images)
    assert sum(len(one["boxes"]) for one in found) > 3
    for ours, theirs in zip(found, loaded.predict(images), strict=True):
        assert_same(ours, theirs, 0)


def test_more_epochs_make_what_was_learnt_on_the_features_stale(
    whole_fit: Fitted, fit_rcnn: Fit, tmp_path: Path
) -> None:
    shutil.copytree(whole_fit.folder, tmp_path, dirs_exist_ok=True)
    killed = fit_rcnn(tmp_path, resume=True, epochs=3, kill=("features", 1))
    assert killed.calls["step"] == 4
    last = killed.state()
    assert killed.stage() == "fine-tuning"
    assert not any(last["state_dict"][f"roi_heads.{p}.trained"].any() for p in ("svms", "box_regressors"))
    assert str(detkit.load(killed.checkpoints / "last.ckpt").roi_heads.variant) == "softmax"
    more = fit_rcnn(tmp_path, resume=True, epochs=3)
    assert more.calls == {"features": 8, "SVMs": 1, "boxes": 1, "validation": 2}
    assert {"roi_heads.svms.weight", "network.top.1.weight"} <= set(
        differing(whole_fit.model.state_dict(), more.model.state_dict())
    )
    assert not differing(more.state("best")["state_dict"], more.model.state_dict())


@pytest.mark.parametrize("keep", [False, True])
def test_features_of_the_network_as_it_was_do_not_stay(fit_rcnn: Fit, tmp_path: Path, keep: bool) -> None:
    """Killed while the SVMs learn, gone on with by more fine-tuning, and killed again."""
    fit_rcnn(tmp_path, kill=("SVMs", 1), feature_files__keep=keep)
    (before,) = (path for path in (tmp_path / "features").iterdir() if path.is_dir())
    # Another fit's in the same place, and what is no features at all.
    others = {tmp_path / "features" / name for name in ("other-0", before.name[1:], "mine")}
    for path in others:
        path.mkdir()
    fit_rcnn(tmp_path, resume=True, epochs=3, kill=("features", 2), feature_files__keep=keep)
    left = {path for path in (tmp_path / "features").iterdir() if path.is_dir()} - others
    assert len(left) == 1 + keep and (before in left) == keep
    again = fit_rcnn(tmp_path, resume=True, epochs=3, feature_files__keep=keep)
    assert again.calls["features"] == 7  # what was computed of the new network is used
    assert {path for path in (tmp_path / "features").iterdir() if path.is_dir()} == others | (left if keep else set())


def test_two_fits_in_one_place_have_features_of_their_own(fit_rcnn: Fit, tmp_path: Path) -> None:
    first = fit_rcnn(tmp_path, kill=("SVMs", 1))
    second = fit_rcnn(tmp_path, kill=("SVMs", 1))
    assert first.model.stages.run_id != second.model.stages.run_id and len(second.feature_files) == 6
    fit_rcnn(tmp_path, resume=True)
    assert [path.parent.name[:8] for path in first.feature_files] == [first.model.stages.run_id] * 3


@pytest.mark.parametrize("options", [{"svm__c": 0.01}, {}], ids=["other numbers", "the same"])
def test_a_second_fit_from_one_checkpoint_does_not_touch_the_features_of_the_first(
    whole_fit: Fitted, fit_rcnn: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """It begins while the first one's SVMs learn."""
    monkeypatch.setattr(rcnn_features, "LOCK_TIMEOUT", 0.0)
    learn, refused = rcnn_stages.learn_svms, []

    def while_another_begins(*args: Any) -> Any:
        refused.append(f"the fit in {tmp_path} (process {os.getpid()}) continues from the same checkpoint")
        with pytest.raises(ConfigError, match=re.escape(refused[0])):
            fit_rcnn(tmp_path, resume=True, **options)
        return learn(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rcnn_stages, "learn_svms", while_another_begins)
        first = fit_rcnn(tmp_path)
    assert refused and first.calls["features"] == 8
    assert not differing(whole_fit.model.state_dict(), first.model.state_dict())
    assert not (tmp_path / "features").exists()


def test_features_that_another_fit_from_the_same_checkpoint_uses_are_not_stale(
    fit_rcnn: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rcnn_features, "LOCK_TIMEOUT", 0.0)
    first = fit_rcnn(tmp_path, kill=("SVMs", 1))
    (folder,) = {path.parent for path in first.feature_files}
    content = {path.name: path.read_bytes() for path in first.feature_files}
    last = shutil.copy(first.checkpoints / "last.ckpt", tmp_path / "first.ckpt")
    with acquire_lock(folder, "the first"):
        # More regions make features of another name.
        second = fit_rcnn(tmp_path, resume=True, proposals=ProposalSettings(max_boxes=(30, 25)))
        assert second.calls == {"features": 8, "SVMs": 1, "boxes": 1, "validation": 2}
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    shutil.move(last, first.checkpoints / "last.ckpt")
    assert fit_rcnn(tmp_path, resume=True).calls == {"SVMs": 1, "boxes": 1, "validation": 2}
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("changed", "again"),
    [("svm.c", True), ("box.min_iou", True), ("proposals.max_boxes", True), ("crop.mode", True)]
    + [(name, False) for name in ("crop.memory", "feature_files.budget", "optim.lr", "detection.nms_threshold")],
)
def test_which_options_make_the_stages_run_again(whole_fit: Fitted, changed: str, again: bool) -> None:
    model = rcnn()
    model.apply_overrides({changed: None}, fit=True)
    assert model.finished_stage(whole_fit.state()) == ("" if again else "comparison")


def test_a_loaded_detector_that_learns_more_begins_anew(whole_fit: Fitted, fit_rcnn: Fit, tmp_path: Path) -> None:
    model = detkit.load(whole_fit.checkpoints / "best.ckpt")
    found = fit_rcnn(tmp_path, model=model, epochs=1)
    assert found.calls == {"step": 4, "features": 8, "SVMs": 1, "boxes": 1, "validation": 2}


def test_from_a_fit_without_validation_to_one_with(fit_rcnn: Fit, tmp_path: Path) -> None:
    first = fit_rcnn(tmp_path, epochs=1, validate=False)
    assert first.calls == {"step": 4, "features": 8, "SVMs": 1, "boxes": 1}
    assert first.stage("best") == first.stage() == "comparison"
    more = fit_rcnn(tmp_path, epochs=2, resume=True)
    assert more.calls["validation"] == 2 and more.state("best")["global_step"] == 8
