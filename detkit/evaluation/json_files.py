"""JSON files straight into typed objects, and what is wrong with a file in words."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from detkit.errors import DataError

from .from_files import read_bytes

T = TypeVar("T")


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection: a million tuples would be walked again and again, for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def decode(path: Path, form: type[T], wanted: str) -> T:
    """The content of a JSON file, as `form`.

    Args:
        path: the file, which gzip may have packed.
        form: what it is to hold, in msgspec's types.
        wanted: the same in words.

    Raises:
        DataError: the file is missing, no JSON or of another form; with the place and what is wanted.
    """
    content = read_bytes(path)
    try:
        return msgspec.json.decode(content, type=form)
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: {_explain(str(error), wanted)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: {_explain_syntax(str(error), content, wanted)}") from None


def _explain(message: str, wanted: str) -> str:
    """msgspec's message in words; it ends in a path such as `$.annotations[3].bbox[1]`."""
    wrong, _, path = message.partition(" - at ")
    wrong = (wrong[:1].lower() + wrong[1:]).replace("`", "'")
    match = re.fullmatch(r"`\$(?:\.(\w+))?(?:\[(\d+)\])?\.?(.*)`", path)
    if match is None or not (match[1] or match[2]):
        return f"{wrong}; the file is to hold {wanted}"
    entry = {"annotations": "annotation", "images": "image", "categories": "category"}.get(match[1] or "", "detection")
    where = f"{entry} {match[2]} (counted from 0)" if match[2] else f"the list {match[1]!r}"
    return f"{where}: {match[3] + ': ' if match[3] else ''}{wrong}"


def _explain_syntax(message: str, content: bytes, wanted: str) -> str:
    """What is wrong with a text that is no JSON; NaN and infinity, which Python writes into JSON, by name."""
    if not content.strip():
        return f"the file is empty; it is to hold {wanted} (a list without entries is [])"
    match = re.search(r"\(byte (\d+)\)", message)
    if match is None:
        return "the JSON is cut short: write the file again" if "truncated" in message else f"not JSON ({message})"
    place = int(match[1])
    before = content[:place]
    entry = before.count(b'"image_id"') - 1
    where = f"entry {entry} (counted from 0): " if entry >= 0 else ""
    special = re.match(rb"-?(?:NaN|Infinity)", content[place - before.endswith(b"-") :])
    if special:
        key = re.search(rb'"(\w+)"\s*:[^"]*$', before)
        name = key[1].decode() if key else "a number"
        return f"{where}{name} is {special[0].decode()}, which is no number: look for it in the model"
    shown = content[max(place - 30, 0) : place + 10].decode(errors="replace")
    return f"{where}not JSON at byte {place:,}: {shown!r}"
