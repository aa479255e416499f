"""Writing annotations in VOC's format, the reverse of reading them."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from detkit.data.voc_files import VOCObject


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
