"""Small sets of images with one class each, made for a test."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detkit.classification.cifar10 import TEST_FILE, TRAIN_FILES


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """`make_folder({"train/cat": 3})` -> a folder with so many images in it; each class is of a colour."""

    def make(counts: dict[str, int], name: str = "photos") -> Path:
        root = tmp_path / name
        names = sorted({folder.rpartition("/")[2] for folder in counts})
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                colour = (100 * names.index(folder.rpartition("/")[2]) % 256, 10 * i, 7)
                Image.new("RGB", (20 + i, 30), colour).save(root / folder / f"{i}.png")
        return root

    return make


def cifar_batch(count: int, seed: int, **changes: Any) -> dict[Any, Any]:
    """The content of one of CIFAR-10's files, as Python 2 wrote it."""
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (count, 3072), np.uint8)
    return {b"data": data, b"labels": random.integers(0, 10, count).tolist(), b"batch_label": b"one", **changes}


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A folder like CIFAR-10's, of ten images a file."""
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for seed, name in enumerate((*TRAIN_FILES, TEST_FILE)):
        (folder / name).write_bytes(pickle.dumps(cifar_batch(10, seed), protocol=2))
    return folder
