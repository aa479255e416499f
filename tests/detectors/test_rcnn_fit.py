"""A whole fit of R-CNN: its stages, their checkpoints, and a kill in each of them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch

import detkit
from detkit.cli.checkpointing import BestCheckpoint, LastCheckpoint
from detkit.data import Shapes
from detkit.detectors import rcnn_stages
from detkit.detectors.ablation import Ablation
from detkit.detectors.checkpoints import read_checkpoint
from detkit.detectors.rcnn_stages import STAGES
from detkit.detectors.region_features import RegionFeatures
from detkit.errors import ConfigError
from detkit.evaluation import MeanAveragePrecision

from .conftest import assert_same, differing
from .rcnn_parts import rcnn, with_proposals

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in (
        *("Checkpoint directory", "The dirpath has changed", "overridden `transfer_batch_to_device`"),
        *("could not find the monitored key", "have no `val_dataloader`", "The ``compute`` method of metric"),
    )
]
Calls = Counter[str]


class Stop(L.Callback):
    """Breaks off in a training step, as a killed run does."""

    def __init__(self, calls: Calls, step: int | None) -> None:
        self.calls, self.step = calls, step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.calls["step"] += 1
        if trainer.global_step == self.step:
            raise InterruptedError("killed")


class Fitted(NamedTuple):
    """A fit that came to its end, or was killed."""

    model: detkit.RCNN
    folder: Path
    calls: Calls
    metrics: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def state(self, name: str = "last") -> dict[str, Any]:
        return read_checkpoint(self.checkpoints / f"{name}.ckpt")

    @property
    def feature_files(self) -> list[Path]:
        return list(self.folder.rglob("*.features"))


Fit = Callable[..., Fitted]
#: (where to kill: what is counted, and at which call) -> what the resumed fit still does
KILLS = {
    "fine-tuning": (("step", 6), {"step": 4, "features": 8, "SVMs": 1, "boxes": 1, "validation": 2}),
    "features": (("features", 4), {"features": 5, "SVMs": 1, "boxes": 1, "validation": 2}),
    "SVMs": (("SVMs", 1), {"SVMs": 1, "boxes": 1, "validation": 2}),
    "box regressors": (("boxes", 1), {"boxes": 1, "validation": 2}),
    "comparison": (("validation", 2), {"validation": 2}),
}


@pytest.fixture(scope="module")
def fit(shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer]) -> Fit:
    """`fit(folder, kill=None, resume=False, model=None, epochs=2, validate=True, limit=None, **options)`.

    2 epochs of 4 steps on 8 images, validation of 3 images in 2 batches; `kill` is (what, which call of it).
    """

    def run(
        folder: Path,
        kill: tuple[str, int] | None = None,
        resume: bool = False,
        model: detkit.RCNN | None = None,
        epochs: int = 2,
        validate: bool = True,
        limit: int | None = None,
        **options: Any,
    ) -> Fitted:
        calls: Calls = Counter()

        def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **given: Any) -> Any:
                calls[name] += 1
                if kill == (name, calls[name]):
                    raise InterruptedError("killed")
                return function(*args, **given)

            return call

        best = BestCheckpoint()
        best.dirpath = str(folder / "checkpoints")
        stop = Stop(calls, kill[1] if kill is not None and kill[0] == "step" else None)
        runner = trainer(
            max_epochs=epochs,
            default_root_dir=str(folder),
            enable_checkpointing=True,
            callbacks=[stop, best, LastCheckpoint(folder / "checkpoints")],
            **({"limit_val_batches": limit} if validate else {"limit_val_batches": 0}),
        )
        model = model or rcnn(**options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PL_GLOBAL_SEED", "5")
            patch.setattr(RegionFeatures, "_write", counted("features", RegionFeatures._write))
            patch.setattr(rcnn_stages, "learn_svms", counted("SVMs", rcnn_stages.learn_svms))
            patch.setattr(rcnn_stages, "learn_boxes", counted("boxes", rcnn_stages.learn_boxes))
            patch.setattr(Ablation, "update", counted("validation", Ablation.update))
            torch.manual_seed(5)
            ckpt_path = str(folder / "checkpoints/last.ckpt") if resume else None
            data = with_proposals(shapes(seed=5))
            try:
                runner.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
            except InterruptedError:
                assert kill is not None
                kill = None
        assert kill is None, f"{kill} was never reached"
        return Fitted(model, folder, calls, dict(runner.callback_metrics))

    return run


@pytest.fixture(scope="module")
def whole(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """An uninterrupted fit."""
    return fit(tmp_path_factory.mktemp("whole"))


# -- the stages --------------------------------------------------------------------------------


def test_stages_run_in_their_order_and_each_leaves_a_checkpoint(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, str, bool, bool]] = []
    save = LastCheckpoint._save

    def watched(self: LastCheckpoint, trainer: L.Trainer) -> None:
        save(self, trainer)
        content = read_checkpoint(self.path)
        trained = [bool(content["state_dict"][f"roi_heads.{p}.trained"].any()) for p in ("svms", "box_regressors")]
        told.append((content["detkit"]["stage"], content["detkit"]["class"], *trained))

    monkeypatch.setattr(LastCheckpoint, "_save", watched)
    found = fit(tmp_path)
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


def test_best_is_the_complete_detector(whole: Fitted) -> None:
    best, last = whole.state("best"), whole.state("last")
    assert not differing(best["state_dict"], last["state_dict"])
    assert not differing(best["state_dict"], whole.model.state_dict())
    assert best["detkit"]["stage"] == "comparison"
    assert best["state_dict"]["roi_heads.svms.trained"].any()
    assert str(detkit.load(whole.checkpoints / "best.ckpt").roi_heads.variant) == "SVM + boxes"
    kept = best["callbacks"][next(name for name in best["callbacks"] if name.startswith("BestCheckpoint"))]
    assert kept["best_model_score"] == whole.metrics["val/map"]


def test_the_metric_told_last_is_that_of_the_complete_detector(whole: Fitted, shapes: Any, trainer: Any) -> None:
    (found,) = trainer().validate(whole.model, datamodule=with_proposals(shapes()), verbose=False)
    assert found["val/map"] == pytest.approx(float(whole.metrics["val/map"]), abs=1e-6)
    assert found["val/map_50"] == pytest.approx(float(whole.metrics["val/map_50"]), abs=1e-6)


def test_features_are_gone_afterwards(whole: Fitted) -> None:
    assert sorted(path.name for path in whole.folder.iterdir()) == ["checkpoints", "svm_mining.csv"]


def test_features_stay_where_they_are_wanted(whole: Fitted, fit: Fit, tmp_path: Path) -> None:
    found = fit(tmp_path, keep_features=True)
    assert len(found.feature_files) == 8 and found.feature_files[0].parents[1] == tmp_path / "features"
    assert not differing(found.model.state_dict(), whole.model.state_dict())


def test_without_fc7_on_disk_the_same_comes_out(whole: Fitted, fit: Fit, tmp_path: Path) -> None:
    found = fit(tmp_path, feature_budget=0.0003)  # 300 kB
    assert found.calls == whole.calls
    ours, theirs = found.model.state_dict(), whole.model.state_dict()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_the_mining_is_written_down(whole: Fitted) -> None:
    lines = (whole.folder / "svm_mining.csv").read_text().splitlines()
    names = lines[0].split(",")
    assert names[0] == "class" and {"image", "added", "evicted", "kept", "objective"} <= set(names)
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    trained = whole.model.roi_heads.svms.trained
    expected = {name for name, known in zip(whole.model.class_names, trained, strict=True) if known}
    assert {row["class"] for row in rows} == expected and rows[-1]["image"] == "-1"
    for row in rows:
        parts = sum(float(row[part]) for part in ("positive", "negative", "regularization"))
        assert float(row["objective"]) == pytest.approx(parts, rel=1e-4)


# -- kills -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", KILLS)
def test_a_kill_in_any_stage_changes_nothing(whole: Fitted, fit: Fit, tmp_path: Path, stage: str) -> None:
    kill, left = KILLS[stage]
    killed = fit(tmp_path, kill=kill)
    reached = "fine-tuning" if stage == "features" else stage
    before = STAGES[max(STAGES.index(reached) - 1, 0)]
    assert killed.state()["detkit"]["stage"] == (before if reached != "fine-tuning" else "fine-tuning")
    resumed = fit(tmp_path, resume=True)
    assert resumed.calls == left
    assert resumed.state()["detkit"]["stage"] == "comparison"
    assert not differing(whole.model.state_dict(), resumed.model.state_dict())
    for name in ("best", "last"):
        assert not differing(whole.state()["state_dict"], resumed.state(name)["state_dict"])
    assert resumed.metrics["val/map"] == whole.metrics["val/map"]
    assert not resumed.feature_files and not (tmp_path / "features").exists()


def test_a_finished_fit_has_nothing_left(whole: Fitted, fit: Fit, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    again = fit(tmp_path, resume=True)
    assert not again.calls and not differing(whole.model.state_dict(), again.model.state_dict())


def test_more_epochs_make_what_was_learnt_on_the_features_stale(whole: Fitted, fit: Fit, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    killed = fit(tmp_path, resume=True, epochs=3, kill=("features", 1))
    assert killed.calls["step"] == 4
    last = killed.state()
    assert last["detkit"]["stage"] == "fine-tuning"
    assert not any(last["state_dict"][f"roi_heads.{p}.trained"].any() for p in ("svms", "box_regressors"))
    assert str(detkit.load(killed.checkpoints / "last.ckpt").roi_heads.variant) == "softmax"
    more = fit(tmp_path, resume=True, epochs=3)
    assert more.calls == {"features": 8, "SVMs": 1, "boxes": 1, "validation": 2}
    assert {"roi_heads.svms.weight", "network.top.1.weight"} <= set(
        differing(whole.model.state_dict(), more.model.state_dict())
    )
    assert not differing(more.state("best")["state_dict"], more.model.state_dict())


@pytest.mark.parametrize("keep", [False, True])
def test_features_of_the_network_as_it_was_do_not_stay(fit: Fit, tmp_path: Path, keep: bool) -> None:
    """Killed while the SVMs learn, gone on with by more fine-tuning, and killed again."""
    fit(tmp_path, kill=("SVMs", 1), keep_features=keep)
    (before,) = (tmp_path / "features").iterdir()
    # Another fit's in the same place, and what is no features at all.
    others = {tmp_path / "features" / name for name in ("other-0", before.name[1:], "mine")}
    for path in others:
        path.mkdir()
    fit(tmp_path, resume=True, epochs=3, kill=("features", 2), keep_features=keep)
    left = set((tmp_path / "features").iterdir()) - others
    assert len(left) == 1 + keep and (before in left) == keep
    again = fit(tmp_path, resume=True, epochs=3, keep_features=keep)
    assert again.calls["features"] == 7  # what was computed of the new network is used
    assert set((tmp_path / "features").iterdir()) == others | (left if keep else set())


def test_two_fits_in_one_place_have_features_of_their_own(fit: Fit, tmp_path: Path) -> None:
    first = fit(tmp_path, kill=("SVMs", 1))
    second = fit(tmp_path, kill=("SVMs", 1))
    assert first.model.run_id != second.model.run_id and len(second.feature_files) == 16
    fit(tmp_path, resume=True)
    assert [path.parent.name[:8] for path in first.feature_files] == [first.model.run_id] * 8


def test_a_loaded_detector_that_learns_more_begins_anew(whole: Fitted, fit: Fit, tmp_path: Path) -> None:
    model = detkit.load(whole.checkpoints / "best.ckpt")
    assert model.stage == "comparison"
    found = fit(tmp_path, model=model, epochs=1)
    assert found.calls == {"step": 4, "features": 8, "SVMs": 1, "boxes": 1, "validation": 2}


def test_from_a_fit_without_validation_to_one_with(fit: Fit, tmp_path: Path) -> None:
    first = fit(tmp_path, epochs=1, validate=False)
    assert first.calls == {"step": 4, "features": 8, "SVMs": 1, "boxes": 1}
    assert first.state("best")["detkit"]["stage"] == first.state()["detkit"]["stage"] == "comparison"
    more = fit(tmp_path, epochs=2, resume=True)
    assert more.calls["validation"] == 2 and more.state("best")["global_step"] == 8


# -- fewer stages ------------------------------------------------------------------------------


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
    fit: Fit, tmp_path: Path, options: dict[str, Any], calls: dict[str, int], variant: str
) -> None:
    found = fit(tmp_path, epochs=1, **options)
    assert found.calls == {"step": 4} | calls
    assert str(found.model.roi_heads.variant) == variant
    assert found.state("best")["detkit"]["stage"] == ("comparison" if calls else "fine-tuning")
    assert not (tmp_path / "features").exists()


def test_regressors_alone_want_no_features_of_all_regions(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, epochs=1, classifier="softmax")
    assert "features of ground truth and the regressors' examples" in capsys.readouterr().out


def test_svms_alone_want_no_examples_for_regressors(fit: Fit, tmp_path: Path) -> None:
    found = fit(tmp_path, epochs=1, box_regression=False, keep_features=True)
    # fc7 of at most 40 regions and some objects of 8 images in half precision, and no pool5.
    assert 0 < sum(path.stat().st_size for path in found.feature_files) < 8 * (50 * 84 * 2 + 512)


# -- checkpoints -------------------------------------------------------------------------------


@torch.no_grad()
def test_a_checkpoint_predicts_what_the_model_did(whole: Fitted, shapes: Callable[..., Shapes]) -> None:
    loaded, images = detkit.load(whole.checkpoints), [shapes().dataset("test")[i]["image"] for i in range(3)]
    ours, theirs = whole.model.eval().predict(images), loaded.predict(images)
    assert sum(len(found["boxes"]) for found in ours) > 3
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b, 0)


@torch.no_grad()
def test_each_variant_of_a_checkpoint_as_an_evaluation_of_its_own(
    whole: Fitted, shapes: Callable[..., Shapes], trainer: Any, tmp_path: Path
) -> None:
    data = with_proposals(shapes())
    trainer().test(whole.model, datamodule=data, verbose=False)
    rows = whole.model.last_metrics["ablation"]
    assert [row["variant"] for row in rows if row["used"]] == ["SVM + boxes"]
    numbers = []
    for row, (classifier, boxes) in zip(rows, [(c, b) for c in ("softmax", "svm") for b in (False, True)], strict=True):
        content = whole.state()
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
        assert row["gain"] == row["map"] - rows[0]["map"]
        numbers.append(row["map_50"])
    assert len(set(numbers)) > 1
    assert whole.model.last_metrics["map"] == pytest.approx(rows[3]["map"], abs=1e-9)


@torch.no_grad()
def test_the_limit_over_the_set_is_one_of_the_test(
    whole: Fitted, shapes: Callable[..., Shapes], trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_proposals(shapes())
    model = detkit.load(whole.checkpoints)
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


# -- what cannot be fitted ---------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"classifier": "softmax"}, {"box_regression": False}])
def test_plain_loaders_are_refused_before_the_first_step(
    shapes: Callable[..., Shapes], trainer: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    data = with_proposals(shapes())
    loader = torch.utils.data.DataLoader(data.dataset("train"), batch_size=2, collate_fn=list)
    calls: Calls = Counter()
    runner = trainer(max_epochs=1, default_root_dir=str(tmp_path), callbacks=[Stop(calls, None)])
    with pytest.raises(ConfigError, match=r"fit with trainer.fit.model, datamodule., or set classifier: softmax"):
        runner.fit(rcnn(**options), loader)
    assert not calls
    model = rcnn(classifier="softmax", box_regression=False)
    runner = trainer(max_epochs=1, default_root_dir=str(tmp_path), callbacks=[Stop(calls, None)])
    runner.fit(model, loader)
    assert calls["step"] == 4


def test_a_class_without_positives_is_not_available_and_never_fires(
    fit: Fit, tmp_path: Path, shapes: Callable[..., Shapes], capsys: pytest.CaptureFixture[str]
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
        found = fit(tmp_path, epochs=1)
    heads, star = found.model.roi_heads, found.model.class_names.index("star")
    assert not heads.svms.trained[star] and not heads.box_regressors.trained[star]
    assert heads.svms.trained.sum() == heads.box_regressors.trained.sum() > 1
    assert "n/a for want of examples: star" in capsys.readouterr().out
    data = with_proposals(shapes())
    detections = found.model.eval().detect([data.dataset("test")[i] for i in range(3)])
    labels = torch.cat([d["labels"] for d in detections])
    assert len(labels) > 3 and star + 1 not in labels


def test_a_budget_that_is_too_small_is_told_before_the_first_step(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="feature_budget 1e-06 GB"):
        fit(tmp_path, model=rcnn(feature_budget=1e-6))
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("features"))


def test_the_comparison_reads_as_much_as_a_validation_does(fit: Fit, tmp_path: Path) -> None:
    assert fit(tmp_path, limit=1).calls["validation"] == 1


def test_what_is_asked_for_and_not_trained_is_said(
    fit: Fit, tmp_path: Path, trainer: Any, shapes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fit(tmp_path, epochs=1, classifier="softmax").model
    model.roi_heads.settings.classifier = "svm"
    for name in ("validate", "test", "predict"):
        capsys.readouterr()
        getattr(trainer(), name)(model, datamodule=with_proposals(shapes(seed=5)))
        assert "asked for SVM + boxes; what is trained is used: softmax + boxes" in capsys.readouterr().out
