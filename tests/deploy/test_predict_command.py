"""`detkit predict FILE.onnx INPUT...`: without torch, and what the command writes with a Trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detkit.cli import lightning_cli
from detkit.cli.main import main
from detkit.deploy.runtime import ExportedModel
from detkit.engine.predictions import PredictionFiles
from tests.deploy.conftest import Exported


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three images of different sizes, and a file that is none, below the working directory."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (40, 70)), ("b.jpg", (90, 60)), ("sub/ü c.png", (64, 64))):
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    Path("photos/notes.txt").write_text("notes")
    return Path("photos")


@pytest.fixture
def without_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command fail that takes the way of other detectors."""
    monkeypatch.delattr(lightning_cli, "execute")


def contents(folder: str) -> dict[str, bytes]:
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes().replace(folder.encode(), b"OUT") for path in files}


def image_ids(path: str) -> list[str]:
    return list(dict.fromkeys(row["image_id"] for row in json.loads(Path(path).read_text())))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--classes", "dog"],
        ["--classes=dog,cat", "--score_threshold", "0.3", "--draw"],
        ["--crops", "--score_threshold=0.2"],
        ["--format", "yolo"],
        ["--format", "label_studio"],
    ],
)
def test_it_writes_what_a_trainer_does(
    pyramid: Exported, photos: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command = ["predict", str(pyramid.path), "photos/a.png", "photos", *options]
    used, execute = [], lightning_cli.execute
    monkeypatch.setattr(lightning_cli, "execute", lambda *args: used.append(args) or execute(*args))
    assert main([*command, "--output", "by_trainer", "--data.num_workers", "0"]) == 0 and len(used) == 1
    by_trainer = capsys.readouterr().out.replace("by_trainer", "OUT")
    monkeypatch.delattr(lightning_cli, "execute")
    assert main([*command, "--output", "without"]) == 0
    assert capsys.readouterr().out.replace("without", "OUT") == by_trainer
    assert contents("without") == contents("by_trainer")
    assert len(contents("without")) >= 1


def test_every_second_frame_of_a_video(
    pyramid: Exported, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import cv2

    generator = np.random.default_rng(1)
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(7):
        writer.write(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    command = ["predict", str(pyramid.path), "clip.avi", "--every", "2"]
    assert main([*command, "--output", "by_trainer", "--data.num_workers", "0"]) == 0
    monkeypatch.delattr(lightning_cli, "execute")
    assert main([*command, "--output", "without"]) == 0
    assert contents("without") == contents("by_trainer")
    assert image_ids("without/predictions.json") == [f"clip.avi/{frame:06d}" for frame in (0, 2, 4, 6)]


def test_neither_torch_nor_lightning_is_imported(pyramid: Exported, photos: Path) -> None:
    program = (
        "import sys\nfrom detkit.cli.main import main\ncode = main(sys.argv[1:])\n"
        "print(code, sorted({'torch', 'lightning', 'jsonargparse', 'numba'} & sys.modules.keys()))"
    )
    options = ["--draw", "--classes", "dog", "--output", "out"]
    command = [sys.executable, "-c", program, "predict", str(pyramid.path), "photos", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"
    assert result.stderr == "not read: 1 .txt (notes.txt)\n"


@pytest.mark.parametrize(
    "more", [["--agnostic_nms"], ["--classes", '["dog",]'], ["--tiles", "64"], ["--trainer.precision", "32"]]
)
def test_other_options_take_the_trainer(
    pyramid: Exported, photos: Path, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Sequence[str]] = []
    execute = lightning_cli.execute
    monkeypatch.setattr(lightning_cli, "execute", lambda *args: used.append(args) or execute(*args))
    assert main(["predict", str(pyramid.path), "photos", "--output", "out", *more]) == 0
    assert len(used) == 1 and image_ids("out/predictions.json")


@pytest.mark.usefixtures("without_trainer")
def test_an_image_that_cannot_be_read(pyramid: Exported, photos: Path, capsys: Any) -> None:
    (photos / "aa.png").write_bytes(b"broken")
    command = ["predict", str(pyramid.path), "photos", "--output", "out"]
    assert main(command) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("  photos/aa.png: image cannot be read")
    assert image_ids("out/predictions.json") == ["a.png", "b.jpg", "sub/ü c.png"]
    assert main([*command, "--on_bad_image", "error"]) == 2
    told = capsys.readouterr().err
    assert "photos/aa.png: image cannot be read" in told
    assert "What was predicted is in out/predictions.stopped.json; the same command begins again" in told
    assert image_ids("out/predictions.stopped.json") == ["a.png"]
    assert len(image_ids("out/predictions.json")) == 3 and not list(Path("out").glob(".*"))


@pytest.mark.usefixtures("without_trainer")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal(
    pyramid: Exported, photos: Path, number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    calls = []
    detect = ExportedModel.detect

    def interrupted(model: ExportedModel, images: np.ndarray) -> Any:
        calls.append(images.shape)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return detect(model, images)

    monkeypatch.setattr(ExportedModel, "detect", interrupted)
    earlier = signal.signal(number, signal.default_int_handler)  # a shell's background processes ignore SIGINT
    try:
        assert main(["predict", str(pyramid.path), "photos", "--output", "out"]) == code
    finally:
        signal.signal(number, earlier)
    assert "What was predicted is in out/predictions.stopped.json" in capsys.readouterr().err
    assert image_ids("out/predictions.stopped.json") == ["a.png", "b.jpg"] and len(calls) == 2
    assert [path.name for path in Path("out").iterdir()] == ["predictions.stopped.json"]


@pytest.mark.usefixtures("without_trainer")
def test_a_signal_while_the_files_are_written(
    pyramid: Exported, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    join = PredictionFiles.join

    def interrupted(files: PredictionFiles, stem: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        join(files, stem)

    monkeypatch.setattr(PredictionFiles, "join", interrupted)
    assert main(["predict", str(pyramid.path), "photos", "--output", "out"]) == 143
    assert "Stopped. What was predicted is in out/predictions.json; " in capsys.readouterr().err
    assert len(image_ids("out/predictions.json")) == 3


@pytest.mark.usefixtures("without_trainer")
def test_without_output_the_files_go_to_the_run(pyramid: Exported, photos: Path) -> None:
    file = Path("runs/toy/version_0/checkpoints/best.onnx")
    file.parent.mkdir(parents=True)
    file.symlink_to(pyramid.path)
    assert main(["predict", str(file), "photos"]) == 0
    assert image_ids("runs/toy/version_0/predictions.json") == ["a.png", "b.jpg", "sub/ü c.png"]


@pytest.mark.usefixtures("without_trainer")
def test_a_folder_that_is_read_is_not_replaced(pyramid: Exported, photos: Path, capsys: Any) -> None:
    folder = photos.rename("predictions_yolo")
    command = ["predict", str(pyramid.path), str(folder), "--format", "yolo", "--output", "."]
    assert main(command) == 2
    assert "predictions_yolo: is read, and would be replaced; choose another folder" in capsys.readouterr().err
    assert (folder / "a.png").is_file()


@pytest.mark.usefixtures("without_trainer")
def test_its_own_drawings_are_no_input(pyramid: Exported, photos: Path) -> None:
    command = ["predict", str(pyramid.path), "photos", "--output", "photos", "--draw"]
    assert main(command) == 0 and main(command) == 0
    assert image_ids("photos/predictions.json") == ["a.png", "b.jpg", "sub/ü c.png"]


@pytest.mark.usefixtures("without_trainer")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["photos", "--classes", "cow"], "classes: there is no class 'cow'; there are: cat, dog"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["photos", "--score_threshold", "2"], "scores go from 0 to 1"),
        (["photos", "--every", "0"], "every: 0 must be at least 1"),
        (["photo"], "photo: no such file or folder; did you mean photos?"),
        (["photos", "--classes", "CAT"], "there is no class 'CAT'; did you mean 'cat'?"),
    ],
)
def test_mistakes(pyramid: Exported, photos: Path, args: list[str], message: str, capsys: Any) -> None:
    assert main(["predict", str(pyramid.path), *args, "--output", "out"]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") <= 3
    assert not Path("out").exists()
