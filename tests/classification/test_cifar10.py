"""CIFAR-10's own files, read as they are and never believed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.classification import CIFAR10
from detkit.classification.cifar10 import CIFAR10_CLASSES, read_batch
from detkit.errors import ConfigError, DataError
from tests.classification.conftest import cifar_batch


@pytest.mark.parametrize("protocol", range(5))
def test_a_file_is_read_as_pickle_reads_it(tmp_path: Path, protocol: int) -> None:
    content = cifar_batch(7, 1)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    images, labels = read_batch(path)
    assert (images.dtype, images.shape, labels.dtype) == (np.uint8, (7, 32, 32, 3), np.int64)
    assert labels.tolist() == [label + 1 for label in content[b"labels"]]
    # A row holds the red plane, the green and the blue one, each row by row.
    assert images[3, 5, 9].tolist() == [content[b"data"][3, 1024 * c + 32 * 5 + 9] for c in range(3)]


def test_a_column_major_array_and_keys_of_python_3(tmp_path: Path) -> None:
    content = cifar_batch(5, 2)
    data = np.asfortranarray(content[b"data"])
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({"data": data, "labels": content[b"labels"]}, protocol=2))
    images, _ = read_batch(path)
    expected = content[b"data"].reshape(5, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(images, expected)


class Harmful:
    """Runs code when unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_code_in_a_file_is_run(tmp_path: Path, protocol: int) -> None:
    sentinel, path = tmp_path / "was_here", tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(cifar_batch(2, 0, extra=Harmful(sentinel)), protocol=protocol))
    with pytest.raises(DataError, match=r"data_batch_1: .*it asks for"):
        read_batch(path)
    assert not sentinel.exists()


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 6200))
def test_a_file_cut_short_is_told(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    whole = pickle.dumps(cifar_batch(2, 0), protocol=2)
    assert len(whole) > 6200
    path = tmp_path_factory.mktemp("cut") / "data_batch_1"
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"data_batch_1: is cut short.*unpack cifar-10-python\.tar\.gz"):
        read_batch(path)


@pytest.mark.parametrize(
    "change",
    [
        {b"labels": [0]},
        {b"labels": [0, 10]},
        {b"labels": [0, -1]},
        {b"labels": [0, 1.5]},
        {b"labels": None},
        {b"data": None},
        {b"data": b"bytes"},
        {b"data": np.zeros((2, 3072), np.int8)},
        {b"data": np.zeros((2, 3072), np.float32)},
        {b"data": np.zeros((2, 3071), np.uint8)},
        {b"data": np.zeros((3, 3072), np.uint8)},
        {b"data": np.zeros(6144, np.uint8)},
        {b"data": np.array([[None] * 3072] * 2, object)},
    ],
    ids=repr,
)
def test_what_is_no_image_of_cifar_is_refused(tmp_path: Path, change: dict[bytes, Any]) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(cifar_batch(2, 0) | change, protocol=2))
    with pytest.raises(DataError, match=r"data_batch_1: its data are not N x 3072 bytes"):
        read_batch(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is cut short"), (b"no pickle", "is cut short"), (pickle.dumps([1]), "is cut short")],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_batch(path)
    with pytest.raises(DataError, match="other: no such file"):
        read_batch(tmp_path / "other")
    with pytest.raises(DataError, match="cannot be read"):
        read_batch(tmp_path)


def test_cifar_100_is_told(tmp_path: Path) -> None:
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps({b"data": None, b"fine_labels": [], b"labels": []}))
    with pytest.raises(DataError, match="holds CIFAR-100"):
        read_batch(path)


@pytest.mark.parametrize("up", [False, True], ids=["folder", "around"])
def test_the_splits(cifar: Path, up: bool) -> None:
    data = CIFAR10(str(cifar.parent if up else cifar), val_size=8, transforms=[])
    data.setup()
    assert data.class_names == list(CIFAR10_CLASSES)
    train, val, test = (data.dataset(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (42, 8, 10)
    images, labels = read_batch(cifar / "data_batch_5")
    sample = val[0]
    assert torch.equal(sample["image"], torch.from_numpy(images[2]).permute(2, 0, 1))
    assert (sample["label"], sample["image_id"]) == (labels[2], "train/00042")
    assert test[0]["image_id"] == "test/00000"


def test_without_a_validation_set(cifar: Path) -> None:
    data = CIFAR10(str(cifar), val_size=0)
    data.setup("fit")
    assert len(data.dataset("train")) == 50
    assert data.dataset("val") is None and data.val_dataloader() == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"val_size": -1}, ConfigError, "val_size must be at least 0, got -1"),
        ({"val_size": 50}, ConfigError, "leaves none of the 50 training images"),
        ({"class_names": ["cat", "dog"]}, ConfigError, r"has the classes airplane.*not \['cat', 'dog'\]"),
        ({"path": "nowhere"}, DataError, r"nowhere: data_batch_1, .*test_batch not there"),
    ],
)
def test_what_cannot_be(cifar: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CIFAR10(**({"path": str(cifar)} | options)).setup("fit")


def test_a_missing_file_is_named(cifar: Path) -> None:
    (cifar / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py: data_batch_4 not there; unpack"):
        CIFAR10(str(cifar))
