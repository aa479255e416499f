"""Small data sets on disk, made for a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from detkit.data import DetectionDataModule
from detkit.data.voc_xml import VOCObject, format_annotation


def write_image(path: Path, width: int = 40, height: int = 30, seed: int = 0, **save: object) -> Path:
    """A noise image in a format that the suffix tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


@pytest.fixture(name="write_image")
def _write_image() -> Callable[..., Path]:
    """`write_image(path, width, height, seed, **save)` -> path."""
    return write_image


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    """`make_voc({"a": [VOCObject, ...]}, sets={"train": ["a"]})` -> a VOC folder; boxes are half-open."""

    def make(
        images: dict[str, Sequence[VOCObject]],
        sets: dict[str, Sequence[str]] | None = None,
        folder: str = "voc",
        size: tuple[int, int] = (40, 30),
    ) -> Path:
        root = tmp_path / folder
        for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for seed, (name, objects) in enumerate(images.items()):
            write_image(root / "JPEGImages" / f"{name}.png", *size, seed=seed)
            text = format_annotation(f"{name}.png", *size, objects)
            (root / "Annotations" / f"{name}.xml").write_text(text)
        for image_set, ids in (sets or {"train": list(images)}).items():
            (root / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(ids) + "\n")
        return root

    return make


@pytest.fixture
def parse_data() -> Callable[..., DetectionDataModule]:
    """`parse_data("detkit.data.VOC", path=...)` -> the data set, through the parser of the command line."""

    def parse(class_path: str, **init_args: object) -> DetectionDataModule:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(DetectionDataModule, "data")
        return parser.instantiate(
            parser.parse_object({"data": {"class_path": class_path, "init_args": init_args}})
        ).data

    return parse


@pytest.fixture
def two_cats(make_voc: Callable[..., Path]) -> Path:
    """A VOC folder with images "a" (a cat and a difficult dog) and "b" (a cat)."""
    cat, dog = VOCObject("cat", (1, 2, 20, 22), False), VOCObject("dog", (5, 5, 35, 30), True)
    sets = {"train": ["a", "b"], "val": ["b"], "test": ["a"]}
    return make_voc({"a": [cat, dog], "b": [cat]}, sets)
