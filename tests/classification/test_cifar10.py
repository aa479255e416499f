"""CIFAR-10's own files: read by torchvision, and refused where they have been altered."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.classification import CIFAR10
from detkit.classification.cifar10 import CIFAR10_CLASSES
from detkit.errors import ConfigError, DataError


@pytest.mark.parametrize("up", [False, True], ids=["folder", "around"])
def test_the_splits(cifar: Path, up: bool) -> None:
    data = CIFAR10(str(cifar.parent if up else cifar), val_size=8, transforms=[])
    data.setup()
    assert data.class_names == list(CIFAR10_CLASSES)
    train, val, test = (data.dataset(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (42, 8, 10)
    last = pickle.loads((cifar / "data_batch_5").read_bytes())
    sample = val[0]
    # A row holds the red plane, the green and the blue one, each row by row.
    assert torch.equal(sample["image"], torch.from_numpy(last["data"][2]).view(3, 32, 32))
    assert (sample["label"], sample["image_id"]) == (last["labels"][2] + 1, "train/00042")
    assert test[0]["image_id"] == "test/00000"


def test_without_a_validation_set(cifar: Path) -> None:
    data = CIFAR10(str(cifar), val_size=0)
    data.setup("fit")
    assert len(data.dataset("train")) == 50
    assert data.dataset("val") is None and data.val_dataloader() == []


class Harmful:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_an_altered_file_is_refused_before_it_is_unpickled(cifar: Path, name: str) -> None:
    data = CIFAR10(str(cifar), val_size=0)
    sentinel = cifar.parent / "was_here"
    (cifar / name).write_bytes(pickle.dumps(Harmful(sentinel)))
    with pytest.raises(DataError, match=rf"cifar-10-batches-py: {name} altered or cut short .*unpack"):
        CIFAR10(str(cifar))
    with pytest.raises(RuntimeError, match="corrupted"):  # torchvision's own check: altered after ours
        data.setup()
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"val_size": -1}, ConfigError, "val_size: -1 must be at least 0"),
        ({"val_size": 50}, ConfigError, "leaves none of the 50 training images"),
        ({"class_names": ["cat", "dog"]}, ConfigError, r"has the classes airplane.*not \['cat', 'dog'\]"),
        ({"path": "nowhere"}, DataError, r"nowhere: is not the folder cifar-10-batches-py, nor the one around it"),
    ],
)
def test_what_cannot_be(cifar: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CIFAR10(**({"path": str(cifar)} | options)).setup("fit")


def test_a_missing_file_is_named(cifar: Path) -> None:
    (cifar / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py: data_batch_4 not there; unpack"):
        CIFAR10(str(cifar))
