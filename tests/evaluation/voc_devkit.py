"""Writes a VOCdevkit and its result files, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Object = tuple[str, Sequence[float], bool]


def write_devkit(
    folder: Path, truth: Mapping[str, Iterable[Object]], split: str = "test", images: bool = False
) -> Path:
    """A VOC folder with the objects (name, box as VOC writes it, difficult) of each image."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{image}\n" for image in truth))
    for image, objects in truth.items():
        text = "".join(map(_object, objects))
        (folder / f"Annotations/{image}.xml").write_text(
            f"<annotation><filename>{image}.jpg</filename>"
            f"<size><width>500</width><height>375</height><depth>3</depth></size>{text}</annotation>"
        )
        if images:
            from PIL import Image

            Image.new("RGB", (500, 375), "gray").save(folder / f"JPEGImages/{image}.jpg")
    return folder


def _object(each: Object) -> str:
    name, box, difficult = each
    bounds = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox>{bounds}</bndbox></object>"


def write_results(folder: Path, rows: Mapping[str, str], prefix: str = "comp4_det_test_") -> Path:
    """A folder with a result file of each class."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in rows.items():
        (folder / f"{prefix}{name}.txt").write_text(text)
    return folder
