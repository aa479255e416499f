"""`--data PATH`: a folder or file in the place of a class stands for the class that reads it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detkit.data.layouts import Layout


def is_path(value: Any) -> bool:
    """Whether what is given as a data set is a folder or file, and no class."""
    return isinstance(value, str) and not value.lstrip().startswith("{") and (os.sep in value or os.path.exists(value))


def with_classes(options: list[str], notes: list[str]) -> list[str]:
    """The options with the classes and their arguments in the place of paths; notes say what was taken for which.

    Raises:
        DataError: no data set is found there, or it may be read in two ways.
    """
    found: list[str] = []
    rest = iter(options)
    for option in rest:
        name, equals, value = option.partition("=")
        if name not in ("--data", "--data.class_path"):
            found.append(option)
            continue
        value = value if equals else next(rest, "")
        if not is_path(value):
            found += [name, value] if not equals else [option]
            continue
        layout = _find(value, notes)
        found.append(f"--data={layout.class_name}")
        found += [
            f"--data.{key}={item if isinstance(item, str) else json.dumps(item)}"
            for key, item in layout.arguments.items()
        ]
    return found


def section(content: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """A config's content likewise: its `data:` may be a path, or have one as `class_path`."""
    data = content.get("data")
    value, rest = (data.get("class_path"), data.get("init_args") or {}) if isinstance(data, dict) else (data, {})
    if not is_path(value):
        return content
    layout = _find(value, notes)
    return {**content, "data": {"class_path": layout.class_name, "init_args": {**layout.arguments, **rest}}}


def _find(path: str, notes: list[str]) -> Layout:
    from detkit.data.layouts import find_layout  # and all readers

    layout = find_layout(path)
    notes.append(f"data: {path} is read as {layout.class_name}: {layout.why}")
    return layout
