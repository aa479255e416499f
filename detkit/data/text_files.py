"""Text files of any encoding that says what it is: UTF-8, with or without a byte order mark, UTF-16 and UTF-32."""

from __future__ import annotations

import codecs
import os
import re
from contextlib import suppress

from detkit.data.input_files import read_bytes
from detkit.errors import DataError

# UTF-32's mark begins with that of UTF-16.
FEW = 64  # bytes beyond ASCII
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SAMPLE = 4096  # bytes before and after one that is not UTF-8, of which the encoding is guessed


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a text file.

    Raises:
        DataError: the file is missing, cannot be read, or is of another encoding; the message names the likely one.
    """
    return decode_text(read_bytes(path), path)


def decode_text(content: bytes, path: str | os.PathLike[str]) -> str:
    """The bytes of a text file as text; ``path`` is for the message. Raises DataError as `read_text`."""
    try:
        return content.decode(encoding_of(content))
    except UnicodeDecodeError as error:
        found = _likely_encoding(content[max(error.start - SAMPLE, 0) : error.start + SAMPLE])
        raise DataError(
            f"{path}: is not written in UTF-8 (see byte {error.start:,}){f', but likely in {found}' if found else ''}; "
            f"save it as UTF-8, for example by: iconv -f {found or 'ENCODING'} -t UTF-8"
        ) from None


def read_start(path: str | os.PathLike[str], size: int = 2**16) -> str:
    """The beginning of a text file, as far as it can be decoded."""
    with open(path, "rb") as file:
        content = file.read(size)
    return content.decode(encoding_of(content), "replace")


def encoding_of(content: bytes) -> str:
    """The encoding that a byte order mark names, or UTF-16 where every other byte of the beginning is 0; else UTF-8."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    if len(content) >= 4 and not any(content[1:4:2]) and all(content[0:4:2]):
        return "utf-16-le"
    if len(content) >= 4 and not any(content[0:4:2]) and all(content[1:4:2]):
        return "utf-16-be"
    return "utf-8"


def _likely_encoding(content: bytes) -> str | None:
    from charset_normalizer import from_bytes

    # Of a few letters charset_normalizer cannot tell: Chinese ones are pairs of bytes, those with accents stand alone.
    runs = re.findall(rb"[\xa1-\xfe]+", content)
    if sum(map(len, runs)) < FEW and all(len(run) % 2 == 0 for run in runs):
        with suppress(UnicodeDecodeError):
            if all("\u4e00" <= letter <= "\u9fff" for run in runs for letter in run.decode("gb2312")):
                return "gb18030"  # which holds GBK and GB2312

    best = from_bytes(content).best()
    return None if best is None else best.encoding
