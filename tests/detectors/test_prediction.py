"""Predicting from Python: what may be given, and that it is given back in its own pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.data.image_io import as_image
from detkit.errors import ConfigError, DataError, ImageTypeError

from .conftest import Small, assert_same

KINDS: dict[str, Callable[[torch.Tensor, Path], Any]] = {
    "tensor": lambda image, folder: image,
    "array": lambda image, folder: image.permute(1, 2, 0).numpy(),
    "PIL": lambda image, folder: Image.fromarray(image.permute(1, 2, 0).numpy()),
    "path": lambda image, folder: written(image, folder),
    "string": lambda image, folder: str(written(image, folder)),
}


def written(image: torch.Tensor, folder: Path) -> Path:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "image.png")
    return folder / "image.png"


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_gives_the_same(detecting: Small, image: torch.Tensor, tmp_path: Path, kind: str) -> None:
    model = detecting()
    found = model.predict(KINDS[kind](image, tmp_path))
    assert len(found["boxes"]) > 2
    assert_same(found, model.detect([{"image": image}])[0], 0)
    assert found.class_names == model.class_names
    assert not found["boxes"].requires_grad


def test_a_list_gives_a_list(detecting: Small, image: torch.Tensor) -> None:
    model = detecting()
    images = [image, image.flip(2).permute(1, 2, 0).numpy(), image.flip(1)]
    found = model.predict(images, batch_size=2)
    assert isinstance(found, list) and len(found) == 3
    for one, given in zip(found, images, strict=True):
        assert_same(one, model.predict(given))
    assert len(model.predict([image])) == 1 and model.predict([]) == []


def test_boxes_are_in_the_pixels_that_came_in(detecting: Small, image: torch.Tensor) -> None:
    model = detecting()
    large = image.repeat_interleave(3, 1).repeat_interleave(3, 2)
    found = model.predict(large)["boxes"]
    assert found[:, 2].max() > 90 and found[:, 2].max() <= 270 and found[:, 3].max() <= 180


def test_a_threshold_of_ones_own(detecting: Small, image: torch.Tensor) -> None:
    model = detecting()
    everything = model.predict(image)
    middle = everything["scores"].median().item()
    some = model.predict(image, score_threshold=middle)
    assert 0 < len(some["scores"]) < len(everything["scores"])
    assert torch.equal(some["scores"], everything["scores"][everything["scores"] >= middle])
    assert len(some["boxes"]) == len(some["labels"]) == len(some["scores"])
    assert model.predict(image, score_threshold=1.0)["boxes"].shape == (0, 4)


def test_tiles_change_nothing_for_an_image_that_fits_one(detecting: Small, image: torch.Tensor) -> None:
    model = detecting()
    plain, cut = model.predict(image), model.predict(image, tiles=max(image.shape[-2:]))
    assert len(plain["scores"]) and all(torch.equal(plain[name], cut[name]) for name in plain)


def test_classes_of_ones_own(detecting: Small, image: torch.Tensor) -> None:
    model = detecting()
    name = model.class_names[0]
    found = model.predict(image, classes=[name], agnostic_nms=True)
    assert len(found["labels"]) and set(found["labels"].tolist()) == {1}
    with pytest.raises(ConfigError, match="there is no class 'x'"):
        model.predict(image, classes=["x"])


def test_a_model_in_training_predicts_as_one_at_work_and_stays_in_training(
    detecting: Small, image: torch.Tensor
) -> None:
    model = detecting()
    expected = model.predict(image)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    model.rpn.eval()  # as what is fixed for now (alternating training)
    assert_same(model.predict(image), expected, 0)
    assert model.training and model.backbone.body["0"].training and not model.rpn.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with pytest.raises(ImageTypeError):
        model.predict(image.float())
    assert model.training  # also after an error


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.rand(3, 8, 8), r"torch\.float32 tensor of shape \(3, 8, 8\)"),
        (np.zeros((8, 8), dtype=np.uint8), r"uint8 array of shape \(8, 8\)"),
        (
            np.zeros((3, 8, 8), dtype=np.uint8),
            r"uint8 array of shape \(3, 8, 8\); wanted is an array uint8 of shape \(H, W, 3\)",
        ),
        (np.zeros((8, 8, 3)), "float64 array"),
        (np.zeros((0, 8, 3), dtype=np.uint8), r"shape \(0, 8, 3\)"),
        (3, "int"),
        (None, "NoneType"),
    ],
)
def test_anything_else_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(ImageTypeError, match=message):
        as_image(wrong)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jpg"):
        as_image(tmp_path / "nowhere.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg"):
        as_image(str(tmp_path / "text.jpg"))
