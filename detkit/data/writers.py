"""Writing data sets: COCO, VOC, YOLO and CSV, so that the readers give the same images, boxes and classes.

No image is written here. Each writer puts its files into a folder, and returns what its format cannot hold, in words.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
import numpy as np
import yaml

from detkit.data.annotations import Annotations
from detkit.data.voc_xml import VOCObject, format_annotation
from detkit.errors import DataError

#: The columns of a table of objects, as `write_csv` writes them.
CSV_COLUMNS = ("image", "xmin", "ymin", "xmax", "ymax", "class")
#: Shares of an image's sides have so many decimals at most, and boxes so many; a float64 has no more.
MAX_SHARE_DIGITS, MAX_DIGITS = 15, 12


@dataclass(frozen=True)
class NewSplit:
    """A split that is to be written.

    Attributes:
        name: "train", "val" or "test".
        annotations: its images and boxes.
        files: (I,) the names of the images below `Format.image_folder`, with "/" between folders.
        sizes: (I, 2) int, widths and heights of the images as the boxes mean them.
        category_ids: the ids of the classes.
    """

    name: str
    annotations: Annotations
    files: Sequence[str]
    sizes: np.ndarray
    category_ids: Sequence[int]

    @property
    def image_of(self) -> np.ndarray:
        """The image of each box, (N,) int64."""
        return np.repeat(np.arange(len(self.files)), self.annotations.counts)

    def rows(self, index: int) -> range:
        """The boxes of an image."""
        return range(*self.annotations.offsets[index : index + 2].tolist())


class Format(NamedTuple):
    """A format that data sets are written in.

    Attributes:
        name: of the data set's class that reads it.
        image_folder: where the images of a split lie, with {split} for its name.
        write: (folder, splits, class names) -> what the format cannot hold.
        by_stem: two images may not have names that differ only in their suffix.
        crowds: whether crowds are written.
    """

    name: str
    image_folder: str
    write: Callable[[Path, Sequence[NewSplit], Sequence[str]], list[str]]
    by_stem: bool
    crowds: bool

    @property
    def shares_folder(self) -> bool:
        """Whether all splits have their images in one folder."""
        return "{split}" not in self.image_folder

    def folder_of(self, split: str) -> str:
        """The folder of a split's images."""
        return self.image_folder.format(split=split)


# -- COCO ------------------------------------------------------------------------------------------


def write_coco(folder: Path, splits: Sequence[NewSplit], class_names: Sequence[str]) -> list[str]:
    """Write annotations/instances_SPLIT.json.

    Ids of images that are strings become numbers, from 1 through all splits. Objects that are difficult have a key
    `difficult`, which COCO does not know and `data.COCO` reads. Boxes are the shortest decimals that are the same
    float32 when they are read. A split that nobody has annotated has no list of annotations.
    """
    notes = []
    number = 0
    for split in splits:
        annotations = split.annotations
        ids = annotations.image_ids.tolist()
        if ids and isinstance(ids[0], str):
            ids = [number + i for i in range(1, len(ids) + 1)]
            number += len(ids)
            notes.append(f"{split.name}: image ids are names, and become the numbers {ids[0]} to {ids[-1]}")
        if list(split.category_ids) != sorted(split.category_ids):
            notes.append(f"{split.name}: detkit reads the classes in the order of their ids {list(split.category_ids)}")
        if count := int(annotations.difficult.sum()):
            text = "COCO has no place for it; it is written as the key `difficult`, which detkit reads"
            notes.append(f"{split.name}: {count:,} difficult objects: {text}")
        path = folder / "annotations" / f"instances_{split.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        categories = ({"id": i, "name": name} for i, name in zip(split.category_ids, class_names, strict=True))
        with path.open("wb") as file:
            _write_list(file, b'{"images":', _coco_images(split, ids))
            if annotations.annotated:
                _write_list(file, b',\n"annotations":', _coco_objects(split, ids))
            _write_list(file, b',\n"categories":', categories)
            file.write(b"}\n")
    return notes


def _write_list(file: BinaryIO, key: bytes, rows: Iterable[dict[str, object]]) -> None:
    """A JSON list, written row by row: a large data set is never held as a whole."""
    file.write(key)
    begin = b" [\n"
    for row in rows:
        file.write(begin + msgspec.json.encode(row))
        begin = b",\n"
    file.write(b"\n]" if begin == b",\n" else b" []")


def _coco_images(split: NewSplit, ids: Sequence[int]) -> Iterator[dict[str, object]]:
    for image_id, file, (width, height) in zip(ids, split.files, split.sizes.tolist(), strict=True):
        yield {"id": image_id, "file_name": file, "width": width, "height": height}


def _coco_objects(split: NewSplit, ids: Sequence[int]) -> Iterator[dict[str, object]]:
    annotations = split.annotations
    corner = shortest(annotations.boxes[:, :2])
    sides = shortest(annotations.boxes[:, 2:], corner)
    columns = (split.image_of, np.hstack([corner, sides]), shortest(annotations.area), annotations.labels)
    flags = (annotations.crowd, annotations.difficult)
    rows = zip(*(column.tolist() for column in (*columns, *flags)), strict=True)
    for number, (image, box, area, label, crowd, difficult) in enumerate(rows, 1):
        row = {"id": number, "image_id": ids[image], "category_id": split.category_ids[label - 1], "bbox": box}
        row |= {"area": area, "iscrowd": int(crowd), "segmentation": []}
        yield row | ({"difficult": 1} if difficult else {})


def shortest(values: np.ndarray, base: np.ndarray | float = 0.0) -> np.ndarray:
    """The decimals with the fewest digits that are these numbers once `base` is added and float32 is made of the sum.

    Args:
        values: float32.
        base: float64 of the same shape.

    Returns:
        float64 of the same shape.
    """
    result = values.astype(np.float64) - base
    missing = np.ones(values.shape, bool)
    exact = result.copy()
    for digits in range(MAX_DIGITS + 1):
        rounded = np.round(exact, digits)
        good = missing & ((base + rounded).astype(np.float32) == values)
        result[good] = rounded[good]
        missing &= ~good
        if not missing.any():
            break
    return result


# -- VOC -------------------------------------------------------------------------------------------


def write_voc(folder: Path, splits: Sequence[NewSplit], class_names: Sequence[str]) -> list[str]:
    """Write Annotations/ID.xml and ImageSets/Main/SPLIT.txt.

    Boxes are rounded to whole pixels. A crowd, for which VOC has no place, is written as difficult: nothing is learnt
    from either, and neither is counted. Images that nobody has annotated have no file.

    Raises:
        DataError: the name of a class cannot be written in XML.
    """
    for name in class_names:
        if re.search("[\ufffe\uffff]", name):
            raise DataError(f"class name {name!r} has a character that XML does not allow; rename the class")
    notes = _no_class_list("VOC", splits, class_names)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    for split in splits:
        annotations = split.annotations
        boxes = round_boxes(annotations.boxes)
        notes += _about_rounding(split, boxes)
        if count := int(annotations.crowd.sum()):
            text = "VOC has no place for it; they are written as difficult, which nothing is learnt from either"
            notes.append(f"{split.name}: {count:,} boxes of crowds: {text}")
        difficult = (annotations.difficult | annotations.crowd).tolist()
        corners, labels = boxes.tolist(), annotations.labels.tolist()
        ids = [os.path.splitext(file)[0] for file in split.files]
        text = "".join(f"{each}\n" for each in ids)
        (folder / "ImageSets" / "Main" / f"{split.name}.txt").write_text(text, encoding="utf-8", newline="\n")
        for index, image_id in enumerate(ids if annotations.annotated else ()):
            objects = [
                VOCObject(class_names[labels[row] - 1], tuple(corners[row]), difficult[row])
                for row in split.rows(index)
            ]
            filename = split.files[index].rpartition("/")[2]
            width, height = split.sizes[index]
            text = format_annotation(filename, int(width), int(height), objects)
            _write(folder / "Annotations" / f"{image_id}.xml", text)
    return notes


def round_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes in whole pixels, half-open, float64 (N, 4); a side that would be 0 is 1."""
    rounded = np.round(boxes.astype(np.float64))
    low, high = rounded[:, :2], rounded[:, 2:]
    flat = low >= high  # both ends round to one number: take the pixel that holds them
    low[flat] = np.floor(boxes[:, :2])[flat]
    high[flat] = low[flat] + 1
    return rounded


def _about_rounding(split: NewSplit, rounded: np.ndarray) -> Iterator[str]:
    moved = np.abs(rounded - split.annotations.boxes).max(1, initial=0.0)
    if count := int((moved > 0).sum()):
        text = f"rounded to whole pixels, which VOC has; no side moves by more than {moved.max():.3g} px"
        yield f"{split.name}: {count:,} of {len(moved):,} boxes are {text}"
    if count := int(((rounded[:, 2:] - rounded[:, :2]) <= 1).any(1).sum()):
        yield f"{split.name}: {count:,} boxes are 1 px wide or high, which detkit reads as too small and leaves out"


# -- YOLO ------------------------------------------------------------------------------------------


def write_yolo(folder: Path, splits: Sequence[NewSplit], class_names: Sequence[str]) -> list[str]:
    """Write data.yaml and a file of labels/SPLIT an image, an empty one where it has no objects.

    Shares of the sides have as many decimals as the same float32 pixels need. Difficult objects are written as others
    are; crowds are left out, as Ultralytics' converter of COCO does. Images that nobody has annotated have no file.
    """
    notes = []
    for split in splits:
        annotations = split.annotations
        if count := int((annotations.difficult & ~annotations.crowd).sum()):
            text = "YOLO has no place for it; they are written as ordinary objects"
            notes.append(f"{split.name}: {count:,} difficult objects: {text}")
        if count := int(annotations.crowd.sum()):
            text = "YOLO has no place for it; they are left out, since they are no single objects"
            notes.append(f"{split.name}: {count:,} boxes of crowds: {text}")
        if not annotations.annotated:
            text = "nobody has annotated them, which YOLO cannot say; detkit reads them as images without objects"
            notes.append(f"{split.name}: {len(annotations):,} images have no label file: {text}")
            continue
        shares, digits = yolo_shares(annotations.boxes, split.sizes[split.image_of])
        lines = [
            f"{label - 1} {' '.join(_decimal(share, places) for share in box)}\n"
            for label, box, places in zip(annotations.labels.tolist(), shares.tolist(), digits.tolist(), strict=True)
        ]
        for index, file in enumerate(split.files):
            own = (lines[row] for row in split.rows(index) if not annotations.crowd[row])
            _write(folder / _label_file(f"images/{split.name}/{file}"), "".join(own))
    content = {split.name: f"images/{split.name}" for split in splits} | {"names": list(class_names)}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=float("inf"))
    _write(folder / "data.yaml", text)
    return notes


def _label_file(image: str) -> str:
    """Where readers look for the labels of an image: the last folder called images is replaced."""
    folders = os.path.splitext(image)[0].split("/")
    last = len(folders) - 1 - folders[::-1].index("images", 1)
    return "/".join([*folders[:last], "labels", *folders[last + 1 :]]) + ".txt"


def yolo_shares(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres and sides of boxes in shares of the images' sides.

    Args:
        boxes: (N, 4) float32.
        sizes: (N, 2) int, the size of the image of each.

    Returns:
        (N, 4) float64 x, y, width, height, and (N,) int64, the decimals of each box: as few as its pixels need to be
        the same float32 again.
    """
    scale = np.hstack([sizes, sizes]).astype(np.float64)
    exact = boxes / np.maximum(scale, 1)
    shares = np.zeros(boxes.shape)
    digits = np.full(len(boxes), MAX_SHARE_DIGITS + 1)
    for places in range(5, MAX_SHARE_DIGITS + 1):
        # The corners are rounded, so that a box at the image's border stays there.
        low, high = np.round(exact[:, :2], places), np.round(exact[:, 2:], places)
        new = np.hstack([np.round((low + high) / 2, places + 1), np.round(high - low, places)])
        read = np.hstack([new[:, :2] - new[:, 2:] / 2, new[:, :2] + new[:, 2:] / 2]) * scale
        same = (np.clip(read, 0, scale).astype(np.float32) == boxes).all(1)
        good = (digits > MAX_SHARE_DIGITS) & (same | (places == MAX_SHARE_DIGITS))
        shares[good], digits[good] = new[good], places + 1
    return shares, digits


def _decimal(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


# -- CSV -------------------------------------------------------------------------------------------


def write_csv(folder: Path, splits: Sequence[NewSplit], class_names: Sequence[str]) -> list[str]:
    """Write SPLIT.csv with a row an object (`CSV_COLUMNS`); an image without objects has a row without box and class.

    Boxes are half-open, in pixels, the shortest decimals that are the same float32. Crowds are left out.
    """
    notes = _no_class_list("CSV", splits, class_names)
    for split in splits:
        annotations = split.annotations
        if count := int((annotations.difficult & ~annotations.crowd).sum()):
            text = "the table has no place for it; they are written as ordinary objects"
            notes.append(f"{split.name}: {count:,} difficult objects: {text}")
        if count := int(annotations.crowd.sum()):
            text = "the table has no place for it; they are left out, since they are no single objects"
            notes.append(f"{split.name}: {count:,} boxes of crowds: {text}")
        if not annotations.annotated:
            text = "nobody has annotated them, which the table cannot say; they are read as images without objects"
            notes.append(f"{split.name}: {len(annotations):,} images have no box: {text}")
        boxes, labels = shortest(annotations.boxes).tolist(), annotations.labels.tolist()
        with (folder / f"{split.name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(CSV_COLUMNS)
            for index, name in enumerate(split.files):
                image = f"images/{split.name}/{name}"
                rows = [row for row in split.rows(index) if not annotations.crowd[row]]
                writer.writerows([image, *boxes[row], class_names[labels[row] - 1]] for row in rows)
                if not rows:
                    writer.writerow([image, "", "", "", "", ""])
    return notes


# -- all -------------------------------------------------------------------------------------------


def _no_class_list(name: str, splits: Sequence[NewSplit], class_names: Sequence[str]) -> list[str]:
    """What is lost where the classes are those that the objects have."""
    learnt = [split.annotations.labels for split in splits if split.name != "test"]
    found = set(np.unique(np.concatenate([*learnt, np.zeros(0, np.int64)])).tolist())
    notes = []
    if unused := [each for label, each in enumerate(class_names, 1) if label not in found]:
        some = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        notes.append(
            f"{name} has no list of classes: {len(unused):,} without objects in train and val are lost: {some}"
        )
    if list(class_names) != sorted(class_names):
        text = "they are read in alphabetical order, unless class_names gives another"
        notes.append(f"{name} has no list of classes: {text}")
    if padded := [each for each in class_names if each != each.strip()]:
        notes.append(f"class names lose the white space at their ends: {', '.join(map(repr, padded[:5]))}")
    return notes


def _write(path: Path, text: str) -> None:
    try:
        file = path.open("w", encoding="utf-8", newline="\n")
    except FileNotFoundError:  # asking for each of a hundred thousand files whether its folder is there takes long
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8", newline="\n")
    with file:
        file.write(text)


FORMATS = {
    "coco": Format("COCO", "images/{split}", write_coco, by_stem=False, crowds=True),
    "voc": Format("VOC", "JPEGImages", write_voc, by_stem=True, crowds=True),
    "yolo": Format("YOLO", "images/{split}", write_yolo, by_stem=True, crowds=False),
    "csv": Format("CSV", "images/{split}", write_csv, by_stem=False, crowds=False),
}
