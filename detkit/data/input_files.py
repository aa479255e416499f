"""Files that others made: checked before they are opened, read whole, and their names kept within the data set.

Whatever such a file holds, its reader raises a DataError that names it, and nothing else.
"""

from __future__ import annotations

import io
import os
import re
import reprlib
import stat
import unicodedata
import zlib
from collections.abc import Iterator
from gzip import GzipFile
from typing import Any

from detkit.errors import DataError

#: Numbers beyond it, such as coordinates in pixels or scores, are refused: their sums and products stay finite, and
#: as sizes they fit 32 bits.
LARGEST = 1e9
#: A file that gzip packed may grow to this many times its size; JSON grows tenfold, a file made to fill the memory
#: a thousandfold. Small files may always grow to `SMALL` bytes.
GROWTH, SMALL = 100, 2**28
#: What a flag such as iscrowd or difficult may say as a text.
FLAGS = {"0": False, "0.0": False, "false": False, "no": False, "1": True, "1.0": True, "true": True, "yes": True}

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200


def short_repr(value: Any) -> str:
    """A value of a file for a message: one line, control characters escaped, a long one shortened in the middle."""
    return _REPR.repr(value)


def check_printable(name: str, what: str) -> None:
    """Refuse a name with control characters, which change a terminal, or lone surrogates, which cannot be printed.

    `what` is what the message calls it. Raises DataError.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise DataError(f"{what} {short_repr(name)} has a control character, or is no text; rename it")


def check_regular(path: str | os.PathLike[str], what: str = "file") -> None:
    """Refuse anything but a regular file: opening a pipe or a device may block, or never end.

    Symbolic links are followed. `what` is what the messages call it.

    Raises:
        DataError: missing, a folder, a pipe, a device or a socket, or it cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: {what} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"{short_repr(os.fspath(path))}: {what} cannot be opened ({_reason(error)})") from None
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: is a folder; give a file")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: is a pipe, a socket or a device; give a regular file")


def read_bytes(path: str | os.PathLike[str], what: str = "file") -> bytes:
    """The content of a regular file, unpacked if it is gzip's, without a byte order mark.

    Raises:
        DataError: it cannot be read or unpacked, or grows beyond `GROWTH`; see also `check_regular`.
    """
    check_regular(path, what)
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content[:2] == b"\x1f\x8b":
            limit = max(GROWTH * len(content), SMALL)
            content = GzipFile(fileobj=io.BytesIO(content)).read(limit + 1)
            if len(content) > limit:
                raise DataError(f"{path}: unpacks to more than {limit:,} bytes; unpack it yourself if you trust it")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}); write or copy it again") from None
    return content.removeprefix(b"\xef\xbb\xbf")


def list_folder(path: str | os.PathLike[str]) -> list[str]:
    """The names in a folder, sorted; DataError if it is missing, no folder, or cannot be read."""
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        raise DataError(f"{path}: folder does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{short_repr(os.fspath(path))}: folder cannot be read ({_reason(error)})") from None


def walk(folder: str, hidden: bool = True) -> Iterator[str]:
    """The paths of all files below a folder, in any order.

    Symbolic links to folders are followed; one that leads back into a folder that was seen already is not. Without
    ``hidden``, files and folders whose names begin with a dot are left out, and what macOS adds to archives.
    """
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if not hidden:
            folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
            names = [name for name in names if not name.startswith(".")]
        yield from (os.path.join(root, name) for name in names)


def spelling(name: str) -> str:
    """A key that names have in common if they differ by upper and lower case, or by the Unicode form of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def is_inside(name: str) -> bool:
    """Whether a name in an annotation file is a relative file name that stays below the folder it is joined to.

    Links are not looked at: those in the folder were put there by whoever made it, and are followed.
    """
    parts = re.split(r"[/\\]", name)
    good = bool(name) and "\0" not in name and ".." not in parts
    return good and not os.path.isabs(name) and parts[0] != "" and ":" not in parts[0]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
