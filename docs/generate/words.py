"""Parts of Markdown pages that are made of signatures and docstrings."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable
from typing import Any

from detkit.settings import to_plain

CODE = re.compile(r"``?([^`]+)``?")


def arguments(doc: str | None) -> dict[str, str]:
    """The meaning of each argument or attribute, from the sections `Args` and `Attributes` of a docstring.

    A line such as ``tiles, overlap: see ...`` is for both names.
    """
    found: dict[str, str] = {}
    current: list[str] = []
    section = False
    for line in inspect.cleandoc(doc or "").splitlines():
        if re.fullmatch(r"\w+:", line):
            section = line in ("Args:", "Attributes:")
        elif section and (match := re.match(r" {4}(\w[\w, ]*): (.*)", line)):
            current = [name.strip() for name in match[1].split(",")]
            found |= dict.fromkeys(current, match[2])
        elif section and line.startswith(" " * 8):
            found |= {name: f"{found[name]} {line.strip()}" for name in current}
        elif line and not line.startswith(" "):
            section = False
    return found


def summary(doc: str | None) -> str:
    """The paragraphs of a docstring before its sections."""
    return re.split(r"\n\w+:\n", inspect.cleandoc(doc or "") + "\n")[0].strip()


def value(content: Any) -> str:
    """A value as YAML and the command line have it, as code; nothing for an argument without a default."""
    if content is inspect.Parameter.empty:
        return ""
    return f"`{plain(content)}`"


def plain(content: Any) -> str:
    """A value as YAML has it in one line."""
    content = to_plain(content)
    if content is None or isinstance(content, bool):
        return {None: "null", True: "true", False: "false"}[content]
    if isinstance(content, dict):
        if set(content) == {"class_path", "init_args"}:
            return content["class_path"].rpartition(".")[2]
        return "{" + ", ".join(f"{name}: {plain(item)}" for name, item in content.items()) + "}"
    if isinstance(content, list):
        return "[" + ", ".join(map(plain, content)) + "]"
    return f"{content:.4g}" if isinstance(content, float) else str(content)


def kind(annotation: Any) -> str:
    """A type in the words of its source, without the module."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"\b[a-z_]+\.(?=[A-Za-z_])", "", text.strip("'\""))
    return text.replace("NoneType", "None").replace("None", "null")


def choices(annotation: Any) -> str:
    """A type, and where it is a list of words the words: ``Literal['a', 'b']`` is ``a | b``."""
    found = re.fullmatch(r"Literal\[(.*)\](.*)", kind(annotation))
    if not found:
        return kind(annotation)
    return " | ".join(map(str, ast.literal_eval(f"[{found[1]}]"))) + found[2]


def cell(text: str) -> str:
    """Text in a table's cell: in one line, its code in single backquotes, a bar outside of code as text."""
    parts = CODE.split(" ".join(text.split()))  # every second one is code
    return "".join(f"`{part}`" if number % 2 else part.replace("|", "\\|") for number, part in enumerate(parts))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; its cells are escaped."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell(each) for each in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
