"""CIFAR-10 (Krizhevsky 2009) from its own files, 60,000 images of 32 x 32 pixels.

The files of the "python version" are pickles, and a pickle may run any code. These hold a dict with an array of bytes
and lists: a reader that knows nothing else is enough, and needs to trust no one.
"""

from __future__ import annotations

import os
import pickle
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from detkit.classification.datamodule import ClassificationDataModule, Examples
from detkit.errors import ConfigError, DataError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"
SIDE = 32
VALUES = 3 * SIDE * SIDE


class _Array:
    """What stands for a NumPy array while a pickle is read: its state as it is written, not yet believed."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DType:
    """What stands for a NumPy dtype."""

    def __init__(self, *arguments: Any) -> None:
        self.code = arguments[0] if arguments else None

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: of no meaning for bytes."""


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _to_bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes in the old protocols."""
    return text.encode("latin1") if isinstance(text, str) else bytes(text)


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain values and arrays, and refuses every other class or function."""

    KNOWN = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _to_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a class or function."""
        try:
            return self.KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_batch(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read one of CIFAR-10's files without running code from it.

    Returns:
        images uint8 (N, 32, 32, 3) RGB and labels int64 (N,), 1..10.

    Raises:
        DataError: missing, cut short, or holding anything but images of CIFAR-10.
    """
    try:
        with open(path, "rb") as file:
            content = _unpickle(file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    except Exception as error:  # a broken pickle raises whatever its bytes happen to mean
        raise DataError(
            f"{path}: is cut short, or no file of CIFAR-10's python version ({str(error) or type(error).__name__}); "
            "unpack cifar-10-python.tar.gz anew"
        ) from None
    return _check(content, str(path))


def _unpickle(file: BinaryIO) -> dict[str, Any]:
    content = _PlainUnpickler(file, encoding="bytes").load()
    return {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}


def _check(content: dict[str, Any], path: str) -> tuple[np.ndarray, np.ndarray]:
    data, labels = content.get("data"), content.get("labels")
    if "fine_labels" in content:
        raise DataError(f"{path}: holds CIFAR-100; CIFAR10 reads CIFAR-10")
    wrong = DataError(f"{path}: its data are not N x {VALUES} bytes with a label from 0 to 9 each")
    state = data.state if isinstance(data, _Array) else None
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise wrong
    if not isinstance(state, tuple) or len(state) != 5:
        raise wrong
    _, shape, dtype, by_columns, raw = state
    code = dtype.code if isinstance(dtype, _DType) else None
    if code not in ("u1", b"u1", "|u1", b"|u1") or shape != (len(labels), VALUES) or not isinstance(raw, bytes):
        raise wrong
    if len(raw) != len(labels) * VALUES:
        raise wrong
    rows = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_columns else "C")
    images = rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64) + 1


class ArrayExamples(Examples):
    """Images held in memory.

    Args:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,), 1..K.
        name: what the first part of an image's id is.
        first: the number of the first image.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str, first: int = 0) -> None:
        self.images, self.labels, self.name, self.first = images, labels, name, first

    def image(self, index: int) -> np.ndarray:
        """See `Examples`."""
        return self.images[index]

    def image_id(self, index: int) -> str:
        """Such as train/00042."""
        return f"{self.name}/{self.first + index:05d}"


class CIFAR10(ClassificationDataModule):
    """CIFAR-10's python version: 50,000 images to train and validate on, 10,000 to test on.

    Args:
        path: the folder cifar-10-batches-py, or the one around it.
        val_size: how many of the training images, the last ones, are validated on instead; 0 for none.
        batch_size: training images per step and device; at least 1.
        eval_batch_size: images per step in validation and test; None takes batch_size.
        num_workers: processes that prepare images; they are in memory, so the main process does it best.
        transforms: training augmentation: albumentations transforms, each as class_path and init_args; None is a
            horizontal flip half of the time, an empty list no augmentation.
        seed: of shuffling and augmentation; None takes seed_everything's.
        class_names: the ten classes, in their order; for the checkpoint's sake, not to be chosen.
    """

    def __init__(
        self,
        path: str = "data/cifar-10-batches-py",
        val_size: int = 5000,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = 0,
        transforms: list[dict[str, Any]] | None = None,
        seed: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        names = list(CIFAR10_CLASSES)
        if class_names not in (None, names):
            raise ConfigError(f"CIFAR-10 has the classes {', '.join(names)}, in this order, not {class_names}")
        super().__init__(batch_size, eval_batch_size, num_workers, transforms, seed, names)
        if val_size < 0:
            raise ConfigError(f"val_size must be at least 0, got {val_size}")
        self.val_size = val_size
        inner = os.path.join(str(path), FOLDER)
        self.path = inner if os.path.isdir(inner) else str(path)
        missing = [name for name in (*TRAIN_FILES, TEST_FILE) if not os.path.isfile(os.path.join(self.path, name))]
        if missing:
            raise DataError(
                f"{self.path}: {', '.join(missing)} not there; unpack "
                f"cifar-10-python.tar.gz and give its folder {FOLDER}"
            )

    def read(self, split: str) -> Examples | None:
        """Read a split's files."""
        if split == "test":
            return ArrayExamples(*read_batch(os.path.join(self.path, TEST_FILE)), name="test")
        images, labels = self._training
        kept = len(labels) - self.val_size
        if kept < 1:
            raise ConfigError(f"val_size {self.val_size} leaves none of the {len(labels)} training images")
        if split == "train":
            return ArrayExamples(images[:kept], labels[:kept], name="train")
        return ArrayExamples(images[kept:], labels[kept:], name="train", first=kept) if self.val_size else None

    @cached_property
    def _training(self) -> tuple[np.ndarray, np.ndarray]:
        parts = [read_batch(os.path.join(self.path, name)) for name in TRAIN_FILES]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return images, labels
