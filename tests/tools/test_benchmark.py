"""`detkit.benchmark.generations` and its command."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import detkit
from detkit.classes import full_name
from detkit.cli.main import main
from detkit.data import Shapes
from detkit.data.shapes_drawing import SHAPE_CLASSES
from detkit.errors import DetkitError
from detkit.evaluation import MeanAveragePrecision, ProposalRecall
from detkit.tools.benchmark.contenders import GENERATIONS, build_contender

QUICK = ["--images", "2", "--rounds", "1", "--min_size", "64", "--max_proposals", "10", "--output", "out"]
SIZES = {"num_train": 1, "num_val": 1, "num_test": 4, "image_size": 64}
DATA = ["--data", "Shapes", "--data.path", "shapes", *(w for k, v in SIZES.items() for w in (f"--data.{k}", str(v)))]
CLASSES = sorted(SHAPE_CLASSES)

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(key: str, path: str, backbone: str = "lenet5", classes: list[str] = CLASSES, data: Any = None) -> list[str]:
    """A run of that generation with random weights; the option that names it."""
    detector = build_contender(key, backbone, classes, 64, 96, 10).detector
    arguments = {name: value for name, value in detector.hparams.items() if not name.startswith("_")}
    found = {"class": full_name(type(detector)), "version": "0", "stage": "comparison"}
    content = {"state_dict": detector.state_dict(), "hyper_parameters": arguments, "detkit": found}
    folder = Path(path, "version_0", "checkpoints")
    folder.mkdir(parents=True)
    torch.save(content, folder / "best.ckpt")
    if data is not None:
        (folder.parent / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return [f"--{key}", path]


def table() -> dict[str, dict[str, str]]:
    with open("out/generations.csv") as file:
        return {line["generation"]: line for line in csv.DictReader(file)}


def test_without_anything_given_it_draws_pictures_and_times_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "generations", "--backbone", "lenet5", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "random weights: R-CNN, Fast R-CNN, Faster R-CNN" in out and "in 2015: the course's table" in out
    assert "mAP" not in out
    lines = table()
    # Ten crops of 32 pixels are quicker than anything: said, and left unsaid, by what was measured.
    assert ("note: Fast R-CNN is " in out) == (float(lines["Fast R-CNN"]["ratio"]) < 2)
    assert list(lines) == ["R-CNN", "Fast R-CNN", "Faster R-CNN"]
    for line in lines.values():
        parts = [float(line[f"seconds_{stage}"]) for stage in ("proposals", "features", "heads", "post_processing")]
        assert min(parts) > 0 and sum(parts) == pytest.approx(float(line["seconds_all"]))
    assert float(lines["R-CNN"]["ratio"]) == 1 and lines["R-CNN"]["proposals_an_image"] == "10.0"
    content = json.loads(Path("out/generations.json").read_text())
    assert (content["images"], content["of_images"], content["rounds"]) == (2, 2, 1)
    assert content["settings"]["fast_rcnn"]["backbone"] == "lenet5" and content["machine"]["device"] == "cpu"
    assert Path("out/generations.svg").is_file()


def test_the_warm_up_is_not_counted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from detkit import progress

    monkeypatch.setattr(progress.Progress.__init__, "__defaults__", (0, "images", 0.0, True))  # a line each step
    assert main(["benchmark", "generations", "--backbone", "lenet5", *QUICK]) == 0
    said = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("timing: ")]
    assert said == ["timing: 1 of 2 images", "timing: 2 of 2 images"]


def test_checkpoints_are_measured_and_judged_on_the_same_images(capsys: pytest.CaptureFixture[str]) -> None:
    given = [word for key in GENERATIONS for word in save(key, f"runs/{key}")]
    assert main(["benchmark", "generations", *given, *DATA, *QUICK, "--protocol", "voc10"]) == 0
    out = capsys.readouterr().out
    data = Shapes("shapes", **SIZES)
    samples = [data.dataset("test")[i] for i in (0, 2)]  # spread evenly over the four
    for key, (name, _, _) in GENERATIONS.items():
        detector = detkit.load(f"runs/{key}")
        precision = MeanAveragePrecision("voc10", CLASSES)
        found = [detector.detect([{"image": s["image"], "image_id": s["image_id"]}])[0] for s in samples]
        precision.update([{k: v.detach() for k, v in each.items()} for each in found], samples)
        wanted = precision.compute()
        assert float(table()[name]["map"]) == pytest.approx(float(wanted["map"]))
        assert f"mAP: {wanted['protocol']}; of 2 images" in out
    recall = ProposalRecall(CLASSES, [10])
    recall.update([detkit.load("runs/rcnn").given.of_batch([s], False)[0] for s in samples], samples)
    assert float(table()["R-CNN"]["recall_50"]) == pytest.approx(float(recall.compute()["recall_50"][0]))
    assert table()["Faster R-CNN"]["recall_50"] and "random weights" not in out


def test_one_checkpoint_brings_its_data_backbone_and_classes_for_all() -> None:
    data = {"class_path": "Shapes", "init_args": {"path": "shapes", **SIZES}}
    save("fast_rcnn", "run", data=data)
    result = detkit.benchmark.generations(fast_rcnn="run", images=2, rounds=1, max_proposals=10, output="out")
    assert "random weights: R-CNN, Faster R-CNN" in result.text
    assert result.text.endswith(
        "written: out/generations.csv\nwritten: out/generations.json\nwritten: out/generations.svg"
    )
    assert [row.name for row in result.rows] == ["R-CNN", "Fast R-CNN", "Faster R-CNN"]
    content = json.loads(Path("out/generations.json").read_text())
    assert content["data"] == "Shapes(shapes)" and content["of_images"] == 4
    assert {each["backbone"] for each in content["settings"].values()} == {"lenet5"}
    assert table()["Faster R-CNN"]["inputs"] == table()["Fast R-CNN"]["inputs"] == "64 to 96"
    assert table()["Fast R-CNN"]["map"] != "" and table()["R-CNN"]["map"] == ""
    assert table()["R-CNN"]["recall_50"] != "" and table()["Faster R-CNN"]["recall_50"] == ""
    # The command takes the same data, and changes what is asked for.
    more = ["--data.path", "other", "--data.num_test", "3"]
    assert main(["benchmark", "generations", "--fast_rcnn", "run", *QUICK, *more]) == 0
    assert json.loads(Path("out/generations.json").read_text())["of_images"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data: {", "config.yaml, line 1, column 8: not valid YAML"),
        (b"data: \xff", "config.yaml: cannot be read"),
        (b"[1]", "config.yaml: must hold `model:`"),
        (b"data: &a [*a]", "config.yaml: holds more than 50 levels"),
        (b"data: [Shapes]", "config.yaml: data: .* must hold class_path"),
        (b"data: {class_path: Shapes, x: 1}", "config.yaml: data: .* must hold class_path"),
        (b"data: {class_path: Shapes, init_args: {x: 1}}", "config.yaml: data: Shapes does not take {'x': 1}"),
        (b"data: {class_path: Shapes, init_args: {num_test: -1}}", "config.yaml: data: .*num_test"),
    ],
)
def test_a_damaged_config_of_a_run_is_told_in_python_too(content: bytes, message: str) -> None:
    save("fast_rcnn", "run", data="Shapes")
    Path("run/version_0/config.yaml").write_bytes(content)
    with pytest.raises(DetkitError, match=message):
        detkit.benchmark.generations(fast_rcnn="run", images=1, rounds=1, device="cpu", output="out")


def test_photographs_without_ground_truth_are_timed_only() -> None:
    Path("photos").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.effect_noise((70, 60), 60).convert("RGB").save(f"photos/{name}")
    given = [*save("faster_rcnn", "run"), "--data", "ImageFolder", "--data.path", "photos"]
    assert main(["benchmark", "generations", *given, *QUICK]) == 0
    assert all(line["map"] == line["recall_50"] == "" for line in table().values())


def test_the_data_of_a_config_is_taken() -> None:
    Path("my.yaml").write_text(yaml.safe_dump({"data": {"class_path": "Shapes", "init_args": {"path": "s", **SIZES}}}))
    options = ["--config", "my.yaml", "--data.num_test", "3", "--backbone", "lenet5", *QUICK]
    assert main(["benchmark", "generations", *options]) == 0
    assert json.loads(Path("out/generations.json").read_text())["of_images"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "0"], "images must be at least 1"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--image", "3"], "there is no option"),
        (["--rounds", "many"], "rounds"),
        (["--backbone", "lenet6"], "backbone: there is no 'lenet6'"),
        (["--device", "abacus"], "device abacus: cannot be used"),
        (["--protocol", "voc08"], "protocol"),
        (["--output", "file"], "file: cannot be written (a file is where a folder is needed"),
        (["--rcnn", "nowhere"], "nowhere: no such checkpoint or run folder"),
        (["--data", "ImageFolder", "--data.path", "empty"], "no image below this folder"),
        (["--data", "Shapees"], "Shapees"),
    ],
)
def test_what_the_user_can_mend(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    Path("empty").mkdir()
    quick = [word for word in QUICK if options[0] != "--output" or word not in ("--output", "out")]
    assert main(["benchmark", "generations", *quick, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not Path("out/generations.csv").exists()


def test_checkpoints_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    rcnn, fast = save("rcnn", "rcnn"), save("fast_rcnn", "fast")
    for given, message in (
        (
            ["--rcnn", "fast"],
            "rcnn fast/version_0/checkpoints/best.ckpt: holds a FastRCNN; a checkpoint of RCNN is needed",
        ),
        ([*rcnn, *save("fast_rcnn", "other", "tiny")], "the backbone of"),
        ([*rcnn, *save("fast_rcnn", "fewer", classes=CLASSES[:2])], "the classes of"),
        ([*fast, "--backbone", "tiny"], "backbone tiny: fast/version_0/checkpoints/best.ckpt has lenet5"),
        ([*save("rcnn", "cats", classes=["cat"]), *DATA], "knows the classes ['cat'], the data set has"),
    ):
        assert main(["benchmark", "generations", *given, *QUICK]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_it_says_which_benchmarks_there_are(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *args]) == 0
    assert "generations" in capsys.readouterr().out


@pytest.mark.parametrize("failing", ["generations.json", "generations.svg"])
def test_earlier_files_stay_where_new_ones_cannot_be_written(
    failing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    for name in ("generations.csv", "generations.json", "generations.svg"):
        Path("out", name).write_text("earlier")
    real = Path.write_text

    def write(self: Path, *args: Any, **options: Any) -> int:
        if self.name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", write)
    assert main(["benchmark", "generations", *QUICK]) == 2
    assert "cannot be written (No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in Path("out").iterdir()} == dict.fromkeys(
        ("generations.csv", "generations.json", "generations.svg"), "earlier"
    )
