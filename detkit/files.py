"""Files: written whole or not at all, and the configs of the project found by name."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from detkit.errors import ConfigError


def write_text(path: Path, text: str) -> None:
    """Writes a text file as UTF-8 under another name and renames it; its folder is created where missing.

    A lone surrogate, as undecodable file names contain it, is written as a backslash escape, which is valid JSON too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    os.replace(part, path)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, as `write_text` does; `to_json` says how tensors and NaN are written."""
    write_text(path, json.dumps(to_json(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def overwrite_note(path: Path, option: str) -> str:
    """A note that a file overwrites an earlier one, naming the option of another folder; "" where there is none."""
    return f" (instead of an earlier one; {option} FOLDER keeps both)" if path.is_file() else ""


def to_json(value: Any) -> Any:
    """A value that JSON can hold: arrays and tensors become numbers or lists, paths text, NaN and infinity None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def config_names() -> dict[str, Path]:
    """The configs of the project by name, such as "faster_rcnn/custom_voc": those of a clone, or of the package."""
    package = Path(__file__).resolve().parent
    folder = package / "configs"  # as installed; in a clone they stand beside the package
    folder = folder if folder.is_dir() else package.parent / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_config(name: str | os.PathLike[str]) -> Path:
    """The config file that a path, which wins, or one of `config_names` means, with or without ".yaml".

    Raises:
        ConfigError: there is neither; the message names the nearest config.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    names = config_names()
    wanted = os.fspath(name).removesuffix(".yaml").removesuffix(".yml").removeprefix("configs/")
    if wanted in names:
        return names[wanted]
    by_last_part = {known.rpartition("/")[2]: known for known in names}
    close = get_close_matches(wanted, names, n=1)
    close += [by_last_part[n] for n in get_close_matches(wanted, by_last_part, 1)]
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"{path}: no such config file{hint}\nThe configs known by name: {', '.join(names)}")
