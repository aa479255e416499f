"""The formats in which predictions are written: COCO's results, VOC's, YOLO's, a table, and Label Studio's."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detkit.__about__ import __version__
from detkit.detections import Row, coco_rows
from detkit.files import quote_formula

#: In the folder of a format of several files: what it was written by. Such a folder may be replaced.
MARK = ".detkit"


class Predicted(NamedTuple):
    """The detections of an image.

    Attributes:
        image_id: the data set's own.
        file: the image's name, see `Sample`.
        size: width and height in pixels.
        boxes: x1, y1, x2, y2 in pixels.
        scores: 0 to 1, highest first.
        labels: from 1.
    """

    image_id: str | int
    file: str
    size: tuple[int, int]
    boxes: list[list[float]]
    scores: list[float]
    labels: list[int]

    def rows(self) -> Iterator[Row]:
        """Box, score and label of each detection."""
        return zip(self.boxes, self.scores, self.labels, strict=True)


class Classes(NamedTuple):
    """The classes, in the order of the labels, and the data set's own ids of them."""

    names: Sequence[str]
    ids: Sequence[int]


def write_coco(images: Iterable[Predicted], path: Path, classes: Classes) -> None:
    """COCO's results: a list of {image_id, category_id, bbox [x, y, width, height], score}."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
        out.write("[")  # lone surrogates, as undecodable file names contain them, become JSON's escapes
        separator = "\n"
        for image in images:
            for row in coco_rows(image.image_id, image.rows(), classes.ids):
                out.write(separator + json.dumps(row, ensure_ascii=False))
                separator = ",\n"
        out.write("\n]\n")


def write_csv(images: Iterable[Predicted], path: Path, classes: Classes) -> None:
    """A table with a detection a row: image, xmin, ymin, xmax, ymax (pixels, half-open), class, score."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["image", "xmin", "ymin", "xmax", "ymax", "class", "score"])
        for image in images:
            for box, score, label in image.rows():
                writer.writerow([quote_formula(image.file), *box, quote_formula(classes.names[label - 1]), score])


def write_yolo(images: Iterable[Predicted], folder: Path, classes: Classes) -> None:
    """A text file an image, also without detections: class from 0, centre and sides in shares, score; and classes.txt.

    The files are named as the images, below the same folders; of two images that differ in the suffix only, the second
    one keeps it.
    """
    _mark(folder)
    (folder / "classes.txt").write_text("\n".join(classes.names) + "\n", encoding="utf-8")
    written: set[str] = set()
    for image in images:
        name = _safe(os.path.splitext(image.file)[0])
        name = _safe(image.file) if name in written or name == "classes" else name
        written.add(name)
        width, height = image.size
        lines = []
        for (x1, y1, x2, y2), score, label in image.rows():
            shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(label - 1), *(f"{share:.8g}" for share in shares), f"{score:.6g}"]) + "\n")
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")


def write_voc(images: Iterable[Predicted], folder: Path, classes: Classes) -> None:
    """The devkit's comp4_det_test_CLASS.txt: image id, score, and a box that is 1-based and inclusive.

    Ids of files have no suffix; of two images that differ in the suffix only, the second one keeps it.
    """
    _mark(folder)
    stems = [name.replace("/", "_") for name in classes.names]
    stems = [f"{stem}-{label}" if stems.index(stem) < label - 1 else stem for label, stem in enumerate(stems, 1)]
    paths = [folder / f"comp4_det_test_{stem}.txt" for stem in stems]
    taken: set[str] = set()
    files = [path.open("w", encoding="utf-8", errors="surrogateescape") for path in paths]
    try:
        for image in images:
            image_id = image.image_id
            if image_id == image.file:
                stem = os.path.splitext(image.file)[0]
                image_id = image.file if stem in taken else stem
                taken.add(stem)
            for (x1, y1, x2, y2), score, label in image.rows():
                box = (x1 + 1, y1 + 1, x2, y2)
                files[label - 1].write(" ".join([str(image_id), f"{score:.6f}", *(f"{v:.6f}" for v in box)]) + "\n")
    finally:
        for file in files:
            file.close()


def write_label_studio(images: Iterable[Predicted], path: Path, classes: Classes) -> None:
    """Label Studio's tasks with pre-annotations; images are in its local storage, whose root is the inputs' folder."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
        out.write("[")
        separator = "\n"
        for image in images:
            out.write(separator + json.dumps(_task(image, classes), ensure_ascii=False))
            separator = ",\n"
        out.write("\n]\n")


def _task(image: Predicted, classes: Classes) -> dict[str, Any]:
    width, height = image.size
    result = []
    for number, ((x1, y1, x2, y2), score, label) in enumerate(image.rows(), 1):
        percent = {"x": x1 / width, "y": y1 / height, "width": (x2 - x1) / width, "height": (y2 - y1) / height}
        result.append(
            {
                "id": str(number),
                "from_name": "label",
                "to_name": "image",
                "type": "rectanglelabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    **{name: 100 * share for name, share in percent.items()},
                    "rotation": 0,
                    "rectanglelabels": [classes.names[label - 1]],
                },
                "score": score,
            }
        )
    prediction = {"model_version": f"detkit {__version__}", "score": max(image.scores, default=0.0), "result": result}
    return {"data": {"image": f"/data/local-files/?d={image.file}"}, "predictions": [prediction]}


class Format(NamedTuple):
    """A format: what the name of its file, or of its folder, ends with, and the function that writes it."""

    suffix: str
    write: Callable[[Iterable[Predicted], Path, Classes], None]

    @property
    def is_folder(self) -> bool:
        """Whether it has several files."""
        return "." not in self.suffix


FORMATS = {
    "coco": Format(".json", write_coco),
    "voc": Format("_voc", write_voc),
    "yolo": Format("_yolo", write_yolo),
    "csv": Format(".csv", write_csv),
    "label_studio": Format("_label_studio.json", write_label_studio),
}


def _mark(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("written by detkit predict\n", encoding="utf-8")


def _safe(name: str) -> str:
    """A relative path of a name in an annotation file, which may be absolute, or lead elsewhere."""
    parts = [part for part in re.split(r"[/\\]", name.replace("\0", "_")) if part not in ("", ".", "..")]
    return "/".join(part.replace(":", "_") for part in parts) or "image"
