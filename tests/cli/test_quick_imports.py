"""What the program does not import for a command that does not use it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from detkit.cli.main import main
from tests.cli.conftest import SMALL

#: Runs the program and prints which of the modules in its first argument it has imported.
SCRIPT = """
import sys
from detkit.cli.main import program
names = sys.argv.pop(1).split(",")
try:
    program()
except SystemExit as end:
    print("code", end.code, [name for name in names if name in sys.modules])
"""
#: torch's compiler and what it takes in, and what torchmetrics and our own modules use elsewhere.
UNUSED = ["torch._dynamo", "sympy", "matplotlib", "scipy.signal", "scipy.sparse", "sklearn", "albumentations"]
UNUSED += ["numba", "pandas", "IPython"]


def imported(command: Sequence[str], names: Sequence[str], folder: Path) -> str:
    """The last line of `SCRIPT`."""
    call = [sys.executable, "-c", SCRIPT, ",".join(names), *command]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=300, check=True)
    assert "leak" not in done.stderr  # nanobind's warning, where garbage is left at the end
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in runs/small and images in shapes."""
    path = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        Path("small.yaml").write_text(SMALL)
        assert main(["fit", "--config", "small.yaml"]) == 0
    return path


def test_the_program_of_predict(folder: Path) -> None:
    image = next((folder / "shapes").rglob("*.jpg"))
    command = ["predict", "runs/small", str(image), "--output", "predicted"]
    assert imported(command, [*UNUSED, "tensorboard"], folder) == "code 0 []"


def test_the_program_of_validate(folder: Path) -> None:
    assert imported(["validate", "runs/small"], UNUSED, folder) == "code 0 []"


def test_the_program_of_test(folder: Path) -> None:
    """Its report needs numba."""
    names = [name for name in UNUSED if name != "numba"]
    assert imported(["test", "runs/small", "--output", "report"], names, folder) == "code 0 []"


def test_the_compiler_and_a_metrics_plots_are_there_when_they_are_asked_for() -> None:
    """What is deferred is torch's own; a name of its compiler that is not known here imports all of it."""
    code = """
from detkit.cli.quick_imports import _deferred_compiler, import_lightning
import_lightning()
import sys, torch
import lightning.pytorch as pl
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.compile import OptimizedModule
from torchvision.ops import roi_align
assert "torch._dynamo" not in sys.modules and not isinstance(torch.nn.Linear(1, 1), OptimizedModule)
roi_align(torch.rand(1, 2, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2)
assert not _ResultCollection(True).metrics(False)["log"]
with _deferred_compiler():
    from torch._dynamo import disable, eval_frame, explain
    assert eval_frame.__name__ == "torch._dynamo.eval_frame"
import torch._dynamo
assert isinstance(torch.compile(torch.nn.Linear(1, 1)), OptimizedModule)
import matplotlib.pyplot, scipy.signal
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
