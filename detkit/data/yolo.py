"""Data sets of YOLO projects: a text file an image, with a class number and four shares of the image's sides a line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from detkit.data.annotations import Annotations, Finding, class_policy
from detkit.data.datamodule import DetectionDataModule
from detkit.data.input_files import walk
from detkit.data.records import Box, ImageRecord, ObjectRecord, Records, to_annotations
from detkit.data.text_files import read_text
from detkit.data.voc_files import SPLIT_NAMES, is_image_name
from detkit.errors import DataError

CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "data/obj.names")


class YOLO(DetectionDataModule):
    """A data set in YOLO's layout: images, and for each a text file with a line an object.

    A line is `CLASS X Y WIDTH HEIGHT`, the centre and the sides of the box in shares of the image's sides, or
    `CLASS X Y X Y X Y ...`, an outline, of which the box is taken. CLASS counts from 0. An image without a file has no
    objects.

    Args:
        path: data.yaml, or the folder of it. Without data.yaml (or Darknet's obj.data) the names are read from
            classes.txt or obj.names, and the sets are the folders train, val (or valid) and test.
        other_classes: what to do with an object of another class than class_names: "error", or "drop" to leave it
            out (it is then background); the summary says how many were.
        shared: see DetectionDataModule. Without class_names the classes are the data set's own, in its order.
    """

    def __init__(
        self, path: str = "data/yolo", other_classes: Literal["error", "drop"] = "error", **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.path = str(path)
        self.other_classes = other_classes
        class_policy(other_classes)  # raises where it is neither word
        self.files = find_files(self.path)
        self.sources = {split: self.path if split in self.files.images else None for split in ("train", "val", "test")}
        if "all" in self.files.images:
            self.sources = {"all": self.path}
        if not self.class_names:
            self._set_classes(self.files.class_names)

    def read(self, split: str) -> Annotations | None:
        """Read the label files of a split."""
        if split not in self.files.images:
            return None
        records = read_yolo(self.files, split)
        return to_annotations(records, self.class_names, class_policy(self.other_classes))


class YOLOFiles(NamedTuple):
    """Where a data set lies: its folder, its class names, and split -> image files; "all" where there is no split."""

    root: str
    class_names: list[str]
    images: dict[str, list[str]]


def find_files(path: str) -> YOLOFiles:
    """Find what belongs to a data set in YOLO's layout.

    Args:
        path: data.yaml, obj.data, or the folder of them.

    Raises:
        DataError: neither class names nor images are found there, or a file in between is missing or malformed.
    """
    description = _description(Path(path))
    if description is None:
        root = Path(path)
        names = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
        if names is None:
            raise DataError(f"{path}: no data.yaml, obj.data, classes.txt or obj.names, which name the classes")
        return YOLOFiles(str(root), _lines(names), _images_of_folders(root))
    root, content = description
    base = root / str(content.get("path") or ".")
    base = base if base.is_dir() else root  # a path of the machine where the file was written
    images = {}
    for split, names in SPLIT_NAMES.items():
        if entry := next((content[name] for name in names if content.get(name)), None):
            images[split] = [file for each in _as_list(entry) for file in _images_of(base, str(each), root, path)]
    return YOLOFiles(str(root), _class_names(content.get("names"), root, path), images or _images_of_folders(root))


def _description(path: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """The folder and the content of data.yaml or obj.data; None where there is neither."""
    files = [path] if path.is_file() else [*sorted(path.glob("*.y*ml")), *sorted(path.glob("*.data"))]
    files += [] if path.is_file() else sorted(path.glob("data/*.data"))
    for file in files:
        text = read_text(file)
        if file.suffix == ".data":
            pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
            return path if path.is_dir() else path.parent, {key.strip(): value.strip() for key, _, value in pairs}
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DataError(f"{file}: not YAML ({str(error).splitlines()[0]})") from None
        if isinstance(content, dict) and "names" in content:
            return file.parent, content
    if path.is_file():
        raise DataError(f"{path}: holds no `names:` with the classes")
    return None


def _class_names(names: Any, root: Path, path: str) -> list[str]:
    if isinstance(names, str):
        return _lines(_existing(root, names, path))
    if isinstance(names, dict):
        numbers = sorted(names) if all(isinstance(number, int) for number in names) else None
        if numbers != list(range(len(names))):
            raise DataError(f"{path}: the numbers of `names` are to be 0, 1, ..., {len(names) - 1}, not {list(names)}")
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: `names` is to be a list of the classes, or of number: class")
    return [str(name) for name in names]


def _images_of_folders(root: Path) -> dict[str, list[str]]:
    """The images below folders that are named as splits are, in any of YOLO's orders; else all images."""
    images = {}
    for split, names in SPLIT_NAMES.items():
        folders = (root / part for name in names for part in (f"{name}/images", f"images/{name}", name))
        if folder := next((folder for folder in folders if folder.is_dir()), None):
            images[split] = _walk(folder)
    return images or {"all": _walk(root)}


def _images_of(base: Path, entry: str, root: Path, path: str) -> list[str]:
    """The images of an entry: a folder, a file that lists images, or an image."""
    found = _existing(base, entry, path, root)
    if found.is_dir():
        return _walk(found)
    if is_image_name(str(found)):
        return [str(found)]
    return [str(_existing(found.parent, line, str(found), root)) for line in _lines(found)]


def _existing(folder: Path, name: str, source: str, root: Path | None = None) -> Path:
    """The path that a name means: below the folder, or with the first folders of the name left out, which were those of
    the machine where it was written."""
    parts = Path(name.replace("\\", "/")).parts
    for base in (folder, *([root] if root else [])):
        for start in range(len(parts)):
            path = base.joinpath(*(part for part in parts[start:] if part != "/"))
            if ".." not in parts[start:] and path.exists():
                return path
    raise DataError(f"{source}: {name!r} is not there (searched below {folder})")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _walk(folder: Path) -> list[str]:
    return sorted(file for file in walk(str(folder)) if is_image_name(file))


# -- label files -----------------------------------------------------------------------------------


def read_yolo(files: YOLOFiles, split: str) -> Records:
    """The objects of a split's images.

    Raises:
        DataError: a line that is none of YOLO's; the message names file and line.
    """
    findings: list[Finding] = []
    images = []
    for file in files.images[split]:
        source = _label_file(file)
        objects = [] if source is None else list(_objects(source, files.class_names, findings))
        name = os.path.relpath(file, files.root)
        images.append(ImageRecord(name.replace(os.sep, "/"), name, source or file, objects, normalized=True))
    missing = [image.file for image in images if image.source.endswith(image.file)]
    if missing:
        text = f"{len(missing):,} images have no label file, such as {missing[0]}: taken as images without objects"
        findings.append(Finding("no_label_file", files.root, None, text, len(missing)))
    return Records(files.root, images, findings)


def _label_file(image: str) -> str | None:
    """The label file of an image: in the folder labels beside images, or beside the image; None if there is none."""
    path = Path(image).with_suffix(".txt")
    candidates = [path]
    if "images" in path.parts:
        last = len(path.parts) - 1 - path.parts[::-1].index("images")
        candidates.insert(0, Path(*path.parts[:last], "labels", *path.parts[last + 1 :]))
    return next((str(each) for each in candidates if each.is_file()), None)


def _objects(source: str, class_names: list[str], findings: list[Finding]) -> Iterator[ObjectRecord]:
    for number, line in enumerate(read_text(source).splitlines(), 1):
        if not (fields := line.split()):
            continue
        where = f"{source}: line {number}"
        try:
            values = [float(field) for field in fields]
        except ValueError:
            raise DataError(f"{where}: {line.strip()[:60]!r} is not a class number and shares of the sides") from None
        label, shares = values[0], values[1:]
        if len(shares) == 5:
            findings.append(Finding("confidence", source, number, "a sixth number, a confidence, is not used"))
            shares = shares[:4]
        if len(shares) < 4 or len(shares) % 2:
            raise DataError(f"{where}: has {len(values)} numbers; a box has 5, an outline 7, 9, 11, ...")
        if not label.is_integer() or not 0 <= label < len(class_names):
            raise DataError(f"{where}: class {fields[0]}, but there are the classes 0 to {len(class_names) - 1}")
        if not all(abs(share) <= 2 for share in shares):  # NaN is not, either
            largest = next(share for share in shares if not abs(share) <= 2)
            raise DataError(f"{where}: {largest:g} is no share of a side, 0 to 1; boxes in pixels are not YOLO's")
        yield ObjectRecord(class_names[int(label)], _box(shares), number)


def _box(shares: list[float]) -> Box:
    if len(shares) == 4:
        x, y, width, height = shares
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    xs, ys = shares[::2], shares[1::2]
    return min(xs), min(ys), max(xs), max(ys)
