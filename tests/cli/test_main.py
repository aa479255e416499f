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
    said = {"--version": f"detkit {__version__}\n", "nonsense": "[]"}
    assert said.get("".join(args), "usage: detkit COMMAND") in out


def test_help_has_every_command_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, what in COMMANDS.items():
        assert sum(line.split() == [name, *what.split()] for line in lines) == 1


@pytest.mark.parametrize(("word", "meant"), [("tets", "test"), ("predit", "predict")])
def test_an_unknown_command_suggests_a_near_one(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert f"`detkit {meant}`" in error
    assert len(error.splitlines()) == 2


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_help_of_a_command_begins_with_what_a_user_needs(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main([command, "--help" if command == "fit" else "-h"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.startswith(f"usage: detkit {command} {'--' if command == 'fit' else 'RUN'}")
    assert f"For example: detkit {command} " in out and "Lightning's:\n" in out
    places = [out.index(f"\n  --{name}") for name in ("ckpt_path", "model", "data", "trainer ")]
    assert places == sorted(places) and places[2] < 5000
    assert ("--predictions.draw" in out) == (command == "predict") and "--trainer.precision" in out
    assert ("--checkpoint.monitor" in out) == (command == "fit")  # what it chose is long past in the others
    assert ("Needed: a run's folder" in out) == (command != "fit") and "hpc" not in out


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 TiB"), RuntimeError("CUDA out of memory.")])
def test_missing_memory_is_one_message(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("detkit.cli.main._dispatch", fail)
    assert main(["test"]) == 2
    assert capsys.readouterr().err.startswith(f"detkit: it needs more memory than there is ({error})")
