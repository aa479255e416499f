"""Fast R-CNN and a data set's proposals: computed once, opened, measured, kept in checkpoints, and made on the spot."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import detkit
from detkit.cli.main import main
from detkit.data import ImageFolder, Shapes, proposal_methods
from detkit.data.proposals import default_store_path, load_or_compute
from detkit.engine.checkpoints import read_checkpoint
from detkit.errors import ConfigError, DataError
from detkit.settings import construct
from detkit.training import box_statistics

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

    def __call__(self, image: Any, mode: str = "fast", seed: int = 0, max_boxes: int | None = None) -> np.ndarray:
        self.calls += 1
        pixels = image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else image
        height, width = pixels.shape[:2]
        random = np.random.default_rng((seed, int(pixels.sum())))
        corner = random.random((30, 2)) * [width, height] * 0.7
        sides = (0.1 + 0.5 * random.random((30, 2))) * [width, height]
        boxes = np.concatenate((corner, np.minimum(corner + sides, [width, height])), axis=1)
        return np.round(boxes).astype(np.float32)[: 30 if mode == "fast" else 5]


def windows(size: tuple[int, int], stride: float = 0.5) -> np.ndarray:
    height, width = size
    return np.array([[0, 0, width * stride, height], [width * stride, 0, width, height]], np.float32)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search:
    search = Search()
    functions = {"selective_search": search, "sliding_window": windows}
    monkeypatch.setattr(proposal_methods, "function_of", lambda name: functions[name])
    return search


@pytest.fixture
def data(tmp_path: Path) -> Shapes:
    """8 pictures to train on, 3 to validate, 3 to test; nothing but what a test puts there beside them."""
    return Shapes(str(tmp_path / "shapes"), 8, 3, 3, 64, batch_size=2, num_workers=0)


def fast(**options: Any) -> detkit.FastRCNN:
    torch.manual_seed(0)
    return construct(detkit.FastRCNN, COMMON | options)


def stores(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.rglob("*.proposals"))


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

    for mode, count in (("fast", 30), ("single", 5)):
        trainer(max_steps=1, limit_val_batches=0).fit(
            construct(Counting, COMMON | {"proposal_mode": mode}), datamodule=data
        )
        assert seen[-2:] == [count] * 2
    assert stores(tmp_path) == ["train", "train"]
    trainer(max_steps=1, limit_val_batches=0).fit(
        construct(Counting, COMMON | {"proposal_method": "sliding_window"}), datamodule=data
    )
    assert seen[-2:] == [2, 2] and search.calls == 16


@pytest.mark.parametrize("proposals", ["file", "folder"])
def test_proposals_from_another_place(
    search: Search, data: Shapes, trainer: Any, tmp_path: Path, proposals: str
) -> None:
    place = tmp_path / "elsewhere"
    if proposals == "file":
        data.prepare_data()
        place = tmp_path / "mine.proposals"
        load_or_compute(data.annotations("train"), place, options={"seed": 77}, progress=False)
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(fast(proposals=str(place)), datamodule=data)
    assert search.calls == 8
    assert not (tmp_path / "shapes/proposals").exists()
    if proposals == "file":  # it holds the training split's
        with pytest.raises(DataError, match=r"mine\.proposals.*3 have none"):
            runner.test(fast(proposals=str(place)), datamodule=data)


def test_a_store_that_is_not_there_is_no_folder(search: Search, data: Shapes, trainer: Any, tmp_path: Path) -> None:
    place = tmp_path / "mien.proposals"
    with pytest.raises(DataError, match=r"mien\.proposals: no such store"):
        trainer(max_steps=1).fit(fast(proposals=str(place)), datamodule=data)
    assert search.calls == 0 and not place.exists()


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
    model = fast(proposal_method="rpn", proposals=str(tmp_path / "rpn"))
    runner = trainer(max_steps=1, limit_val_batches=0)
    with pytest.raises(DataError, match=r"rpn: holds no stores of rpn proposals for train.*detkit propose"):
        runner.fit(model, datamodule=data)
    load_or_compute(data.annotations("train"), tmp_path / "rpn/train-rpn-0.proposals", progress=False)
    runner.fit(model, datamodule=data)
    with pytest.raises(ConfigError, match=r"proposal_method: rpn makes none of pixels alone"):
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
    load_or_compute(data.annotations("train"), default_store_path(data.annotations("train"), "train"), progress=False)
    search.calls = 0
    trainer(fast_dev_run=True).fit(fast(box_normalization="per_class"), datamodule=data)
    assert search.calls == 2 * 2 and stores(tmp_path) == ["train"]
    with pytest.raises(DataError, match=r"mien\.proposals: no such store"):
        trainer(fast_dev_run=True).fit(fast(proposals=str(tmp_path / "mien.proposals")), datamodule=data)


# -- on the spot -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"proposal_method": "sliding_window"}, {"proposal_mode": "single"}])
@torch.no_grad()
def test_images_without_proposals_have_those_of_the_store(
    search: Search, data: Shapes, trainer: Any, options: dict[str, Any]
) -> None:
    model = fast(**options)
    trainer().test(model, datamodule=data, verbose=False)  # makes the store
    model.eval()
    made = default_store_path(data.annotations("test"), "test", model.source.method, model.source.options)
    data.use_proposals({"test": load_or_compute(data.annotations("test"), made, method=model.source.method,
                                                options=model.source.options, progress=False)})  # fmt: skip
    for i in range(3):
        one = data.dataset("test")[i]
        found = model.source.of_image(one["image"], one["image_id"])
        assert torch.equal(found, one["proposals"]) and len(found) > 0
        bare = {name: value for name, value in one.items() if name != "proposals"}
        assert_same(model.detect([bare])[0], model.detect([one])[0], 0)


def test_predict_searches_by_the_models_own_settings(search: Search) -> None:
    model = fast(proposal_options={"seed": 5}).eval()
    image = sample(64, 64)["image"]
    assert len(model.predict(image)["boxes"]) > 0 and search.calls == 1
    expected = torch.from_numpy(search(image, seed=5))
    assert torch.equal(model.source.of_image(image), expected)


OWN = {"colour_spaces": ["lab"], "ks": [50], "strategies": [["fill"]], "min_sizes": [20]}


@pytest.mark.parametrize("options", [{"parameters": OWN}, {"parameters": "paper"}, {"resize_width": 40}])
def test_real_search_of_an_image_is_that_of_its_store(data: Shapes, options: dict[str, Any]) -> None:
    data.prepare_data()
    model = fast(proposal_options=options)
    model.source.compute(data.annotations("val"), "val")
    store = model.source.open(data.annotations("val"), "val")
    samples = [data.dataset("val")[i] for i in range(3)]
    found = model.source.of_images([one["image"] for one in samples], [one["image_id"] for one in samples])
    for one, boxes in zip(samples, found, strict=True):
        assert len(boxes) > 2
        torch.testing.assert_close(torch.from_numpy(store[one["image_id"]]), boxes, atol=1 / 8, rtol=0)
        assert torch.equal(model.source.of_image(one["image"], one["image_id"]), boxes)


@torch.no_grad()
def test_a_batch_of_images_without_proposals_is_searched_side_by_side(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=30)  # broken where one image waits for the other to be done

    def meet(image: Any, mode: str = "fast", seed: int = 0) -> np.ndarray:
        both.wait()
        return search(image, mode, seed)

    monkeypatch.setattr(proposal_methods, "function_of", lambda name: meet)
    monkeypatch.setattr("detkit.detectors.proposal_source.available_cores", lambda: 2)
    model = fast().eval()
    images = [sample(64, 64)["image"], sample(64, 80)["image"]]
    own = sample(64, 64) | {"proposals": torch.tensor([[1.0, 2, 30, 40]])}
    batch = [{"image": images[0]}, own, {"image": images[1]}]
    found = model.propose(batch, model.encode(batch))
    assert len(found[1].boxes) == 1 and search.calls == 2
    for i, image in ((0, images[0]), (2, images[1])):
        assert torch.equal(found[i].boxes, torch.from_numpy(search(image)))


# -- statistics --------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("difficult", [True, False])
def test_statistics_are_measured_before_a_fit_and_kept(
    search: Search, data: Shapes, trainer: Any, tmp_path: Path, flip: bool, difficult: bool
) -> None:
    data = Shapes(data.path, 8, 3, 3, 64, batch_size=2, num_workers=0, transforms=None if flip else [])
    model = fast(box_normalization="per_class", train_on_difficult=difficult, max_proposals=(20, 30))
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(model, datamodule=data)
    runner.save_checkpoint(tmp_path / "one.ckpt")

    split, images = data.annotations("train"), []
    for i in range(len(split)):
        fields = {name: torch.from_numpy(value) for name, value in split.fields(i).items()}
        store = load_or_compute(split, default_store_path(split, "train", options={"mode": "fast"}), progress=False)
        keep = torch.ones_like(fields["difficult"]) if difficult else ~fields["difficult"]
        proposals = torch.from_numpy(store[split.image_id(i)])[:20]
        images.append((proposals, fields["boxes"][keep], fields["labels"][keep]))
    assert split.difficult.any()
    expected = box_statistics(images, 5, mirrored=flip)
    loaded = detkit.load(tmp_path / "one.ckpt")
    for name, value in expected._asdict().items():
        assert torch.equal(getattr(model.roi_heads.normalizer, name), value)
        assert torch.equal(getattr(loaded.roi_heads.normalizer, name), value)
    arguments = read_checkpoint(tmp_path / "one.ckpt")["hyper_parameters"]
    assert arguments["box_normalization"] == "per_class" and arguments["max_proposals"] == (20, 30)
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
    {backbone: tiny, fpn: false, min_size: 64, max_size: 64, pooling: max, pool_size: 3, head_channels: 16, lr: 0.01,
     roi_batch_size: 16, roi_background_iou: [0.1, 0.5], box_normalization: per_class, dedup_stride: 8,
     test_sizes: [48, 64], test_max_size: 96, max_candidates: 20, proposal_options: {seed: 3}, score_threshold: 0.0}
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
    assert main(["fit", "--config", "small.yaml"]) == 0
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
    assert model.source.options == {"mode": "fast", "seed": 3}
    assert capsys.readouterr().err == ""
