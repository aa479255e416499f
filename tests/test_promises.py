"""Each promise of docs/promises.md names tests, and these exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "promises.md").read_text(encoding="utf-8")


def functions(file: Path) -> set[str]:
    """The names of the functions of a test file."""
    if not file.is_file():
        return set()
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[^`:]+)::([^`]+)`", PAGE)
    assert len(named) > 50
    assert [f"{file}::{name}" for file, name in named if name not in functions(REPOSITORY / file)] == []


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line != "| promise | test |"]
    assert len(rows) > 30
    assert [row for row in rows if not re.fullmatch(r"\| [^|]+ \| (`tests/[^`]+::test_\w+`(, )?)+ \|", row)] == []
