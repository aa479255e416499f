"""Which data set a folder or a file holds, found from what lies in it; torch is not needed for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detkit.data.input_files import walk
from detkit.data.text_files import encoding_of, read_start, read_text
from detkit.data.voc_files import SPLIT_NAMES, find_folders
from detkit.errors import DataError

if TYPE_CHECKING:
    from detkit.data.datamodule import DetectionDataModule

#: So many files of a kind are looked at.
LOOKED_AT = 1000
#: The key `names` of a YAML file, also in the style of JSON.
NAMES_KEY = re.compile(r"""^[{\s"']*names["']?\s*:|["']names["']\s*:""", re.MULTILINE)


class Layout(NamedTuple):
    """A data set that was found: the class that reads it, the class's arguments, and why it was taken."""

    class_name: str
    arguments: dict[str, Any]
    why: str


def open(path: str | os.PathLike[str], **options: Any) -> DetectionDataModule:
    """The data set in a folder or file, whatever its layout is.

    Args:
        path: the folder or file.
        options: arguments of the class that reads it, such as batch_size.

    Raises:
        DataError: no layout fits, or two do; the message says what to do.
    """
    import detkit.data

    layout = find_layout(path)
    return getattr(detkit.data, layout.class_name)(**{**layout.arguments, **options})


def find_layout(path: str | os.PathLike[str]) -> Layout:
    """The one layout that fits a folder or file.

    Raises:
        DataError: none fits, or two do.
    """
    place = Path(path)
    if not place.exists():
        raise DataError(f"{path}: no such file or folder")
    files = [place] if place.is_file() else _files_of(place)
    found = [layout for finder in (_voc, _coco, _yolo, _csv) for layout in finder(place, files)]
    if not found:
        raise DataError(
            f"{path}: no data set is known here. detkit reads VOC (XML files), COCO (JSON), YOLO (data.yaml or "
            "classes.txt) and CSV (a table with named columns); docs/data.md shows each"
        )
    if len(found) > 1:
        fitting = " and ".join(f"{layout.class_name} ({layout.why})" for layout in found)
        choices = " or ".join(f"--data {layout.class_name} --data.path {path}" for layout in found)
        raise DataError(f"{path}: may be read as {fitting}. Choose one: {choices}")
    return found[0]


def _files_of(folder: Path) -> list[Path]:
    """What may describe a data set below a folder: no images, and of other files the first of each kind."""
    found: dict[str, list[Path]] = {}
    for name in walk(str(folder)):
        suffix = os.path.splitext(name)[1].lower()
        if suffix in (".xml", ".json", ".yaml", ".yml", ".data", ".csv", ".names") or name.endswith("classes.txt"):
            kind = found.setdefault(suffix, [])
            if len(kind) < LOOKED_AT:
                kind.append(Path(name))
    return sorted(file for kind in found.values() for file in kind)


def _voc(place: Path, files: Sequence[Path]) -> Iterator[Layout]:
    if not place.is_dir():
        return
    if folders := find_folders(str(place)):
        yield Layout("VOC", _arguments(place), f"VOC's folders in {', '.join(folders.values())}")
        return
    annotations = (file for file in files if file.suffix.lower() == ".xml" and "<annotation" in read_start(file))
    if found := next(annotations, None):
        yield Layout("VOC", _arguments(place), f"XML annotations such as {found}")


def _arguments(place: Path) -> dict[str, Any]:
    return {"path": str(place), "train": "auto", "val": "auto", "test": "auto"}


def _coco(place: Path, files: Sequence[Path]) -> Iterator[Layout]:
    choices = (("images", "annotations"), ("images", "categories"))
    found = [file for file in files if file.suffix.lower() == ".json" and _has_keys(file, *choices)]
    if not found:
        return
    root = place if place.is_dir() else place.parent
    sets = _by_split(found, root)
    if sets is None:
        names = ", ".join(str(file.relative_to(root)) for file in found)
        raise DataError(
            f"{place}: has the annotation files {names}; say which is which: "
            "--data COCO --data.path ... --data.train_annotations FILE --data.val_annotations FILE"
        )
    names = {split: str(file.relative_to(root)) for split, file in sets.items()}
    arguments: dict[str, Any] = {"path": str(root), "annotations": names.get("all"), "images": "auto"}
    for split in SPLIT_NAMES if "all" not in sets else ():
        arguments |= {f"{split}_annotations": names.get(split), f"{split}_images": "auto"}
    yield Layout("COCO", arguments, f"COCO's JSON, {', '.join(str(file) for file in sets.values())}")


def _yolo(place: Path, files: Sequence[Path]) -> Iterator[Layout]:
    for file in files:
        names_classes = file.suffix.lower() in (".yaml", ".yml") and NAMES_KEY.search(read_start(file).lstrip("\ufeff"))
        darknet = file.suffix == ".data" and re.search(r"^names\s*=", read_start(file), re.MULTILINE)
        if names_classes or darknet or file.name in ("classes.txt", "obj.names"):
            path = file if names_classes or place.is_file() else place
            yield Layout("YOLO", {"path": str(path)}, f"the class names in {file}")
            return


def _csv(place: Path, files: Sequence[Path]) -> Iterator[Layout]:
    from detkit.data.csv_columns import is_table

    tables = [file for file in files if file.suffix.lower() == ".csv" and is_table(read_start(file))]
    if tables:
        yield Layout("CSV", {"path": str(place)}, f"the table {tables[0]}")


def _by_split(files: Sequence[Path], root: Path) -> dict[str, Path] | None:
    """Split -> the one file whose name or folder names it; {"all": file} for a single file; None where unclear."""
    sets: dict[str, Path] = {}
    for file in files:
        words = re.findall(r"[a-z]+", str(file.relative_to(root)).lower())
        splits = [split for split, names in SPLIT_NAMES.items() if set(names) & set(words)]
        if len(splits) > 1 or (splits and splits[0] in sets) or (not splits and len(files) > 1):
            return None
        sets[splits[0] if splits and len(files) > 1 else "all"] = file
    return sets


def _has_keys(file: Path, *choices: Sequence[str]) -> bool:
    """Whether all keys of one choice stand somewhere in a JSON object, which is not parsed for it: it may be large."""
    start = read_start(file)
    if not start.lstrip("\ufeff \t\r\n").startswith("{"):
        return False
    wanted = {key: f'"{key}"'.encode() for keys in choices for key in keys}
    with file.open("rb") as content:
        is_utf8 = encoding_of(content.read(4)).startswith("utf-8")
        content.seek(0)
        blocks = iter(lambda: content.read(2**24), b"") if is_utf8 else [read_text(file).encode()]
        rest = b""
        for block in blocks:
            wanted = {key: text for key, text in wanted.items() if text not in rest + block}
            rest = block[-32:]
            if any(not set(keys) & set(wanted) for keys in choices):
                return True
    return False
