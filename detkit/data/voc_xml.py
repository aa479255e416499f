"""One annotation file of PASCAL VOC's, read as it is written, and written."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn
from xml.sax.saxutils import escape

from detkit.data.input_files import read_bytes
from detkit.data.text_files import decode_text
from detkit.errors import DataError

#: Encodings of XML that Windows programs write in China, Japan, Korea, Russia and elsewhere.
OTHER_ENCODINGS = re.compile(r"gb|big5|shift|sjis|euc|cp|windows-|koi8|iso-8859-(?!1$)")


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
    content = read_bytes(path, "annotation file")
    try:
        root = ElementTree.XML(_text(content, path), ElementTree.XMLParser(target=_NoDoctype()))
        if root.tag != "annotation":
            raise DataError(f"the outermost element is <{root.tag}> instead of <annotation>")
        size = root.find("size")
        width, height = (0, 0) if size is None else (_side(size, "width"), _side(size, "height"))
        found = [list(_objects(element, number)) for number, element in enumerate(root.iterfind("object"), 1)]
        doubled = tuple(number for number, objects in enumerate(found, 1) if len(objects) > 1)
        filename = (root.findtext("filename") or "").strip()
        return VOCImage(width, height, filename, [item for objects in found for item in objects], doubled)
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


def _text(content: bytes, path: str) -> str | bytes:
    """The bytes as they are where the parser knows their encoding, else decoded.

    The parser knows UTF-8, UTF-16 and Latin-1; Python knows others that a file may declare.
    """
    declared = re.match(rb"<\?xml[^>]*encoding=[\"']([\w.:-]+)[\"']", content)
    if declared is None:
        return decode_text(content, path)
    encoding = declared[1].decode().lower()
    if not OTHER_ENCODINGS.match(encoding):
        return content
    return content.decode(encoding)[declared.end() :].partition("?>")[2]  # without the declaration


def _objects(element: Any, number: int) -> Iterator[VOCObject]:
    """An object for each of the element's boxes."""
    name = (element.findtext("name") or "").strip()
    bounds = element.findall("bndbox")
    if not name or not bounds:
        raise DataError(f"object {number}: <{'bndbox' if name else 'name'}> is missing")
    difficult = {"0": False, "1": True, "false": False, "true": True}.get(
        (element.findtext("difficult") or "").strip().lower()
    )
    for each in bounds:
        x1, y1, x2, y2 = (_coordinate(each, key, number) for key in ("xmin", "ymin", "xmax", "ymax"))
        yield VOCObject(name, (x1, y1, x2, y2), difficult)


def _coordinate(bounds: Any, key: str, number: int) -> float:
    text = (bounds.findtext(key) or "").strip()
    try:
        return float(text)
    except ValueError:
        raise DataError(f"object {number}: <{key}> is {text!r} instead of a number") from None


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
