"""The notebooks, executed, the first one on what `detkit demo` makes; with it the demo itself, from end to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.classification.conftest import cifar as cifar  # the fixture

REPOSITORY = Path(__file__).parents[2]
#: These tests run in one process, so that the demo runs once.
DEMO = pytest.mark.xdist_group("demo")
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


@pytest.mark.slow
@DEMO
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


@pytest.mark.slow
@DEMO
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


def execute(name: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of a notebook that ran in its own folder."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(REPOSITORY / "notebooks" / name, as_version=4)
    where = {"metadata": {"path": str(REPOSITORY / "notebooks")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
@DEMO
def test_inference(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKIT_RUN", str(demo / "run"))
    monkeypatch.setenv("DETKIT_IMAGES", str(demo / "shapes" / "JPEGImages"))
    outputs = execute("01_inference.ipynb", monkeypatch)
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
    names: dict[str, Any] = {}
    exec(code_cells("01_inference.ipynb")[1], names)
    assert names["root"] == REPOSITORY
    assert names["run"] == REPOSITORY / "runs" / "demo"


def code_cells(name: str) -> list[str]:
    cells = nbformat.read(REPOSITORY / "notebooks" / name, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


@pytest.mark.parametrize("missing", [True, False])
def test_every_notebook_begins_by_installing_detkit_where_it_is_missing(
    missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = {code_cells(path.name)[0] for path in NOTEBOOKS}
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if missing else object())
    monkeypatch.setenv("DETKIT_SOURCE", "a/clone")
    exec(first, {})
    assert commands == ([[sys.executable, "-m", "pip", "install", "-q", "a/clone"]] if missing else [])


def shown(outputs: list[Any]) -> tuple[str, int]:
    """What was printed, and the number of pictures; nothing may have gone wrong on the way."""
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    stderr = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    told = ("Shapes: ", "the data set is divided: ")
    assert [line for line in stderr.splitlines() if not line.startswith(told)] == []
    return "".join(output.get("text", "") for output in outputs), kinds.count("image/png")


@pytest.mark.slow
def test_pixels_to_a_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    text, pictures = shown(execute("02_from_pixels_to_a_classifier.ipynb", monkeypatch))
    assert pictures == 20

    def numbers(pattern: str) -> list[float]:
        return [float(value) for value in re.findall(pattern, text)]

    # By hand as PyTorch: cross-entropy, its gradient, four optimizers, a convolution, max pooling and batch norm.
    differences = numbers(r"difference:? (\d\.?\d*e[+-]\d+)")
    assert len(differences) == 9 and max(differences) < 2e-6
    assert min(numbers(r"seen pictures: (0\.\d+)") + numbers(r"new pictures:  (0\.\d+)")) > 0.88
    sigmoid, relu = numbers(r"gradient of layer 1 / layer 8: (\d+\.\d+)")
    assert sigmoid < 0.002 and 0.2 < relu < 5
    descent, momentum, adagrad, rmsprop = (
        re.findall(rf"{name} +by hand \[(\S+), ", text)[0]
        for name in ("gradient descent", "momentum", "Adagrad", "RMSprop")
    )
    assert max(abs(float(each)) for each in (momentum, adagrad, rmsprop)) < 0.6 * abs(float(descent))
    accuracies = {row[0]: [float(value) for value in row[1:]] for row in re.findall(OBJECTS, text)}
    assert accuracies["linear"][1] + 0.2 < min(accuracies["mlp"][1], accuracies["lenet5"][1])
    loss = {name: accuracies[name][1] - accuracies[name][2] for name in ("mlp", "lenet5")}  # by being moved
    assert loss["lenet5"] + 0.02 < loss["mlp"]
    without, with_norm = numbers(r"last loss (\d\.\d+)")
    assert without > 2.2 and with_norm < 0.5
    gap, with_dropout = numbers(r"minus seen (\d\.\d+)")
    assert with_dropout + 0.1 < gap
    xavier, he = numbers(r"last layer passes on: (\d\.\d+)")
    assert xavier < 0.01 and 0.05 < he < 2
    reached = {(int(row[0]), row[1]): float(row[2]) for row in re.findall(TRANSFER, text)}
    assert len(reached) == 9
    for way in ("frozen", "fine-tuned"):
        assert reached[20, way] > reached[20, "from scratch"] + 0.04
    assert reached[60, "fine-tuned"] > reached[60, "frozen"] + 0.04
    assert reached[60, "from scratch"] > reached[20, "from scratch"] + 0.1


#: The lines of the notebook's two comparisons.
OBJECTS = r"(\w+) +[\d,]+ weights   seen (\d\.\d+)   new (\d\.\d+)   new and moved (\d\.\d+)"
TRANSFER = r"(\d+) pictures a class, (from scratch|frozen|fine-tuned) +accuracy (\d\.\d+)"


def test_the_three_networks_take_cifar10_where_it_is_at_hand(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot

    (tmp_path / "notebooks").mkdir()
    cifar.parent.rename(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "notebooks")
    names: dict[str, Any] = {}
    exec("import torch\nfrom detkit import show", names)
    (cell,) = [cell for cell in code_cells("02_from_pixels_to_a_classifier.ipynb") if "CIFAR10(" in cell]
    exec(cell, names)
    assert names["objects"].shape == (50, 3, 32, 32) and names["new_objects"].shape == (10, 3, 32, 32)
    assert names["data"].class_names[0] == "airplane" and names["classes"].min() >= 0
    titles = [ax.get_title() for ax in pyplot.gcf().axes]
    assert titles == [names["data"].class_names[label] for label in names["classes"][:16]]
    names["temporary"].cleanup()
    pyplot.close("all")


def test_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = execute("04_proposals.ipynb", monkeypatch)
    text, pictures = shown(outputs)
    assert pictures == 6
    assert "data:image/gif;base64," in "".join(o.get("data", {}).get("text/html", "") for o in outputs)
    assert "all boxes: 18,743,455,360" in text
    assert "selective search: 104 proposals an image" in text


@pytest.mark.slow
def test_rcnn_to_faster_rcnn(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = execute("05_rcnn_to_faster_rcnn.ipynb", monkeypatch)
    text, pictures = shown(outputs)
    assert pictures == 14
    assert "image/svg+xml" in [kind for output in outputs for kind in output.get("data", {})]
    assert "768 anchors" in text
    for row in ("proposals", "features", "heads", "in 2015, with", "1x (50 s)", "25x (2 s)", "250x (0.2 s)"):
        assert row in text


def test_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    text, pictures = shown(execute("06_evaluation.ipynb", monkeypatch))
    assert pictures == 5
    for precision in ("1/1 = 1.00", "2/2 = 1.00", "3/5 = 0.60"):
        assert precision in text
    computed = {"VOC07 (": "0.8545", "VOC10 (": "0.8667", "AP at IoU 0.5: ": "0.8653"}
    for line in text.splitlines():
        for word, ap in list(computed.items()):
            if word in line:
                assert ap in line
                del computed[word]
    assert not computed


def number(text: str, pattern: str) -> float:
    """The number that a pattern finds in a text, once."""
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return float(found)


@pytest.mark.slow
def test_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    text, pictures = shown(execute("03_one_object.ipynb", monkeypatch))
    assert pictures == 8
    one = number(text, r"^one object: mean IoU ([\d.]+)$")
    assert one > 0.6 and number(text, r"class right in (\d+)%") >= 70
    assert number(text, r"^two or three objects: mean IoU ([\d.]+), ") < one - 0.2
    assert number(text, r"^two objects, after training on \d+ such pictures: mean IoU ([\d.]+)$") < one - 0.2
    squared = [number(text, rf"^the {box} +mean squared distance ([\d.]+)$") for box in ("middle", "left one")]
    assert squared[0] == squared[1] / 2
    assert number(text, r"as a whole ([\d.]+) and") + 0.3 < number(text, r"and by windows ([\d.]+)$")


@pytest.mark.slow
def test_own_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETKIT_PHOTOS", raising=False)
    outputs = execute("07_your_own_data.ipynb", monkeypatch)
    text, pictures = shown(outputs)
    assert pictures == 5
    assert "image/svg+xml" in [kind for output in outputs for kind in output.get("data", {})]
    assert "a run would stop (unreadable)" in text and "'Circle' (1 box" in text
    assert re.search(r"images +│ +281 │ +40 │ +80$", text, re.MULTILINE)  # without the one that was cut short
    for file in ("README.md", "checkpoints/", "config.yaml", "curves.svg", "metrics.csv", "val_predictions.jpg"):
        assert f"\n{file}\n" in text
    # The command, its report's JSON and the same in Python, and each time by which protocol.
    ap = number(text, r"^│ AP  +│ ([\d.]+) │")
    assert ap == number(text, r"^AP   ([\d.]+)$") == number(text, r"^AP ([\d.]+), as in the report$")
    assert number(text, r"^AP50 ([\d.]+), 95 % interval") > 0.5
    assert text.count("COCO (AP at IoU 0.50:0.95, 101 points") == 2
    assert number(text, r"^(\d+) of these \d+ have a label that was changed above$") >= 1
    assert re.search(r"^8 images, \d+ detections$", text, re.MULTILINE)
    assert re.search(r"^exported: detector\.onnx", text, re.MULTILINE)
    assert number(text, r"^(\d+) detections in 20 pictures have the same labels$") > 20
    assert number(text, r"largest difference: boxes ([\d.]+) pixels") < 0.01
    assert number(text, r"pixels, scores ([\d.]+)$") < 1e-4
