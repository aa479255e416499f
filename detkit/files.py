"""Writing files so that no reader ever meets half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_beside(path: Path, text: str) -> None:
    """Writes a text file as UTF-8, beside its place, and renames it; the folder is made where missing.

    Half a character, as odd file names have it, is written as a backslash escape, which in JSON stands for itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(part, path)
