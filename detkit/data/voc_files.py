"""Files in PASCAL VOC's layout, read as they are written and written: folders, image sets and annotations.

Training (data/voc.py) and evaluation (evaluation/voc_result_files.py) both begin with `read_voc`.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn
from xml.sax.saxutils import escape

from detkit.data.annotations import Finding
from detkit.data.input_files import is_inside, list_folder, read_bytes, short_repr
from detkit.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif")


def is_image_name(path: str) -> bool:
    """Whether a file is an image by its suffix, and not hidden."""
    return path.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(path).startswith(".")


class VOCObject(NamedTuple):
    """One object; read from a file its box is VOC's 1-based inclusive one, and difficult None if missing or unclear."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool | None


class VOCImage(NamedTuple):
    """One annotation file as written; width and height are 0 where they are missing."""

    width: int
    height: int
    filename: str
    objects: list[VOCObject]


class VOCEntry(NamedTuple):
    """An image of an image set: its id, the VOC folder it is in, its annotation file and what that holds."""

    image_id: str
    folder: str
    source: str
    image: VOCImage


class VOCSet(NamedTuple):
    """An image set as written below `path`: the VOC folders it is in, its images in their order, and the findings."""

    path: str
    folders: list[str]
    entries: list[VOCEntry]
    findings: list[Finding]

    def class_names(self) -> set[str]:
        """The class names that occur."""
        return {item.name for entry in self.entries for item in entry.image.objects}


def read_voc(path: str, image_set: str) -> VOCSet:
    """Read the annotations of an image set; the images themselves may be missing.

    Args:
        path: a VOC folder, a VOCdevkit, or the folder around that.
        image_set: such as "train", "2007/trainval" or "2007/trainval+2012/trainval".

    Raises:
        DataError: anything missing, malformed or outside the folder.
    """
    parts = _split_set_name(image_set, _find_folders(path))
    entries: list[VOCEntry] = []
    findings: list[Finding] = []
    seen: dict[str, str] = {}
    for folder, name in parts:
        annotations = os.path.join(folder, "Annotations")
        if not list_files(annotations, (".xml",)):
            raise DataError(f"{annotations}: the folder holds no annotation (*.xml)")
        for image_id in read_image_set(folder, name):
            source = os.path.join(annotations, f"{image_id}.xml")
            if image_id not in seen:
                seen[image_id] = folder
                entries.append(VOCEntry(image_id, folder, source, parse_annotation(source)))
            elif seen[image_id] == folder:
                findings.append(Finding("duplicate", source, None, f"listed twice in {name}; taken once"))
            else:
                raise DataError(f"{source}: image id {image_id!r} is also in {seen[image_id]}; ids must be unique")
    return VOCSet(path, [folder for folder, _ in parts], entries, findings)


def find_image(entry: VOCEntry, files: dict[str, str]) -> str | None:
    """The image file; None where there is none.

    JPEGImages/<id>.* comes first: the name in the XML is often out of date.

    Args:
        entry: the image.
        files: `list_files` of its folder's JPEGImages.

    Raises:
        DataError: <filename> leads out of the folder.
    """
    folder, image_id = os.path.join(entry.folder, "JPEGImages"), entry.image_id
    if image_id in files:
        return os.path.join(folder, files[image_id])
    names = [image_id + suffix for suffix in IMAGE_SUFFIXES] if "/" in image_id else []
    if entry.image.filename:
        if not is_inside(entry.image.filename):
            raise DataError(
                f"{entry.source}: <filename> {short_repr(entry.image.filename)} leaves the data set's folder; refused"
            )
        names.append(entry.image.filename)
    paths = (os.path.join(folder, name) for name in names)
    return next((path for path in paths if os.path.isfile(path)), None)


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE, the only place where entities can be declared, before it is read."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise DataError("the file declares a DOCTYPE, which an annotation never needs; refused")


def parse_annotation(path: str) -> VOCImage:
    """Read one annotation file; DataError if it is missing, no XML, has a DOCTYPE, or an object without name or box."""
    content = read_bytes(path, "annotation file")
    try:
        root = ElementTree.XML(content, ElementTree.XMLParser(target=_NoDoctype()))
        if root.tag != "annotation":
            raise DataError(f"the outermost element is <{root.tag}> instead of <annotation>")
        size = root.find("size")
        width, height = (0, 0) if size is None else (_side(size, "width"), _side(size, "height"))
        objects = [_object(element, number) for number, element in enumerate(root.iterfind("object"), 1)]
        return VOCImage(width, height, (root.findtext("filename") or "").strip(), objects)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not well-formed XML ({error})") from None


def _side(size: Any, name: str) -> int:
    text = (size.findtext(name) or "0").strip()
    try:
        return max(int(float(text)), 0)
    except (ValueError, OverflowError):
        raise DataError(f"<{name}> is {text!r} instead of a number") from None


def _object(element: Any, number: int) -> VOCObject:
    name = (element.findtext("name") or "").strip()
    bounds = element.find("bndbox")
    if not name or bounds is None:
        raise DataError(f"object {number}: <{'bndbox' if name else 'name'}> is missing")
    values = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = (bounds.findtext(key) or "").strip()
        try:
            values.append(float(text))
        except ValueError:
            raise DataError(f"object {number}: <{key}> is {text!r} instead of a number") from None
    difficult = {"0": False, "1": True, "false": False, "true": True}.get(
        (element.findtext("difficult") or "").strip().lower()
    )
    return VOCObject(name, (values[0], values[1], values[2], values[3]), difficult)


def _find_folders(path: str) -> dict[str, str]:
    """Year or other name ("VOC2007" is called "2007") -> VOC folder: `path` itself, or those below it."""
    if not os.path.isdir(path):
        raise DataError(f"{path}: folder does not exist")
    for top in (path, os.path.join(path, "VOCdevkit")):
        if _is_voc(top):
            return {_short(os.path.basename(os.path.abspath(top))): top}
        names = list_folder(top) if os.path.isdir(top) else []
        if inside := {_short(name): folder for name in names if _is_voc(folder := os.path.join(top, name))}:
            return inside
    raise DataError(f"{path}: no VOC folder here (it holds Annotations, JPEGImages and ImageSets/Main)")


def _is_voc(path: str) -> bool:
    return os.path.isdir(os.path.join(path, "Annotations")) and os.path.isdir(os.path.join(path, "ImageSets"))


def _short(name: str) -> str:
    match = re.fullmatch(r"VOC(\d{4})", name)
    return match.group(1) if match else name


def _split_set_name(name: str, folders: dict[str, str]) -> list[tuple[str, str]]:
    """ "2007/trainval+2012/train" to [(folder, "trainval"), ...]."""
    parts = []
    for part in name.split("+"):
        year, _, image_set = part.strip().rpartition("/")
        if not image_set or (not year and len(folders) > 1):
            raise DataError(
                f"image set {name!r}: several folders ({', '.join(folders)}); write for example "
                f"'{next(iter(folders))}/{image_set or 'train'}'"
            )
        if year and _short(year) not in folders:
            raise DataError(f"image set {name!r}: no folder {year!r} (there are: {', '.join(folders)})")
        parts.append((folders[_short(year)] if year else next(iter(folders.values())), image_set))
    return parts


def read_image_set(folder: str, image_set: str) -> list[str]:
    """The ids listed in ImageSets/Main/<image_set>.txt.

    A second column (1, -1 or 0, as in VOC's sets for one class) is dropped: all images listed belong to the set.

    Raises:
        DataError: no such file, an empty one, or an id that leaves the folder.
    """
    main = os.path.join(folder, "ImageSets", "Main")
    path = os.path.join(main, f"{image_set}.txt")
    if not is_inside(f"{image_set}.txt") or not os.path.isfile(path):
        names = [name[:-4] for name in list_folder(main) if name.endswith(".txt")] if os.path.isdir(main) else []
        shown = ", ".join(names[:30]) or "none"
        raise DataError(f"{path}: image set does not exist (available: {shown}); name one of these")
    lines = [line.decode("utf-8", "surrogateescape").strip() for line in read_bytes(path).splitlines()]
    ids = [re.sub(r"\s+(-1|0|1)$", "", line) for line in lines if line]
    if not ids:
        raise DataError(f"{path}: the image set is empty")
    for image_id in ids:
        if not is_inside(image_id):
            raise DataError(f"{path}: image id {short_repr(image_id)} leaves the data set's folder; refused")
    return ids


def list_files(folder: str, suffixes: Sequence[str]) -> dict[str, str]:
    """Name without suffix -> name, of the files in a folder that end in one of the suffixes (any case)."""
    files: dict[str, str] = {}
    for name in list_folder(folder):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes:
            files.setdefault(stem, name)
    return files


def format_annotation(filename: str, width: int, height: int, objects: Sequence[VOCObject]) -> str:
    """The text of an annotation file.

    Args:
        filename: of the image, without folder.
        width, height: of the image in pixels.
        objects: with half-open boxes; they are written 1-based and inclusive: x1 + 1, y1 + 1, x2, y2.
    """
    lines = [
        "<annotation>",
        f"\t<filename>{escape(filename)}</filename>",
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    for item in objects:
        x1, y1, x2, y2 = item.box
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True)
        bounds = "".join(f"<{key}>{_number(value)}</{key}>" for key, value in corners)
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(item.name)}</name>",
            f"\t\t<difficult>{int(bool(item.difficult))}</difficult>",
            f"\t\t<bndbox>{bounds}</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
