"""One annotation file of PASCAL VOC's, read as it is written, and written."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn
from xml.sax.saxutils import escape

from detkit.data.input_files import FLAGS, read_bytes, short_repr
from detkit.data.text_files import decode_text
from detkit.errors import DataError


class VOCObject(NamedTuple):
    """One object; read from a file its box is VOC's 1-based inclusive one, and difficult None if missing or unclear."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool | None


class VOCImage(NamedTuple):
    """One annotation file as written.

    Attributes:
        width, height: pixels; 0 where they are missing.
        filename: of the image; "" where it is missing.
        objects: one for each box.
        doubled: numbers, from 1, of the elements <object> with several boxes.
    """

    width: int
    height: int
    filename: str
    objects: list[VOCObject]
    doubled: tuple[int, ...] = ()


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE, the only place where entities can be declared, before it is read."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise DataError("the file declares a DOCTYPE, which an annotation never needs; refused")


def parse_annotation(path: str) -> VOCImage:
    """Read one annotation file; DataError if it is missing, no XML, has a DOCTYPE, or an object without name or box."""
    text = _text(read_bytes(path, "annotation file"), path)
    try:
        root = ElementTree.XML(text, ElementTree.XMLParser(target=_NoDoctype()))
        if root.tag != "annotation":
            hint = "; export from CVAT as Pascal VOC, COCO or YOLO instead" if root.tag == "annotations" else ""
            raise DataError(f"the outermost element is <{root.tag}> instead of <annotation>{hint}")
        size = root.find("size")
        width, height = (0, 0) if size is None else (_side(size, "width"), _side(size, "height"))
        found = [list(_objects(element, number)) for number, element in enumerate(root.iterfind("object"), 1)]
        doubled = tuple(number for number, objects in enumerate(found, 1) if len(objects) > 1)
        filename = (root.findtext("filename") or "").strip()
        return VOCImage(width, height, filename, [item for objects in found for item in objects], doubled)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: not well-formed XML ({error})") from None


def _side(size: Any, name: str) -> int:
    """A side in pixels; 0, which is read from the image, where it is none."""
    try:
        return max(int(float(size.findtext(name) or "0")), 0)
    except (ValueError, OverflowError):
        return 0


def _text(content: bytes, path: str) -> str:
    """The bytes decoded as the file declares, where that is another encoding than UTF-8 or UTF-16.

    White space before the declaration, which some programs write, is left out: the parser refuses it.
    """
    declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.:-]+)[\"']", content)
    encoding = declared[1].decode().lower() if declared else "utf-8"
    if re.fullmatch(r"utf-?(8|16|16le|16be|32)?|unicode|ucs-?[24]", encoding):
        return decode_text(content, path).lstrip().rstrip(" \t\r\n\0")
    try:
        return content.decode(encoding).lstrip().rstrip(" \t\r\n\0")
    except LookupError:
        raise DataError(f"{path}: declares the encoding {encoding!r}, which is not known; save it as UTF-8") from None
    except UnicodeError:
        raise DataError(
            f"{path}: declares the encoding {encoding!r}, but is not written in it; save it as UTF-8"
        ) from None


def _objects(element: Any, number: int) -> Iterator[VOCObject]:
    """An object for each of the element's boxes."""
    name = (element.findtext("name") or "").strip()
    bounds = element.findall("bndbox")
    if not name or not bounds:
        raise DataError(f"object {number}: <{'bndbox' if name else 'name'}> is missing")
    difficult = FLAGS.get((element.findtext("difficult") or "").strip().lower())
    for each in bounds:
        x1, y1, x2, y2 = (_coordinate(each, key, number) for key in ("xmin", "ymin", "xmax", "ymax"))
        yield VOCObject(name, (x1, y1, x2, y2), difficult)


def _coordinate(bounds: Any, key: str, number: int) -> float:
    text = (bounds.findtext(key) or "").strip()
    try:
        return float(text)
    except ValueError:
        raise DataError(f"object {number}: <{key}> is {short_repr(text)} instead of a number") from None


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
