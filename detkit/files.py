"""Writing files so that no reader ever meets half of one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_beside(path: Path, text: str) -> None:
    """Writes a text file as UTF-8, beside its place, and renames it; the folder is made where missing.

    Half a character, as odd file names have it, is written as a backslash escape, which in JSON stands for itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(part, path)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, beside and renamed; see `plain` for what becomes of tensors and NaN."""
    write_beside(path, json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def overwrite_note(path: Path, option: str) -> str:
    """A note that a file overwrites an earlier one, or "" where there is none; to be asked for before writing.

    Args:
        path: the file.
        option: the option that names another folder.
    """
    return f" (instead of an earlier one; {option} FOLDER keeps both)" if path.is_file() else ""


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays become numbers or lists, paths text, and what is no finite number None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
