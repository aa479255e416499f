"""The program's own answers, and that they come without the heavy imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from detkit.__about__ import __version__
from detkit.cli.main import COMMANDS, main


@pytest.mark.parametrize("args", [["--help"], ["--version"], [], ["nonsense"]])
def test_quick_answers_import_neither_torch_nor_lightning(args: list[str]) -> None:
    code = (
        f"import sys; from detkit.cli.main import main; main({args!r}); "
        "print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_help_has_every_command_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, what in COMMANDS.items():
        assert sum(line.split() == [name, *what.split()] for line in lines) == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"detkit {__version__}\n"


def test_without_arguments_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: detkit COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize(("word", "meant"), [("tets", "test"), ("predit", "predict")])
def test_an_unknown_command_suggests_a_near_one(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert f"`detkit {meant}`" in error
    assert len(error.splitlines()) == 2
