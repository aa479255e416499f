"""Classes and modules by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from detkit.classes import import_modules
from detkit.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("", None, "--import '': give the name of a module"),
        (".a", None, "--import '.a': give the name of a module"),
        (
            "divides",
            "x = 1\n1 / 0",
            r"--import divides: cannot be .*\(ZeroDivisionError: .*divides.py, line 2\)",
        ),
        ("ends", "import sys; sys.exit(3)", r"--import ends: cannot be imported \(SystemExit: 3; .*ends.py, line 1\)"),
        ("wrong", "def", r"--import wrong: cannot be imported \(invalid syntax \(wrong.py, line 1\)\)"),
    ],
)
def test_modules_that_cannot_be_imported(
    name: str, text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        tmp_path.joinpath(f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"^{message}"):
        import_modules([name])
