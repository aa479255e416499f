"""Fast R-CNN and a data set's proposals: computed once, opened, measured, kept in checkpoints, and made on the spot."""

from __future__ import annotations

import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import detkit
from detkit.cli.main import main
from detkit.data import ImageFolder, Shapes
from detkit.detectors import ProposalSettings
from detkit.detectors.proposals import GivenProposals
from detkit.engine.checkpoints import read_checkpoint
from detkit.errors import ConfigError, DataError
from detkit.proposals import ProposalMethod, ProposalStore, SelectiveSearch, SlidingWindows, StoredRPN
from detkit.proposals.compute import load_or_compute
from detkit.settings import construct
from detkit.training import box_statistics
from tests.proposals.stores import write_store

from .conftest import assert_same, differing, sample
from .test_fast_rcnn import COMMON

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in ("overridden `transfer_batch_to_device`", "Checkpoint directory", "The dirpath has changed")
]


class Search:
    """Stands for selective search: boxes of the image's own, and how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: np.ndarray, mode: str = "fast", seed: int = 0, **others: Any) -> np.ndarray:
        self.calls += 1
        height, width = image.shape[:2]
        random = np.random.default_rng((seed, int(image.sum())))
        corner = random.random((30, 2)) * [width, height] * 0.7
        sides = (0.1 + 0.5 * random.random((30, 2))) * [width, height]
        boxes = np.concatenate((corner, np.minimum(corner + sides, [width, height])), axis=1)
        return np.round(boxes).astype(np.float32)[: 30 if mode == "fast" else 5]


@dataclass(frozen=True)
class Halves(ProposalMethod):
    """A user's own: the left and the right part of an image."""

    share: float = 0.5

    def __call__(self, image: np.ndarray, image_id: Any = None) -> np.ndarray:
        height, width = image.shape[:2]
        return np.array([[0, 0, width * self.share, height], [width * self.share, 0, width, height]])


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search:
    search = Search()
    monkeypatch.setattr("detkit.proposals.methods.selective_search", search)
    return search


@pytest.fixture
def data(tmp_path: Path) -> Shapes:
    """8 pictures to train on, 3 to validate, 3 to test; nothing but what a test puts there beside them."""
    return Shapes(str(tmp_path / "shapes"), 8, 3, 3, 64, batch_size=2, num_workers=0)


def fast(**options: Any) -> detkit.FastRCNN:
    torch.manual_seed(0)
    return construct(detkit.FastRCNN, COMMON | options)


def proposals(method: ProposalMethod = SelectiveSearch(), path: Path | None = None, **options: Any) -> dict[str, Any]:
    return {"proposals": ProposalSettings(method, None if path is None else str(path), **options)}


def computed(data: Shapes, split: str, settings: ProposalSettings = ProposalSettings()) -> ProposalStore:
    return load_or_compute(settings.task(data.annotations(split), split), progress=False)


def stores(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.rglob("*.proposals"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_boxes": (0, 5)}, "proposals.max_boxes: 0 must be at least 1"),
        ({"method": "edge_boxes"}, "proposals.method 'edge_boxes' must be an object of a ProposalMethod"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProposalSettings(**options)


# -- a fit -------------------------------------------------------------------------------------


def test_a_fit_computes_what_is_missing_once(
    search: Search, data: Shapes, trainer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = trainer(max_epochs=1, log_every_n_steps=1)
    runner.fit(fast(), datamodule=data)
    assert search.calls == 8 + 3
    assert stores(tmp_path / "shapes/proposals") == ["train", "val"]
    assert "proposals of 8 images" in capsys.readouterr().out
    assert 0 < runner.callback_metrics["train/proposal_recall_50"] <= 1
    assert {"val/loss_classifier", "val/loss_box_reg", "val/map"} <= set(runner.callback_metrics)
    runner.fit(fast(), datamodule=Shapes(data.path, 8, 3, 3, 64, batch_size=2, num_workers=0))
    assert search.calls == 8 + 3
    runner.test(fast(), datamodule=data, verbose=False)
    assert search.calls == 8 + 3 + 3
    runner.predict(fast(), datamodule=data)
    assert search.calls == 8 + 3 + 3


def test_without_validation_its_proposals_are_not_made(search: Search, data: Shapes, trainer: Any) -> None:
    trainer(max_steps=1, limit_val_batches=0).fit(fast(), datamodule=data)
    assert search.calls == 8


def test_other_options_have_stores_of_their_own(search: Search, data: Shapes, trainer: Any, tmp_path: Path) -> None:
    seen: list[int] = []

    class Counting(detkit.FastRCNN):
        def propose(self, batch: Any, encoded: Any) -> Any:
            seen.extend(len(one["proposals"]) for one in batch)
            return super().propose(batch, encoded)

    for method, count in ((SelectiveSearch(), 30), (SelectiveSearch("single"), 5), (Halves(), 2), (Halves(0.25), 2)):
        trainer(max_steps=1, limit_val_batches=0).fit(construct(Counting, COMMON | proposals(method)), datamodule=data)
        assert seen[-2:] == [count] * 2
    assert stores(tmp_path) == ["train"] * 4 and search.calls == 16


@pytest.mark.parametrize("which", ["file", "folder"])
def test_proposals_from_a_path(search: Search, data: Shapes, trainer: Any, tmp_path: Path, which: str) -> None:
    path = tmp_path / "elsewhere"
    if which == "file":
        data.prepare_data()
        path = tmp_path / "mine.proposals"
        computed(data, "train", ProposalSettings(SelectiveSearch(seed=77), str(path)))
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(fast(**proposals(path=path)), datamodule=data)
    assert search.calls == 8
    assert not (tmp_path / "shapes/proposals").exists()
    if which == "file":  # it holds the training split's
        with pytest.raises(DataError, match=r"mine\.proposals.*3 have none"):
            runner.test(fast(**proposals(path=path)), datamodule=data)


def test_a_folder_that_only_a_checkpoint_names_is_not_begun(
    search: Search, data: Shapes, trainer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(fast(**proposals(path=folder)), datamodule=data)
    runner.save_checkpoint(tmp_path / "one.ckpt")
    model, calls = detkit.load(tmp_path / "one.ckpt"), search.calls
    trainer().test(model, datamodule=data, verbose=False)
    assert stores(folder) == ["test", "train"] and search.calls == calls + 3
    shutil.rmtree(folder)
    model = detkit.load(tmp_path / "one.ckpt")
    with pytest.raises(ConfigError, match=r"elsewhere: only the checkpoint names this folder.*--split test"):
        trainer().test(model, datamodule=data, verbose=False)
    assert not folder.exists()


def test_no_command_begins_a_folder_that_only_a_checkpoint_names(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(CONFIG)
    assert main(["fit", "--config", "small.yaml"]) == 0
    path = Path("runs/small/version_0/checkpoints/last.ckpt")
    content = read_checkpoint(path)
    calls = search.calls
    for name in ("theirs", str(tmp_path / "theirs")):
        content["hyper_parameters"]["proposals"]["path"] = name
        torch.save(content, path)
        for args in (["test"], ["fit", "--trainer.max_epochs", "2"]):
            assert main([*args, "--ckpt_path", str(path)]) == 2
            assert "theirs: only the checkpoint names this folder, which holds no proposals" in capsys.readouterr().err
    assert not Path("theirs").exists() and search.calls == calls
    assert main(["test", "--ckpt_path", str(path), "--model.proposals.path", "mine"]) == 0
    assert stores(Path("mine")) == ["test"] and not Path("theirs").exists()


def test_images_are_added_to_a_fits_own_store_alone(search: Search, data: Shapes, tmp_path: Path) -> None:
    data.prepare_data()
    few = Shapes(data.path, 8, 3, 3, 64)
    names = tmp_path / "shapes/ImageSets/Main/train.txt"
    every = names.read_text()
    names.write_text("".join(every.splitlines(keepends=True)[1:]))
    for settings, calls in ((ProposalSettings(), 8), (ProposalSettings(path=str(tmp_path / "elsewhere")), 7)):
        search.calls = 0
        given = GivenProposals(settings)
        given.compute(few.annotations("train"), "train")
        assert search.calls == 7
        if calls == 7:  # another data set of the user's may keep its stores there
            with pytest.raises(DataError, match="1 have none"):
                given.compute(data_with(data, names, every).annotations("train"), "train")
        else:
            given.compute(data_with(data, names, every).annotations("train"), "train")
            names.write_text("".join(every.splitlines(keepends=True)[1:]))
        assert search.calls == calls


def data_with(data: Shapes, names: Path, text: str) -> Shapes:
    names.write_text(text)
    return Shapes(data.path, 8, 3, 3, 64)


def test_a_store_that_is_not_there_is_no_folder(search: Search, data: Shapes, trainer: Any, tmp_path: Path) -> None:
    path = tmp_path / "mien.proposals"
    with pytest.raises(DataError, match=r"mien\.proposals: no such store"):
        trainer(max_steps=1).fit(fast(**proposals(path=path)), datamodule=data)
    assert search.calls == 0 and not path.exists()


def test_proposals_that_the_user_gave_are_used(search: Search, data: Shapes, trainer: Any) -> None:
    data.prepare_data()
    box = np.array([[1, 2, 30, 40]], np.float32)
    mine = {data.annotations("train").image_id(i): box for i in range(8)}
    data.use_proposals({"train": mine})
    model = fast(box_normalization="per_class")
    trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=data)
    assert search.calls == 0 and data.proposals["train"] is mine
    assert data.dataset("train")[0]["proposals"].shape == (1, 4)


def test_an_rpns_proposals_come_from_its_stores(search: Search, data: Shapes, trainer: Any, tmp_path: Path) -> None:
    model = fast(**proposals(StoredRPN(), tmp_path / "rpn"))
    runner = trainer(max_steps=1, limit_val_batches=0)
    with pytest.raises(DataError, match=r"rpn: holds no stores of StoredRPN proposals for train.*detkit propose"):
        runner.fit(model, datamodule=data)
    ids = data.annotations("train").image_ids
    for most in (300, 9):
        made = asdict(StoredRPN(most, "0123", "32-true"))
        path = tmp_path / f"rpn/train-StoredRPN-{most}.proposals"
        write_store(path, ids, [[[0, 0, most / 10, 9]]] * 8, (64, 64), "StoredRPN", made)
    with pytest.raises(DataError, match="holds 2 stores of StoredRPN proposals"):
        runner.fit(model, datamodule=data)
    model = fast(**proposals(StoredRPN(300), tmp_path / "rpn"))
    runner.fit(model, datamodule=data)
    with pytest.raises(ConfigError, match="StoredRPN makes none from pixels"):
        model.predict(sample(64, 64)["image"])


def test_a_split_without_annotations_is_searched_on_the_spot(
    search: Search, data: Shapes, trainer: Any, tmp_path: Path
) -> None:
    data.prepare_data()
    folder = next((tmp_path / "shapes").rglob("JPEGImages"))
    predicted = trainer().predict(fast(), datamodule=ImageFolder(str(folder), num_workers=0))
    assert search.calls == len(predicted) == 14
    assert stores(tmp_path) == []


def test_a_fast_dev_run_computes_no_store_but_uses_one(
    search: Search, data: Shapes, trainer: Any, tmp_path: Path
) -> None:
    model = fast(box_normalization="per_class")
    trainer(fast_dev_run=True).fit(model, datamodule=data)
    assert stores(tmp_path) == [] and model.roi_heads.normalizer.known
    assert search.calls == 2 + 2 + 2 * 2  # statistics, a step of training, losses and detections of one of validation
    computed(data, "train")
    search.calls = 0
    trainer(fast_dev_run=True).fit(fast(box_normalization="per_class"), datamodule=data)
    assert search.calls == 2 * 2 and stores(tmp_path) == ["train"]
    with pytest.raises(DataError, match=r"mien\.proposals: no such store"):
        trainer(fast_dev_run=True).fit(fast(**proposals(path=tmp_path / "mien.proposals")), datamodule=data)


# -- on the spot -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SelectiveSearch(), SlidingWindows(stride=16), SelectiveSearch("single"), Halves()])
@torch.no_grad()
def test_images_without_proposals_have_those_of_the_store(
    search: Search, data: Shapes, trainer: Any, method: ProposalMethod
) -> None:
    model = fast(**proposals(method))
    trainer().test(model, datamodule=data, verbose=False)  # makes the store
    model.eval()
    data.use_proposals({"test": computed(data, "test", model.given.settings)})
    for i in range(3):
        one = data.dataset("test")[i]
        (found,) = model.given.of_images([one["image"]], [one["image_id"]])
        torch.testing.assert_close(found, one["proposals"], atol=1 / 16, rtol=0)
        assert len(found) > 1
        bare = {name: value for name, value in one.items() if name != "proposals"}
        if isinstance(method, SelectiveSearch):  # no box lies between eighths of pixels
            assert_same(model.detect([bare])[0], model.detect([one])[0], 0)


OWN = {"colour_spaces": ["lab"], "ks": [50], "strategies": [["fill"]], "min_sizes": [20]}


@pytest.mark.parametrize("options", [{"parameters": OWN}, {"parameters": "paper"}, {"resize_width": 40}])
def test_real_search_of_an_image_is_that_of_its_store(data: Shapes, options: dict[str, Any]) -> None:
    data.prepare_data()
    given = GivenProposals(ProposalSettings(SelectiveSearch(**options)))
    store = given.compute(data.annotations("val"), "val")
    samples = [data.dataset("val")[i] for i in range(3)]
    found = given.of_images([one["image"] for one in samples], [one["image_id"] for one in samples])
    for one, boxes in zip(samples, found, strict=True):
        assert len(boxes) > 2
        torch.testing.assert_close(torch.from_numpy(store[one["image_id"]]), boxes, atol=1 / 8, rtol=0)
        assert torch.equal(given.of_images([one["image"]], [one["image_id"]])[0], boxes)


@torch.no_grad()
def test_a_batch_of_images_without_proposals_is_searched_side_by_side(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=30)  # broken where one image waits for the other to be done

    def meet(image: np.ndarray, **options: Any) -> np.ndarray:
        both.wait()
        return search(image, **options)

    monkeypatch.setattr("detkit.proposals.methods.selective_search", meet)
    monkeypatch.setattr("detkit.detectors.proposals.available_cores", lambda: 2)
    model = fast(**proposals(SelectiveSearch(seed=5))).eval()
    images = [sample(64, 64)["image"], sample(64, 80)["image"]]
    own = sample(64, 64) | {"proposals": torch.tensor([[1.0, 2, 30, 40]])}
    batch = [{"image": images[0]}, own, {"image": images[1]}]
    found = model.propose(batch, model.encode(batch))
    assert len(found[1].boxes) == 1 and search.calls == 2
    for i, image in ((0, images[0]), (2, images[1])):
        assert torch.equal(found[i].boxes, torch.from_numpy(search(image.permute(1, 2, 0).numpy(), seed=5)))


# -- statistics --------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("difficult", [True, False])
def test_statistics_are_measured_before_a_fit_and_kept(
    search: Search, data: Shapes, trainer: Any, tmp_path: Path, flip: bool, difficult: bool
) -> None:
    data = Shapes(data.path, 8, 3, 3, 64, batch_size=2, num_workers=0, transforms=None if flip else [])
    model = fast(box_normalization="per_class", train_on_difficult=difficult, **proposals(max_boxes=(20, 30)))
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(model, datamodule=data)
    runner.save_checkpoint(tmp_path / "one.ckpt")

    split, images = data.annotations("train"), []
    for i in range(len(split)):
        fields = {name: torch.from_numpy(value) for name, value in split.fields(i).items()}
        store = computed(data, "train")
        keep = torch.ones_like(fields["difficult"]) if difficult else ~fields["difficult"]
        boxes = torch.from_numpy(store[split.image_id(i)])[:20]
        images.append((boxes, fields["boxes"][keep], fields["labels"][keep]))
    assert split.difficult.any()
    expected = box_statistics(images, 5, mirrored=flip)
    loaded = detkit.load(tmp_path / "one.ckpt")
    for name, value in expected._asdict().items():
        assert torch.equal(getattr(model.roi_heads.normalizer, name), value)
        assert torch.equal(getattr(loaded.roi_heads.normalizer, name), value)
    arguments = read_checkpoint(tmp_path / "one.ckpt")["hyper_parameters"]
    assert arguments["box_normalization"] == "per_class" and arguments["proposals"]["max_boxes"] == [20, 30]
    image = sample(64, 80)["image"]
    assert_same(loaded.predict(image), model.predict(image), 0)


def test_weights_keep_the_statistics_they_were_trained_with(
    search: Search, data: Shapes, trainer: Any, tmp_path: Path
) -> None:
    model = fast(box_normalization="per_class")
    known = box_statistics([(torch.rand(9, 4), torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([1]))], 5)
    model.roi_heads.normalizer.set(known)
    trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=data)
    assert torch.equal(model.roi_heads.normalizer.count, known.count)


def test_statistics_need_a_training_set(data: Shapes, search: Search, trainer: Any) -> None:
    data.prepare_data()
    data.setup("fit")
    model = fast(box_normalization="per_class")
    with pytest.raises(ConfigError, match="needs the statistics of the training set"):
        trainer(max_steps=1, limit_val_batches=0).fit(model, data.train_dataloader())
    fixed = fast()
    trainer(max_steps=1, limit_val_batches=0).fit(fixed, data.train_dataloader())
    assert search.calls == 2  # on the spot


def test_a_run_that_was_stopped_goes_on_exactly(search: Search, data: Shapes, trainer: Any, tmp_path: Path) -> None:
    def run(folder: str, epochs: int, ckpt_path: Path | None = None) -> detkit.FastRCNN:
        model = fast(box_normalization="per_class", roi__dropout=0.25, optim__schedule="constant")
        last = ModelCheckpoint(tmp_path / folder, "end", every_n_epochs=1, save_on_train_epoch_end=True)
        torch.manual_seed(1)
        runner = trainer(max_epochs=epochs, callbacks=[last], limit_val_batches=0)
        runner.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return model

    whole, _ = run("whole", 2), run("half", 1)
    resumed = run("rest", 2, tmp_path / "half/end.ckpt")
    assert resumed.roi_heads.normalizer.known
    assert not differing(whole.state_dict(), resumed.state_dict())


# -- the command line --------------------------------------------------------------------------

CONFIG = """
model:
  class_path: FastRCNN
  init_args:
    {backbone: tiny, features: {fpn: false}, image: {min_size: 64, max_size: 64}, optim: {lr: 0.01},
     roi: {pooling: max, pool_size: 3, head_channels: 16, batch_size: 16, background_iou: [0.1, 0.5]},
     box_normalization: per_class, dedup_stride: 8, test_sizes: [48, 64], test_max_size: 96,
     detection: {max_candidates: 20, score_threshold: 0.0},
     proposals: {method: {class_path: SelectiveSearch, init_args: {seed: 3}}}}
data:
  class_path: Shapes
  init_args: {path: shapes, num_train: 6, num_val: 3, num_test: 3, image_size: 64, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 1}
"""


def test_from_fit_to_compress_by_the_command_line(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(CONFIG)
    assert main(["fit", "--config", "small.yaml", "--trainer.fast_dev_run", "true"]) == 0
    assert stores(tmp_path) == [] and not Path("runs").exists()
    search.calls = 0
    assert main(["fit", "--config", "small.yaml", "--model.proposals.max_boxes", "[null, 15]"]) == 0
    assert stores(tmp_path) == ["train", "val"] and search.calls == 6 + 3
    assert main(["test", "--ckpt_path", "runs/small"]) == 0
    assert search.calls == 6 + 3 + 3
    assert main(["compress", "--ckpt_path", "runs/small", "--rank", "fc6=4,fc7=4"]) == 0
    best = Path("runs/small/version_0/checkpoints/best_svd.ckpt")
    assert main(["test", "--ckpt_path", str(best)]) == 0
    photos = str(next(Path("shapes").rglob("JPEGImages")))
    assert main(["predict", "--ckpt_path", str(best), "--data", "ImageFolder", "--data.path", photos]) == 0
    assert search.calls == 6 + 3 + 3 + 12
    model = detkit.load(best)
    assert model.hparams["roi"]["svd_ranks"] == {"fc6": 4, "fc7": 4} and model.roi_heads.normalizer.known
    assert model.given.settings == ProposalSettings(SelectiveSearch(seed=3), max_boxes=(None, 15))
    assert capsys.readouterr().err == ""
