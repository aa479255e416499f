"""The notebooks, executed on what `detkit demo` makes; with it the demo itself, from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = Path(__file__).parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a quick `detkit demo` made: `run`, `shapes`, and `printed`, what it said."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "detkit", "demo", "--fast"]
    places = ["--output", str(folder / "run"), "--data_path", str(folder / "shapes")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # From elsewhere: nothing of it may depend on the folder that it is started in.
    result = subprocess.run([*command, *places], cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    (folder / "printed").write_text(result.stdout)
    return folder


def test_the_demo_makes_what_it_says(demo: Path) -> None:
    printed = (demo / "printed").read_text()
    run = demo / "run" / "version_0"
    for name in (
        "overview.png",
        "predictions/",
        "predictions.json",
        "report/index.html",
        "report/metrics.json",
        "metrics.csv",
        "checkpoints/",
    ):
        assert f"  {name} " in printed
        assert (run / name).exists()
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (run / "checkpoints").iterdir()}
    assert list(run.glob("events.*"))
    assert f"In {run}:" in printed
    assert "COCO" in json.loads((run / "report/metrics.json").read_text())["protocol"]
    assert json.loads((run / "predictions.json").read_text())
    assert any((run / "predictions").iterdir())
    assert sorted(path.name for path in demo.iterdir()) == ["printed", "run", "shapes"]


def test_the_demos_overview_shows_twelve_pictures_as_a_sheet(demo: Path) -> None:
    from PIL import Image

    with Image.open(demo / "run" / "version_0" / "overview.png") as sheet:
        assert sheet.size == (4 * 256 + 3 * 8, 3 * 256 + 2 * 8)


def test_there_are_notebooks() -> None:
    assert "01_inference.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(content)
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert cell["metadata"] == {}


def execute(name: str, demo: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of a notebook that ran in its own folder on the demo's run."""
    monkeypatch.setenv("DETKIT_RUN", str(demo / "run"))
    monkeypatch.setenv("DETKIT_IMAGES", str(demo / "shapes" / "JPEGImages"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(REPOSITORY / "notebooks" / name, as_version=4)
    where = {"metadata": {"path": str(REPOSITORY / "notebooks")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_inference(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = execute("01_inference.ipynb", demo, monkeypatch)
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    text = "".join(output.get("text", "") for output in outputs)
    assert kinds.count("image/png") == 4
    assert "text/markdown" in kinds
    assert text.count("all equal: True") == 4
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    rows = json.loads((demo / "run" / "detections.json").read_text())
    assert {row["image_id"] for row in rows} <= {path.name for path in (demo / "shapes" / "JPEGImages").iterdir()}
    assert {row["category_id"] for row in rows} <= {1, 2, 3, 4, 5}
    assert f"{len(rows)} detections" in text


@pytest.mark.parametrize("folder", [".", "notebooks", "notebooks/.."])
def test_a_notebook_finds_the_repository(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY / folder)
    for name in ("DETKIT_RUN", "DETKIT_IMAGES"):
        monkeypatch.delenv(name, raising=False)
    for path in NOTEBOOKS:
        first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        names: dict[str, Any] = {}
        exec(first.source, names)
        assert names["root"] == REPOSITORY
        assert names["run"] == REPOSITORY / "runs" / "demo"
