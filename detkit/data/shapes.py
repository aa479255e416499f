"""A small data set that the project draws itself: for tests, first steps and quick experiments."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from detkit.data.annotations import Annotations
from detkit.data.coco_files import decode
from detkit.data.shapes_drawing import SHAPE_CLASSES, draw_scene
from detkit.data.voc import VOC
from detkit.data.voc_xml import format_annotation
from detkit.errors import ConfigError, DataError

_VERSION = 3  # raised whenever the same parameters give other pictures
_PARAMETERS = "shapes.json"


class Shapes(VOC):
    """Circles, rectangles, rings, stars and triangles on textured grounds, in VOC's layout.

    Drawn once, in a few seconds, and kept. The same arguments give the same files.

    Args:
        path: folder to keep the pictures in; drawn if it does not exist.
        num_train: training images; at least 1.
        num_val: validation images; at least 1.
        num_test: test images; at least 1.
        image_size: side of the square images in pixels; at least 48. Shapes grow with it.
        drawing_seed: seed of the pictures.
        class_names: the five classes, in an order of your own; None sorts them.
        shared: see DetectionDataModule; the pictures do not depend on `seed`.
    """

    def __init__(
        self,
        path: str = "data/shapes",
        num_train: int = 500,
        num_val: int = 100,
        num_test: int = 100,
        image_size: int = 128,
        drawing_seed: int = 0,
        class_names: list[str] | None = None,
        **shared: Any,
    ) -> None:
        self.counts = {"train": num_train, "val": num_val, "test": num_test}
        if min(self.counts.values()) < 1 or image_size < 48 or drawing_seed < 0:
            raise ConfigError(
                "Shapes: num_train, num_val and num_test must be at least 1, image_size at least 48 and "
                f"drawing_seed at least 0, got {self.counts}, {image_size} and {drawing_seed}"
            )
        self.image_size = image_size
        self.drawing_seed = drawing_seed
        super().__init__(
            path=path,
            train="train",
            val="val",
            test="test",
            other_classes="error",
            download=False,
            class_names=list(SHAPE_CLASSES) if class_names is None else class_names,
            **shared,
        )

    def prepare_data(self) -> None:
        """Draw the pictures, if they are not there yet; DataError if the folder holds something else."""
        draw_shapes(self.path, self.counts, self.image_size, self.drawing_seed)

    def read(self, split: str) -> Annotations | None:
        """Read a split; draws the pictures first where they are missing."""
        self.prepare_data()
        return super().read(split)


def draw_shapes(path: str, counts: dict[str, int], image_size: int, seed: int) -> None:
    """Draw the data set into `path`, all at once: a reader sees the whole of it or nothing.

    It is told. A folder that holds the same data set already is kept, DataError is raised for one that holds something
    else.
    `counts` are the images of each image set, `image_size` is their side in pixels.
    """
    parameters = {"version": _VERSION, "seed": seed, "image_size": image_size, "counts": counts}
    if _is_drawn(path, parameters):
        return
    rank_zero_info(f"Shapes: {path} is not there; drawing it: {_describe(parameters)}")
    parent = os.path.dirname(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".shapes-", dir=parent)
    try:
        _draw_all(Path(temporary), counts, image_size, seed)
        Path(temporary, _PARAMETERS).write_text(json.dumps(parameters, indent=1), encoding="utf-8")
        os.chmod(temporary, 0o755)  # mkdtemp makes it private
        try:
            if os.path.isdir(path) and not os.listdir(path):
                os.rmdir(path)
            os.rename(temporary, path)
        except OSError:
            if not _is_drawn(path, parameters):  # else another process was faster, and drew the same
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_drawn(path: str, parameters: dict[str, Any]) -> bool:
    if not os.path.exists(path) or (os.path.isdir(path) and not os.listdir(path)):
        return False
    try:
        drawn_with = decode(os.path.join(path, _PARAMETERS), dict[str, Any], "the parameters of Shapes")
    except DataError:
        raise DataError(f"{path}: exists, but is no Shapes data set; choose another path or remove it") from None
    if drawn_with != parameters:
        raise DataError(
            f"{path}: holds other pictures of Shapes ({_describe(drawn_with)}) than are asked for "
            f"({_describe(parameters)}); choose another path or remove it"
        )
    return True


def _describe(parameters: Mapping[str, Any]) -> str:
    """What is drawn, in words."""
    counts = ", ".join(f"{count} {name}" for name, count in parameters["counts"].items())
    version = "" if parameters.get("version") == _VERSION else f", by another version ({parameters.get('version')})"
    return f"{counts}, {parameters['image_size']} px a side, drawing_seed {parameters['seed']}{version}"


def _draw_all(folder: Path, counts: dict[str, int], image_size: int, seed: int) -> None:
    import cv2

    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for number, (image_set, count) in enumerate(sorted(counts.items())):
        ids = [f"{image_set}_{index:05d}" for index in range(count)]
        for index, image_id in enumerate(ids):
            image, objects = draw_scene(np.random.default_rng((seed, number, index)), image_size)
            file = folder / "JPEGImages" / f"{image_id}.jpg"
            if not cv2.imwrite(str(file), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]):
                raise DataError(f"{file}: cannot be written")
            text = format_annotation(file.name, image_size, image_size, objects)
            (folder / "Annotations" / f"{image_id}.xml").write_text(text, encoding="utf-8")
        (folder / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
