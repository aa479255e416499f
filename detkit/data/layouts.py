"""Which data set a folder or a file holds, found from what lies in it; torch is not needed for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detkit.data.input_files import walk
from detkit.data.records import files_of_splits
from detkit.data.text_files import encoding_of, read_start, read_text
from detkit.data.voc_files import SPLIT_NAMES, find_folders
from detkit.data.yolo_files import CLASS_FILES
from detkit.errors import DataError

if TYPE_CHECKING:
    from detkit.data.datamodule import DetectionDataModule

#: So many files of a kind are looked at.
LOOKED_AT = 1000
#: The key `names` of a YAML file, also in the style of JSON.
JSON_KINDS = {"LabelStudio": "Label Studio's JSON", "LabelMe": "LabelMe's JSON"}
#: The keys of an object in JSON that tell what it is.
JSON_KEYS = (
    ("COCO", ("images", "annotations")),
    ("COCO", ("images", "categories")),
    ("LabelMe", ("shapes", "imagePath")),
)
SUFFIXES = (".xml", ".json", ".yaml", ".yml", ".data", ".csv")
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


def opened(data: DetectionDataModule | str | os.PathLike[str]) -> DetectionDataModule:
    """The data set itself, or that of a path; raises as `open`."""
    return open(data) if isinstance(data, str | os.PathLike) else data


def find_layout(path: str | os.PathLike[str]) -> Layout:
    """The one layout that fits a folder or file.

    Raises:
        DataError: none fits, or two do.
    """
    place = Path(path)
    if not place.exists():
        raise DataError(f"{path}: no such file or folder")
    files = [place] if place.is_file() else _files_of(place)
    found = [layout for finder in (_voc, _json, _yolo, _csv) for layout in finder(place, files)]
    if not found:
        raise DataError(
            f"{path}: no data set is known here. detkit reads VOC (XML files), COCO (JSON), YOLO (data.yaml or "
            "classes.txt), CSV (a table with named columns), and what Label Studio and LabelMe write (JSON); "
            "docs/data.md shows each"
        )
    if len(found) > 1:
        fitting = " and ".join(f"{layout.class_name} ({layout.why})" for layout in found)
        choices = " or ".join(f"--data {layout.class_name} --data.path {path}" for layout in found)
        raise DataError(f"{path}: may be read as {fitting}. Choose one: {choices}")
    return found[0]


def _files_of(folder: Path) -> list[Path]:
    """What may describe a data set below a folder: no images, and of other files the first of each kind."""
    found: dict[str, list[Path]] = {}
    for name in walk(str(folder), hidden=False):
        suffix = os.path.splitext(name)[1].lower()
        if suffix in SUFFIXES or os.path.basename(name).lower() in CLASS_FILES:
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


def _json(place: Path, files: Sequence[Path]) -> Iterator[Layout]:
    kinds: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix.lower() == ".json" and (kind := json_kind(file)):
            kinds.setdefault(kind, []).append(file)
    if found := kinds.get("COCO"):
        # COCO has keypoints and captions of the same images in files of other names.
        instances = [file for file in found if file.name.startswith("instances")]
        yield _coco(place, instances or found)
    for name in ("LabelStudio", "LabelMe"):
        if found := kinds.get(name):
            yield Layout(name, {"path": str(place)}, f"{JSON_KINDS[name]}, such as {found[0]}")


def _coco(place: Path, found: Sequence[Path]) -> Layout:
    root = place if place.is_dir() else place.parent
    if place.is_file() and root.name == "annotations":  # whose images lie beside this folder
        root = root.parent
    sets = files_of_splits(list(map(str, found)), str(root))
    if sets is None:
        listed = ", ".join(str(file.relative_to(root)) for file in found)
        raise DataError(
            f"{place}: has the annotation files {listed}; say which is which: "
            "--data COCO --data.path ... --data.train_annotations FILE --data.val_annotations FILE"
        )
    names = {split: os.path.relpath(file, root) for split, file in sets.items()}
    arguments: dict[str, Any] = {"path": str(root), "annotations": names.get("all"), "images": "auto"}
    for split in SPLIT_NAMES if "all" not in sets else ():
        arguments |= {f"{split}_annotations": names.get(split), f"{split}_images": "auto"}
    return Layout("COCO", arguments, f"COCO's JSON, {', '.join(sets.values())}")


def _yolo(place: Path, files: Sequence[Path]) -> Iterator[Layout]:
    for file in files:
        names_classes = file.suffix.lower() in (".yaml", ".yml") and NAMES_KEY.search(read_start(file).lstrip("\ufeff"))
        darknet = file.suffix == ".data" and re.search(r"^names\s*=", read_start(file), re.MULTILINE)
        if names_classes or darknet or file.name.lower() in CLASS_FILES:
            path = file if names_classes or place.is_file() else place
            yield Layout("YOLO", {"path": str(path)}, f"the class names in {file}")
            return


def _csv(place: Path, files: Sequence[Path]) -> Iterator[Layout]:
    from detkit.data.csv_columns import is_table

    tables = [file for file in files if file.suffix.lower() == ".csv" and is_table(read_start(file))]
    if tables:
        yield Layout("CSV", {"path": str(place)}, f"the table {tables[0]}")


def json_kind(file: str | Path) -> str | None:
    """The class that reads a JSON file, by the keys that stand somewhere in it; it is not parsed: it may be large."""
    start = read_start(file).lstrip("\ufeff \t\r\n")
    if start.startswith("["):
        is_labels = re.search(r'"(rectangle|polygon)labels"', start) or {'"data"', '"annotations"'} <= set(
            re.findall(r'"(?:data|annotations)"', start)
        )
        return "LabelStudio" if is_labels else None
    if not start.startswith("{"):
        return None
    wanted = {key for _, keys in JSON_KEYS for key in keys}
    with Path(file).open("rb") as content:
        is_utf8 = encoding_of(content.read(4)).startswith("utf-8")
        content.seek(0)
        blocks = iter(lambda: content.read(2**24), b"") if is_utf8 else [read_text(file).encode()]
        rest = b""
        for block in blocks:
            wanted = {key for key in wanted if f'"{key}"'.encode() not in rest + block}
            rest = block[-32:]
            if found := next((kind for kind, keys in JSON_KEYS if not wanted & set(keys)), None):
                return found
    return None
