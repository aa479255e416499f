"""ImageClassifier: what it computes, that it learns, resumes exactly, and gives its weights to detectors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint

import detkit
from detkit.classification import ClassFolder, ImageClassifier
from detkit.classification.datamodule import collate_labels
from detkit.errors import CheckpointError, ConfigError, ImageTypeError, TrainingError, WeightsError
from detkit.features import ARCHITECTURES, MapSettings, build_backbone
from detkit.features.architectures import classification_network
from detkit.settings import construct

OPTIONS: dict[str, Any] = {"class_names": ["cat", "dog", "fox"], "optim__lr": 0.01, "optim__warmup_steps": 0}


def classifier(**options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return construct(ImageClassifier, OPTIONS | options)


def trainer(**options: Any) -> L.Trainer:
    silent: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": "callbacks" in options,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return L.Trainer(**(silent | options))


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> Callable[..., ClassFolder]:
    """`data(**options)` -> three classes of different colours."""
    folders = {
        f"{split}/{name}": count for split, count in (("train", 8), ("val", 3)) for name in ("cat", "dog", "fox")
    }
    root = make_folder(folders)
    return lambda **options: ClassFolder(str(root), **({"batch_size": 4, "num_workers": 0} | options))


def test_logits_are_those_of_the_network_on_normalised_crops() -> None:
    model = classifier().eval()
    images = [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8) for _ in range(3)]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model.network((torch.stack(images) / 255 - mean) / std)
        torch.testing.assert_close(model(images), expected)
        wide = torch.randint(0, 256, (3, 50, 90), dtype=torch.uint8)
        stretched = F.interpolate(((wide / 255 - mean) / std)[None], size=(32, 32), mode="bilinear")
        torch.testing.assert_close(model([images[0], wide]), torch.cat([expected[:1], model.network(stretched)]))
        torch.testing.assert_close(model([wide, wide])[1:], model([wide]))


@pytest.mark.parametrize("image", [torch.zeros(3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.uint8)])
def test_images_of_another_kind_are_refused(image: torch.Tensor) -> None:
    with pytest.raises(ImageTypeError, match="wanted is a uint8 tensor"):
        classifier()([image])


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in ("vgg16", "resnet101", "resnet34")])
def test_every_kind_of_backbone_has_a_classifier(name: str) -> None:
    with torch.no_grad(), nullcontext() if name.startswith("regnet") else torch.device("meta"):
        model = classifier(backbone=name, crop_size=64)
        assert all(m.training for m in model.modules())
        assert model.eval()([torch.zeros(3, 40, 50, dtype=torch.uint8)]).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["cat"]}, r"two classes or more to tell apart, not only \['cat'\]"),
        ({"class_names": ["cat", "cat"]}, "one or more different names"),
        ({"backbone": "lenet"}, "backbone: there is no 'lenet'; did you mean 'lenet5'"),
        ({"backbone": "alexnet", "crop_size": 32}, "crop_size 32 is too small for alexnet"),
        ({"crop_size": 0}, "crop_size 0 must be at least 1"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 within 0 and below 1"),
        ({"image_std": [1.0, 1.0, 0.0]}, "need three values each, std above 0"),
        ({"initialization": "ones"}, "initialization: there is no 'ones'"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        classifier(**options)


def test_it_learns_colours_and_tells_the_accuracy(data: Callable[..., ClassFolder]) -> None:
    model, fit = classifier(), trainer(max_epochs=12)
    fit.fit(model, data())
    assert fit.callback_metrics["val/accuracy"] == 1.0
    assert fit.callback_metrics["val/loss"] < 0.3
    (result,) = trainer().test(model, data(), verbose=False)
    assert result == {"test/accuracy": 1.0}
    assert model.last_metrics["accuracy_per_class"] == {"cat": 1.0, "dog": 1.0, "fox": 1.0}
    assert (model.last_metrics["accuracy"], model.last_metrics["num_images"]) == (1.0, 9)


def test_the_accuracy_is_counted_over_images(make_folder: Callable[..., Path]) -> None:
    """Of 5 cats and 1 dog, all taken for cats, 5 of 6 are right; of foxes there is no saying."""
    root = make_folder({"train/cat": 1, "train/dog": 1, "train/fox": 1, "val/cat": 5, "val/dog": 1})
    model = classifier()
    torch.nn.init.zeros_(model.network.classifier.output.weight)
    model.network.classifier.output.bias.data = torch.tensor([1.0, 0.0, 0.0])
    (result,) = trainer().validate(model, ClassFolder(str(root), batch_size=4, num_workers=0), verbose=False)
    assert result["val/accuracy"] == pytest.approx(5 / 6)
    expected = -torch.tensor([1.0, 0.0, 0.0]).log_softmax(0)
    assert result["val/loss"] == pytest.approx(float((5 * expected[0] + expected[1]) / 6), abs=1e-6)
    per_class = model.last_metrics["accuracy_per_class"]
    assert (per_class["cat"], per_class["dog"]) == (1.0, 0.0) and per_class["fox"] != per_class["fox"]
    trainer().validate(model, ClassFolder(str(root), batch_size=4, num_workers=0), verbose=False)
    assert model.last_metrics["num_images"] == 6  # each validation counts anew


def test_label_smoothing_is_of_training_only(data: Callable[..., ClassFolder]) -> None:
    model, fit = classifier(label_smoothing=0.3, optim__lr=0.0), trainer()
    fit.fit(model, data(batch_size=24, transforms=[]))
    batch = [data(transforms=[]).dataset("train")[i] for i in range(24)]
    logits, labels = model([sample["image"] for sample in batch]).detach(), collate_labels(batch)
    assert fit.callback_metrics["train/loss"] == pytest.approx(
        float(F.cross_entropy(logits, labels, label_smoothing=0.3)), abs=1e-5
    )
    batch = [data().dataset("val")[i] for i in range(9)]
    logits, labels = model([sample["image"] for sample in batch]).detach(), collate_labels(batch)
    assert fit.callback_metrics["val/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one(data: Callable[..., ClassFolder], tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: str | None = None) -> dict[str, Any]:
        model = classifier(backbone="tiny", optim__schedule="constant")
        saved = ModelCheckpoint(tmp_path / str(epochs), filename="last", enable_version_counter=False)
        trainer(max_epochs=epochs, callbacks=[saved]).fit(model, data(seed=3), ckpt_path=ckpt_path, weights_only=True)
        return model.state_dict()

    whole = run(3)
    run(1)
    resumed = run(3, str(tmp_path / "1" / "last.ckpt"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.fixture
def checkpoint(data: Callable[..., ClassFolder], tmp_path: Path) -> Callable[..., Path]:
    """`checkpoint(backbone, **options)` -> a checkpoint of a classifier that has learnt for a step."""

    def make(backbone: str, **options: Any) -> Path:
        model = classifier(backbone=backbone, optimizer=lambda p: torch.optim.Adam(p), **options)
        fit = trainer(max_steps=1)
        fit.fit(model, data())
        fit.save_checkpoint(tmp_path / f"{backbone}.ckpt")
        return tmp_path / f"{backbone}.ckpt"

    return make


def test_a_checkpoint_is_plain_and_says_what_it_is(checkpoint: Callable[..., Path]) -> None:
    content = torch.load(checkpoint("lenet5"), weights_only=True)
    assert content["detkit"]["class"] == "detkit.classification.classifier.ImageClassifier"
    assert content["detkit"]["optimizer"] == "Adam"
    kept = content["hyper_parameters"]
    assert (kept["class_names"], kept["category_ids"]) == (["cat", "dog", "fox"], [1, 2, 3])
    assert (kept["backbone"], kept["crop_size"], kept["optim"]["lr"]) == ("lenet5", 32, 0.01)
    assert "optimizer" not in kept
    assert all(name.startswith("network.") for name in content["state_dict"])


@pytest.mark.parametrize("backbone", ["lenet5", "tiny", "resnet18"])
def test_a_checkpoint_is_a_backbones_weights(checkpoint: Callable[..., Path], backbone: str) -> None:
    path = checkpoint(backbone)
    state = torch.load(path, weights_only=True)["state_dict"]
    network = classification_network(backbone, 3)
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items()})
    body, top = build_backbone(backbone, str(path), MapSettings(fpn=False))
    wanted, whole = network.state_dict(), body.body.state_dict()
    prefix = "" if backbone == "resnet18" else "features."
    assert whole and all(torch.equal(v, wanted[prefix + k]) for k, v in whole.items())
    if backbone == "lenet5":
        assert torch.equal(top[1].weight, network.classifier.c5.weight)
    detector = construct(
        detkit.FasterRCNN,
        {"class_names": ["car"], "backbone": backbone, "features__fpn": False, "weights": str(path)},
    )
    assert all(torch.equal(v, whole[k]) for k, v in detector.backbone.body.state_dict().items())


def test_a_classifier_goes_on_from_another_ones_weights(checkpoint: Callable[..., Path]) -> None:
    path = str(checkpoint("lenet5"))
    state = torch.load(path, weights_only=True)["state_dict"]
    other = classifier(class_names=["a", "b"], weights=path).state_dict()
    assert torch.equal(other["network.features.c1.weight"], state["network.features.c1.weight"])
    assert torch.equal(other["network.classifier.f6.weight"], state["network.classifier.f6.weight"])
    assert other["network.classifier.output.weight"].shape == (2, 84)


def test_a_checkpoint_of_something_else_is_told(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = checkpoint("tiny")
    with pytest.raises(WeightsError, match=r"tiny\.ckpt holds a tiny, the model's backbone is lenet5"):
        build_backbone("lenet5", weights=str(path))
    content = torch.load(path, weights_only=True)
    torch.save({**content, "detkit": {"class": "FasterRCNN"}}, tmp_path / "detector.ckpt")
    with pytest.raises(
        WeightsError, match=r"detector\.ckpt is a checkpoint of a FasterRCNN; a backbone is initialised"
    ):
        build_backbone("tiny", weights=str(tmp_path / "detector.ckpt"))
    with pytest.raises(CheckpointError, match="holds a ImageClassifier, which is no detector"):
        detkit.load(path)


def test_a_loss_that_is_not_finite_stops_training(data: Callable[..., ClassFolder]) -> None:
    model = classifier()
    model.network.classifier.output.bias.data[0] = torch.nan
    with pytest.raises(TrainingError, match=r"loss became NaN or infinite in the batch of images \['"):
        trainer().fit(model, data())


def test_a_detector_has_no_use_for_this_data(data: Callable[..., ClassFolder]) -> None:
    detector = construct(
        detkit.FasterRCNN, {"class_names": ["cat", "dog", "fox"], "backbone": "tiny", "features__fpn": False}
    )
    with pytest.raises(ConfigError, match="ClassFolder has a class for each image and no boxes"):
        trainer().fit(detector, data())
