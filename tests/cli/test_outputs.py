"""What is written: under a name of its own, never over an input, and one message where it cannot be written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.cli.trainer import make_run_folder
from detkit.errors import ConfigError
from detkit.files import check_output, staged, write_text
from tests.cli import fakes

Detkit = Callable[..., Any]
RUN = Path("runs/toy/version_0")
DRAW = ["--predictions.draw", "true"]
ROOT = Path(__file__).parents[2]
#: `predict` that waits for a line of input within its first batch.
WAITS = """
import sys
from tests.cli import fakes
from detkit.cli import lightning_cli
from detkit.cli.main import main
lightning_cli.base_classes = lambda: (fakes.Model, fakes.Data)
step = fakes.Tiny.predict_step
def predict_step(self, batch, batch_idx):
    if batch_idx == 0:
        print("waits", flush=True)
        sys.stdin.readline()
    return [dict(each, scores=each["scores"] * 0 + 0.75) for each in step(self, batch, batch_idx)]
fakes.Tiny.predict_step = predict_step
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def trained(detkit: Detkit) -> Detkit:
    """A run of one epoch lies in runs/toy."""
    assert detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1").code == 0
    return detkit


@pytest.fixture
def folder_detkit(trained: Detkit, monkeypatch: pytest.MonkeyPatch) -> Detkit:
    """`trained`, and the real folder of images to predict on."""
    from detkit.cli import lightning_cli
    from detkit.data.images import DetectionDataModule  # which makes ImageFolder known

    monkeypatch.setattr(lightning_cli, "base_classes", lambda: (fakes.Model, DetectionDataModule))
    return trained


def photo(path: Path, value: int = 99) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(path)
    return path.read_bytes()


def draw(detkit: Detkit, images: str, output: str) -> Any:
    data = ["--data", "ImageFolder", "--data.path", images, "--data.num_workers", "0"]
    return detkit("predict", "--ckpt_path", "runs/toy", *data, "--predictions.output", output, *DRAW)


def image_ids(folder: str | Path) -> list[Any]:
    return sorted({row["image_id"] for row in json.loads(Path(folder, "predictions.json").read_text())})


# -- two programs in one folder ------------------------------------------------------------------


def test_of_two_predicts_into_one_run_the_last_wins_whole(trained: Detkit) -> None:
    predict = ["predict", "--ckpt_path", "runs/toy", *DRAW]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", WAITS, *predict], env=env, text=True, **pipes) as other:
        assert any(line == "waits\n" for line in other.stdout)
        here = trained(*predict)
        assert here.code == 0 and "instead of" not in here.out
        first = json.loads((RUN / "predictions.json").read_text())
        assert {row["score"] for row in first} == {0.9, 0.2}
        pictures = {path.name: path.read_bytes() for path in (RUN / "predictions").iterdir()}
        out, err = other.communicate("\n", timeout=60)
    assert (other.returncode, err) == (0, "")
    assert f"predictions: {RUN}/predictions.json (instead of an earlier one; --output FOLDER" in out
    second = json.loads((RUN / "predictions.json").read_text())
    assert len(second) == len(first) and {row["score"] for row in second} == {0.75}
    assert all((RUN / "predictions" / name).read_bytes() != old for name, old in pictures.items())
    assert not list(RUN.glob(".*"))


def test_files_that_go_together_are_not_mixed(tmp_path: Path) -> None:
    def write(text: str) -> None:
        for _ in range(30):
            with staged(tmp_path / "out") as part:
                for name in "abcdef":
                    write_text(part / name, text)

    writers = [threading.Thread(target=write, args=(text,)) for text in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list("abcdef")
    assert len({path.read_text() for path in (tmp_path / "out").iterdir()}) == 1


# -- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["photos", "."])
def test_a_folder_with_the_inputs_keeps_them(folder_detkit: Detkit, output: str) -> None:
    kept = {path: photo(path) for path in (Path("photos/a.jpg"), Path("photos/b/c.png"))}
    for _ in range(2):  # the drawings of the first call are not inputs of the second
        result = draw(folder_detkit, "photos", output)
        assert result.code == 0, result.err
        assert image_ids(output) == ["a.jpg", "b/c.png"]
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert sorted(path.name for path in Path(output, "predictions").iterdir()) == ["a.jpg", "b_c.png.jpg"]


def test_drawing_refuses_to_write_over_photographs(folder_detkit: Detkit) -> None:
    before = photo(Path("all/predictions/a.jpg"))
    result = draw(folder_detkit, "all/predictions", "all")
    assert result.code == 2
    assert "detkit: all/predictions/a.jpg: was not drawn by detkit and might be overwritten" in result.err
    assert Path("all/predictions/a.jpg").read_bytes() == before and os.listdir("all") == ["predictions"]


def test_drawings_of_an_earlier_call_make_way(folder_detkit: Detkit) -> None:
    for name in ("old/a", "old/b", "new/b"):
        photo(Path(f"{name}.jpg"))
    for images, drawn in (("old", ["a.jpg", "b.jpg"]), ("new", ["b.jpg"])):
        assert draw(folder_detkit, images, "out").code == 0
        assert sorted(path.name for path in Path("out/predictions").iterdir()) == drawn


def test_a_folder_of_drawings_only_is_told(folder_detkit: Detkit) -> None:
    photo(Path("photos/a.jpg"))
    assert draw(folder_detkit, "photos", "out").code == 0
    result = draw(folder_detkit, "out/predictions", "out")
    assert result.code == 2 and "out/predictions: has no image that detkit did not draw itself" in result.err


def test_symbolic_links_are_not_written_through(folder_detkit: Detkit) -> None:
    before = photo(Path("photos/a.jpg"))
    Path("out").mkdir()
    Path("precious.json").write_text("precious")
    Path("out/predictions.json").symlink_to(Path("precious.json").absolute())
    Path("out/predictions").symlink_to(Path("photos").absolute())
    assert draw(folder_detkit, "photos", "out").code == 2
    Path("out/predictions").unlink()
    Path("out/predictions").mkdir()
    Path("out/predictions/a.jpg").symlink_to(Path("photos/a.jpg").absolute())
    assert draw(folder_detkit, "photos", "out").code == 2
    Path("out/predictions/a.jpg").unlink()
    assert draw(folder_detkit, "photos", "out").code == 0
    assert Path("photos/a.jpg").read_bytes() == before and os.listdir("photos") == ["a.jpg"]
    assert Path("precious.json").read_text() == "precious" and image_ids("out") == ["a.jpg"]


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [("predict", "--predictions.output", "predictions.json"), ("test", "--output", "metrics.json")],
)
def test_annotations_are_not_replaced(folder_detkit: Detkit, command: str, option: str, name: str) -> None:
    from detkit.data import COCO

    photo(Path("coco/images/a.jpg"))
    image = {"id": 0, "file_name": "a.jpg", "width": 30, "height": 20}
    box = {"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    names = [{"id": 3, "name": "cat"}, {"id": 17, "name": "dog"}]
    text = json.dumps({"images": [image], "annotations": [box], "categories": names})
    Path("coco", name).write_text(text)
    data = ["--data.test_annotations", name, "--data.test_images", "images", "--data.num_workers", "0"]
    args = [command, "--ckpt_path", "runs/toy", "--data", COCO.__name__, "--data.path", "coco", *data, option]
    result = folder_detkit(*args, "coco")
    assert result.code == 2
    assert f"detkit: coco/{name}: is read, and would be replaced; choose another folder by {option}\n" in result.err
    assert Path("coco", name).read_text() == text and sorted(os.listdir("coco")) == ["images", name]


def test_a_baseline_is_not_replaced(trained: Detkit) -> None:
    assert trained("test", "--ckpt_path", "runs/toy").code == 0
    before = files_of(RUN / "report")
    result = trained("test", "--ckpt_path", "runs/toy", "--baseline", str(RUN))
    assert result.code == 2 and f"detkit: {RUN}/report/metrics.json: is read, and would be replaced" in result.err
    assert files_of(RUN / "report") == before


# -- no room, no rights --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "path"),
    [
        (["predict", "--ckpt_path", "runs/toy", "--predictions.output", "file"], "file"),
        (["predict", "--ckpt_path", "runs/toy", "--predictions.output", "file/in/it"], "file/in/it"),
        (["test", "--ckpt_path", "runs/toy", "--output", "file"], "file"),
        (["fit", "--config", "toy.yaml", "--trainer.default_root_dir", "file"], "file"),
    ],
)
def test_a_file_where_a_folder_is_meant(
    trained: Detkit, monkeypatch: pytest.MonkeyPatch, args: list[str], path: str
) -> None:
    Path("file").write_text("a file")
    for step in ("predict_step", "test_step", "training_step"):
        monkeypatch.setattr(fakes.Tiny, step, lambda *_: pytest.fail("the work has begun"))
    result = trained(*args)
    assert result.code == 2 and "Traceback" not in result.err
    assert f"detkit: {path}" in result.err and "(a file is where a folder is needed; " in result.err
    assert "MB are free there)" in result.err and Path("file").read_text() == "a file"


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that the user may not enter; root, who may, is another user meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "locked")
        Path(folder).chmod(0o755)
        path.mkdir(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield path
        finally:
            os.seteuid(user)
            path.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="other rights")
def test_a_folder_that_one_may_not_enter(program: Detkit, locked: Path) -> None:
    read = [["test", "--ckpt_path"], ["fit", "--config"], ["compress", "--rank", "fc6=4", "--ckpt_path"]]
    for args in read:
        result = program(*args, str(locked / "x"))
        assert result.code == 2 and f"detkit: {locked}/x: cannot be opened (Permission denied)\n" in result.err
    with pytest.raises(ConfigError, match=r"locked/x/y: cannot be written \(Permission denied; [\d,]+ MB are free"):
        check_output(locked / "x/y")
    with pytest.raises(ConfigError, match="locked/x: cannot be written"), staged(locked / "x"):
        pass
    with pytest.raises(ConfigError, match="locked/x: cannot be written"):
        make_run_folder(locked / "x", 0)


@pytest.mark.parametrize("name", ["a" * 300, "loop"])
def test_a_path_that_cannot_be(program: Detkit, name: str) -> None:
    Path("loop").symlink_to("loop")
    for args in (["test", "--ckpt_path"], ["fit", "--config"], ["compress", "--rank", "fc6=4", "--ckpt_path"]):
        result = program(*args, name)
        assert result.code == 2 and f"detkit: {name}: " in result.err and "written" not in result.err
    with pytest.raises(ConfigError, match=f"{name}: cannot be written"):
        check_output(Path(name))


def test_the_character_nul_in_a_path(detkit: Detkit) -> None:
    """A shell cannot give it, but a config can."""
    Path("nul.yaml").write_text('trainer: {default_root_dir: "a\\0b"}')
    result = detkit("fit", "--config", "toy.yaml", "--config", "nul.yaml")
    assert result.code == 2 and "nul.yaml: trainer.default_root_dir holds a NUL character" in result.err


@pytest.mark.parametrize("below", ["", "runs"])
def test_runs_below_a_link_to_nothing(detkit: Detkit, below: str) -> None:
    Path("link").symlink_to("nothing")
    root = str(Path("link", below))
    result = detkit("fit", "--config", "toy.yaml", "--trainer.default_root_dir", root)
    assert result.code == 2 and f"detkit: {root}: cannot be written (a link to nothing is where a " in result.err


def test_names_that_are_no_utf8_or_long(folder_detkit: Detkit) -> None:
    """A drawing's name has a number and another suffix."""
    names = [b"\xff.jpg", b"n" * 250 + b".png", b"n" * 249 + b"m.png", "\u00fc".encode() * 125 + b".png"]
    for name in names:
        photo(Path("photos/a.jpg"))
        os.rename("photos/a.jpg", os.path.join(b"photos", name))
    assert draw(folder_detkit, "photos", "out").code == 0
    assert image_ids("out") == sorted(os.fsdecode(name) for name in names)
    assert len(os.listdir("out/predictions")) == len(names)


@pytest.fixture
def disk(tmp_path: Path) -> Any:
    """A disk of a megabyte, and a function that leaves so many bytes of it free."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("needs the right to mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount")

    def leave(size: int) -> Path:
        (folder / "filler").unlink(missing_ok=True)
        (folder / "filler").write_bytes(bytes(max(shutil.disk_usage(folder).free - size, 0)))
        return folder

    try:
        yield leave
    finally:
        subprocess.run(["umount", folder], check=True)


def files_of(folder: Path) -> dict[str, bytes]:
    found = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in found.items() if not path.endswith("filler")}


@pytest.mark.parametrize("free", [0, 16384])
@pytest.mark.parametrize("command", ["predict", "test"])
def test_a_full_disk_keeps_earlier_files(trained: Detkit, disk: Any, command: str, free: int) -> None:
    folder = disk(1_000_000)
    option = "--predictions.output" if command == "predict" else "--output"
    more = DRAW if command == "predict" else []
    args = [command, "--ckpt_path", "runs/toy", option, str(folder / "out"), *more]
    assert trained(*args).code == 0
    before = files_of(folder)
    assert len(before) > 1
    disk(free)
    result = trained(*args, "--data.size", "40")
    assert result.code == 2
    told = [line for line in result.err.splitlines() if line]
    assert len(told) == 1 and f"{folder}/out" in told[0] and "No space left on device; 0 MB are free there" in told[0]
    assert files_of(folder) == before and not list(folder.rglob(".*"))


def test_a_full_disk_ends_a_fit_with_one_message(detkit: Detkit, disk: Any) -> None:
    folder = disk(30_000)
    result = detkit("fit", "--config", "toy.yaml", "--trainer.default_root_dir", str(folder), "--model.width", "4000")
    assert result.code == 2 and "Traceback" not in result.err
    assert f"detkit: {folder}" in result.err and "No space left on device; 0 MB are free there" in result.err
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize("name", ["metrics.json", "per_class.csv", "index.html"])
def test_a_report_is_replaced_whole_or_not_at_all(trained: Detkit, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert trained("test", "--ckpt_path", "runs/toy").code == 0
    before = files_of(RUN / "report")
    real = Path.write_text

    def write(self: Path, *args: Any, **options: Any) -> int:
        if self.name.endswith(name) or f".{name}." in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", write)
    result = trained("test", "--ckpt_path", "runs/toy", "--data.size", "2")
    assert result.code == 2 and "No space left on device" in result.err
    assert files_of(RUN / "report") == before and not list(RUN.rglob(".*"))


def test_a_folder_where_a_file_is_meant_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(ConfigError, match="b is a folder"), staged(tmp_path) as part:
        for name in "ab":
            (part / name).write_text("new")
    assert (tmp_path / "a").read_text() == "old" and sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_checkpoint_that_has_no_room(disk: Any) -> None:
    from detkit.engine.callbacks import AtomicCheckpointIO

    folder = disk(10_000)
    with pytest.raises(ConfigError, match=r"disk: cannot be written .*No space left on device; 0 MB"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, folder / "last.ckpt")
    assert os.listdir(folder) == ["filler"]


def test_predictions_before_an_image_that_cannot_be_read_are_kept(folder_detkit: Detkit) -> None:
    for name in "abc":
        photo(Path("photos") / f"{name}.png")
    Path("photos/z.png").write_bytes(b"broken")
    data = ["--data", "ImageFolder", "--data.path", "photos", "--data.num_workers", "0"]
    stops = ["--predictions.output", "out", "--on_bad_image", "error"]
    result = folder_detkit("predict", "--ckpt_path", "runs/toy", *data, *stops)
    assert result.code == 2 and "z.png: image cannot be read" in result.err
    assert f"What was predicted is in {Path('out/predictions.stopped.json')}" in result.err
    rows = json.loads(Path("out/predictions.stopped.json").read_text())
    assert sorted({row["image_id"] for row in rows}) == ["a.png", "b.png", "c.png"]
