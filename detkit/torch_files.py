"""Files of `torch.save`: read as data, and refused where they are damaged. Not in `files`, which needs no torch."""

from __future__ import annotations

import errno
import math
import pickle
import re
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

from detkit.errors import CheckpointError, DetkitError

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


def check_form(found: Any, wanted: Any, where: str) -> None:
    """Compare an entry of a checkpoint with what a new run has there: the same keys, lengths and kinds of values.

    Where the new run has None, anything is right. Integers are counts, from 0.

    Raises:
        CheckpointError: names the entry that is missing or of another form.
    """
    if wanted is None:
        return
    if isinstance(wanted, bool | str):
        right = isinstance(found, type(wanted))
    elif isinstance(wanted, int):
        right = type(found) is int and 0 <= found < 2**53
    elif isinstance(wanted, float):
        right = type(found) in (int, float) and (math.isfinite(found) or not math.isfinite(wanted))
    elif isinstance(wanted, list | tuple):
        right = isinstance(found, list | tuple) and len(found) == len(wanted)
    else:
        right = isinstance(found, dict) and (not isinstance(wanted, dict) or all(key in found for key in wanted))
    if not right:
        raise CheckpointError(f"its entry {where} is not as detkit writes it for such a run")
    for key in wanted if isinstance(wanted, dict) else range(len(wanted) if isinstance(wanted, list | tuple) else 0):
        check_form(found[key], wanted[key], f"{where}.{key}".lstrip("."))


def is_plain_tensor(value: Any) -> bool:
    """Whether a value is a tensor of real numbers in memory, as all of a checkpoint's are."""
    import torch

    if not isinstance(value, torch.Tensor) or value.is_quantized or value.is_complex():
        return False
    return value.layout is torch.strided and value.device.type == "cpu"


def check_fits(state: dict[str, Any], expected: dict[str, Any], path: str | PathLike[str], limit: int = 3) -> None:
    """Refuse a state dict that does not fit a model's own, naming the first ``limit`` keys of each sort that differ.

    Raises:
        CheckpointError: a key is missing, unknown, or of another shape.
    """
    missing = [k for k in expected if k not in state]
    unknown = [k for k in state if k not in expected]
    shapes = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(v.shape)} in the model"
        for k, v in expected.items()
        if k in state and hasattr(v, "shape") and state[k].shape != v.shape
    ]
    parts = [
        f"{len(keys)} {what} ({'; '.join(keys[:limit])}{'; ...' if len(keys) > limit else ''})"
        for keys, what in ((missing, "missing"), (unknown, "unknown"), (shapes, "of another shape"))
        if keys
    ]
    if parts:
        raise CheckpointError(f"{path}: its weights are of another model: {', '.join(parts)}.")


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
    if path.suffix.lower() in (".onnx", ".xml", ".pt2"):
        return "it is no checkpoint but an exported detector; give the checkpoint that it was made from"
    return "it is no file of torch.save, or a damaged one"
