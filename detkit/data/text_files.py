"""Text files of any encoding that says what it is: UTF-8, with or without a byte order mark, and UTF-16 with one."""

from __future__ import annotations

import codecs
import os

from detkit.data.input_files import read_bytes
from detkit.errors import DataError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a text file.

    Raises:
        DataError: the file is missing, cannot be read, or is of another encoding; the message names the likely one.
    """
    return decode_text(read_bytes(path), path)


def decode_text(content: bytes, path: str | os.PathLike[str]) -> str:
    """The bytes of a text file as text; ``path`` is for the message. Raises DataError as `read_text`."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        found = _likely_encoding(content)
        raise DataError(
            f"{path}: is not written in UTF-8 (see byte {error.start:,}){f', but likely in {found}' if found else ''}; "
            f"save it as UTF-8, for example by: iconv -f {found or 'ENCODING'} -t UTF-8"
        ) from None


def _likely_encoding(content: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(content).best()
    return None if best is None else best.encoding
