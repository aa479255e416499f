"""Checkpoints of a fit: plain values, and enough to predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import detkit
from detkit.data import Shapes
from detkit.engine.checkpoints import read_checkpoint
from detkit.errors import CheckpointError

from .conftest import Small, assert_same, differing, sample

pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`")


class Saved(NamedTuple):
    """A detector that was fitted, and its checkpoint."""

    model: detkit.FasterRCNN
    path: Path


@pytest.fixture(scope="module")
def saved(small: Small, shapes: Callable[..., Shapes], trainer: Any, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    model, path = small(image__min_size=[48, 64], roi__dropout=0.25), tmp_path_factory.mktemp("saved") / "fitted.ckpt"
    runner = trainer(max_epochs=1, limit_val_batches=0)
    runner.fit(model, datamodule=shapes())
    runner.save_checkpoint(path)
    return Saved(model, path)


def plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain(v) for k, v in value.items())
    return value is None or type(value) in (bool, int, float, str)


def test_a_checkpoint_holds_plain_values_and_is_enough_to_predict(saved: Saved) -> None:
    content = torch.load(saved.path, weights_only=True)
    arguments = content["hyper_parameters"]
    assert plain(arguments) and plain(content["detkit"])
    assert arguments["image"]["min_size"] == [48, 64] and arguments["roi"]["dropout"] == 0.25
    assert arguments["class_names"] == saved.model.class_names and arguments["category_ids"] == [1, 2, 3, 4, 5]
    assert not {"optimizer", "lr_scheduler"} & set(arguments)

    loaded = detkit.load(saved.path)
    assert not loaded.training and not differing(saved.model.state_dict(), loaded.state_dict())
    images = [sample(64, 64)["image"], sample(50, 90)["image"]]
    for ours, theirs in zip(loaded.predict(images), saved.model.predict(images), strict=True):
        assert len(ours["boxes"]) > 0
        assert_same(ours, theirs, 0)


def test_optimizer_factories_are_not_kept(
    small: Small, shapes: Callable[..., Shapes], trainer: Any, tmp_path: Path
) -> None:
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(small(optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3)), datamodule=shapes())
    runner.save_checkpoint(tmp_path / "adam.ckpt")
    assert read_checkpoint(tmp_path / "adam.ckpt")["detkit"]["optimizer"] == "AdamW"
    detkit.load(tmp_path / "adam.ckpt")
    with pytest.raises(CheckpointError, match="AdamW, this run asks for SGD"):
        trainer(max_steps=2).fit(small(), datamodule=shapes(), ckpt_path=tmp_path / "adam.ckpt", weights_only=True)


def test_weights_that_were_begun_with_are_not_read_again(
    small: Small, shapes: Callable[..., Shapes], trainer: Any, tmp_path: Path
) -> None:
    from detkit.features.architectures import classification_network

    file = tmp_path / "tiny.pth"
    torch.save(classification_network("tiny").state_dict(), file)
    model = small(weights=str(file), category_ids=[18, 3, 90, 7, 1])
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(model, datamodule=shapes())
    runner.save_checkpoint(tmp_path / "one.ckpt")
    file.unlink()
    loaded = detkit.load(tmp_path / "one.ckpt")
    assert not differing(model.state_dict(), loaded.state_dict()) and loaded.category_ids == [18, 3, 90, 7, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["detkit"].update({"class": "my_package.YOLO"}),
            "my_package is not imported; import it with --import",
        ),
        (lambda c: c["detkit"].update({"class": "lightning.Trainer"}), "lightning.Trainer is not a TrainableModule"),
        (lambda c: c["hyper_parameters"].update(anchor=3), "no argument 'anchor'; did you mean 'anchors'"),
        (lambda c: c["hyper_parameters"].pop("class_names"), "does not fit FasterRCNN.*class_names"),
        (
            lambda c: c["hyper_parameters"]["roi"].update(head_channels=99),
            "another shape.*roi_heads.box_head.fc6.weight",
        ),
        (lambda c: c["state_dict"].pop("rpn.head.cls_logits.bias"), "1 missing .rpn.head.cls_logits.bias"),
        (lambda c: c["state_dict"].update(other=3), "'state_dict' is not as detkit writes it"),
        (lambda c: c.update(state_dict=[]), "'state_dict' is not as"),
        (lambda c: c.update(detkit="FasterRCNN"), "'detkit' is not as"),
        (lambda c: c["detkit"].pop("class"), "'detkit' is not as"),
        (lambda c: c.pop("detkit"), "not a checkpoint written by detkit"),
        (lambda c: c.update(hyper_parameters=None), "'hyper_parameters' is not as"),
        (lambda c: c["hyper_parameters"].update(rpn=5), "rpn is a group of settings.* not 5"),
        (lambda c: c["hyper_parameters"].update(rpn=None), "rpn is a group of settings.* not None"),
        (lambda c: c["hyper_parameters"]["rpn"].update(pre_nms="many"), "rpn.pre_nms: .* must be two numbers"),
        (lambda c: c["hyper_parameters"]["rpn"].update(convolutions=10**9), "rpn.convolutions: .* at most 64"),
        (lambda c: c["hyper_parameters"]["rpn"].update(channels=10**9), "rpn.channels: .* at most 65536"),
        (lambda c: c["hyper_parameters"]["roi"].update(pool_size=10**7), "roi.pool_size: .* at most 64"),
        (lambda c: c["hyper_parameters"].update(rpn={"nms_treshold": 1}), "no argument 'nms_treshold'"),
        (lambda c: c.pop("hyper_parameters"), "does not fit FasterRCNN"),
    ],
)
def test_checkpoints_that_do_not_fit(
    saved: Saved, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = torch.load(saved.path, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=rf"other\.ckpt.*{message}"):
        detkit.load(tmp_path / "other.ckpt")
