"""Small sets of images with one class each, made for a test."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from tests.data.conftest import make_voc as make_voc  # the fixture


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


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like CIFAR-10's, of ten images a file, whose checksums torchvision is told."""
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str, seed: int) -> list[str]:
        random = np.random.default_rng(seed)
        data = random.integers(0, 256, (10, 3072), np.uint8)
        return [name, write(name, {"data": data, "labels": random.integers(0, 10, 10).tolist()})]

    train = [batch(f"data_batch_{i}", i) for i in range(1, 6)]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": ["cat"]})}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [batch("test_batch", 0)])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", meta)
    return folder
