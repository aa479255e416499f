"""Files of `torch.save`: read as data, and refused where they are damaged. Not in `files`, which needs no torch."""

from __future__ import annotations

import errno
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

from detkit.errors import DetkitError

CHANGED = "this file was changed or cut after it was written"


def read_torch_file(path: Path, error: type[DetkitError], hint: str) -> Any:
    """What a file of `torch.save` holds, on the CPU; no code in it is run.

    Args:
        path: the file.
        error: what to raise; it says what is wrong, and then the ``hint``: what the user can do.

    Raises:
        DetkitError: an ``error``: the file cannot be opened, is none of `torch.save`, holds more than tensors and
            plain values, or is damaged.
    """
    import torch

    try:
        if not path.is_file():  # a pipe would be waited for
            raise error("it is no file")
        _check_records(path, error)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch and pickle raise nearly all there are on damaged bytes
        why = str(cause) if isinstance(cause, error) else _reason(path, cause)
        raise error(f"{path}: cannot be read: {why}. {hint}") from cause


def _check_records(path: Path, error: type[DetkitError]) -> None:
    """Compare the records with their checksums, which torch does not: it would load changed weights."""
    if not _is_zip(path):
        return  # the format of before torch 1.6, which has no checksums
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > path.stat().st_size:  # torch.save does not compress
            raise error("its records are larger than the file")
        has_checksums = any(record.CRC for record in records)  # torch.save can be told to leave them out
        damaged = archive.testzip() if has_checksums else None
    if damaged is not None:
        raise error(f"its record {damaged!r} is damaged: {CHANGED}")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _reason(path: Path, cause: Exception) -> str:
    if isinstance(cause, OSError) and cause.errno != errno.EINVAL:  # that is a position in a damaged zip
        return cause.strerror or str(cause)
    if isinstance(cause, MemoryError):
        return "there is not enough memory"
    if isinstance(cause, zipfile.BadZipFile):
        return CHANGED
    if isinstance(cause, pickle.UnpicklingError) and _is_zip(path):  # a zip whose checksums are right
        name = re.search(r"GLOBAL ([\w.]+)", str(cause))
        return f"it holds more than tensors and plain values{f' ({name[1]})' if name else ''}"
    return "it is no file of torch.save, or a damaged one"
