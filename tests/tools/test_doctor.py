"""`detkit doctor` on a data set in which each kind of fault is planted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import detkit
from detkit.cli.main import main

BOX = "<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
BOX += "<ymax>{}</ymax></bndbox></object>"
XML = "<annotation><size><width>{}</width><height>100</height></size>{}</annotation>"
MANY = [("cat", 70 + i, 10, 90 + i, 30) for i in range(99)]
GOOD = [("cat", 11, 11, 60, 60), ("dog", 101, 21, 190, 95)]


class DataSet:
    """A data set in VOC's layout of 12 images with two objects each: 6 in train, 3 in val, 3 in test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        for name, numbers in (("train", range(6)), ("val", range(6, 9)), ("test", range(9, 12))):
            self.list_set(name, [f"i{number}" for number in numbers])
        for number in range(12):
            self.annotate(number)
            coarse = np.random.default_rng(number).integers(0, 255, (5, 8, 3), np.uint8)
            Image.fromarray(coarse).resize((200, 100), Image.Resampling.BICUBIC).save(self.image(number), quality=90)

    def list_set(self, name: str, ids: list[str]) -> None:
        (self.root / f"ImageSets/Main/{name}.txt").write_text("\n".join(ids) + "\n")

    def annotate(self, number: int | str, *more: tuple, width: int = 200) -> None:
        objects = "".join(BOX.format(*row) for row in [*GOOD, *more])
        (self.root / f"Annotations/i{number}.xml").write_text(XML.format(width, objects))

    def image(self, number: int | str) -> Path:
        return self.root / f"JPEGImages/i{number}.jpg"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    monkeypatch.chdir(tmp_path)
    return DataSet(Path("set"))


def cut(data: DataSet) -> None:
    content = data.image(1).read_bytes()
    data.image(1).write_bytes(content[: len(content) // 2])


def turn(data: DataSet) -> None:
    with Image.open(data.image(1)) as image:
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(data.image(1), exif=exif)


def save_as(data: DataSet, source: int, target: int, quality: int) -> None:
    with Image.open(data.image(source)) as image:
        image.save(data.image(target), quality=quality)


#: kind -> what is done, the file that has to be named, and whether a run would stop or lose something.
FAULTS: dict[str, tuple[Callable[[DataSet], Any], str, int]] = {
    "unreadable": (cut, "i1.jpg", 1),
    "error": (lambda data: data.image(1).unlink(), "i1.xml", 1),
    "outside": (lambda data: data.annotate(1, ("cat", 300, 10, 380, 60)), "i1.xml", 1),
    "inverted": (lambda data: data.annotate(1, ("cat", 80, 60, 20, 10)), "i1.xml", 1),
    "degenerate": (lambda data: data.annotate(1, ("cat", 80, 60, 80, 60)), "i1.xml", 1),
    "normalized": (lambda data: data.annotate(1, ("cat", 0.1, 0.2, 0.8, 0.9)), "i1.xml", 1),
    "clipped": (lambda data: data.annotate(1, ("cat", 150, 10, 280, 60)), "i1.xml", 0),
    "tiny": (lambda data: data.annotate(1, ("cat", 80, 60, 82, 62)), "i1.jpg", 0),
    "whole_image": (lambda data: data.annotate(1, ("cat", 1, 1, 200, 100)), "i1.jpg", 0),
    "same_box": (lambda data: data.annotate(1, GOOD[0]), "i1.jpg", 0),
    "near_box": (lambda data: data.annotate(1, ("cat", 11, 12, 60, 61)), "i1.jpg", 0),
    "other_size": (lambda data: data.annotate(1, width=300), "i1.xml", 0),
    "exif": (turn, "i1.jpg", 0),
    "alike_classes": (lambda data: data.annotate(1, ("Cat", 70, 10, 95, 60)), "set", 0),
    "no_training_box": (lambda data: data.annotate(7, ("cow", 70, 10, 95, 60)), "set", 0),
    "in_two_sets": (lambda data: data.list_set("val", ["i1", "i6", "i7", "i8"]), "i1.jpg", 0),
    "alike_sets": (lambda data: save_as(data, 1, 7, 60), "i7.jpg", 0),
    "not_listed": (lambda data: save_as(data, 1, 99, 90), "i99.jpg", 0),
    "many_objects": (lambda data: data.annotate(1, *MANY), "i1.jpg", 0),
    "anchors": (lambda data: [data.annotate(n, ("dog", 10, 70, 190, 75)) for n in range(6)], "set", 0),
}


def doctor(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, list[dict[str, Any]]]:
    capsys.readouterr()
    code = main(["doctor", "set", "--json", "found.json", *args])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out + err, json.loads(Path("found.json").read_text())["findings"]


def test_nothing_is_found_in_a_good_data_set(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, found = doctor(capsys)
    assert (code, found) == (0, []) and out.endswith("nothing found: the data set is ready\n")
    assert "train: 6 images (0 without objects), 12 boxes" in out


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found_and_nothing_else(data: DataSet, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    plant, file, expected = FAULTS[kind]
    plant(data)
    code, out, found = doctor(capsys)
    goes_along = {"exif": {"turned"}, "many_objects": {"near_box"}, "tiny": {"anchors"}, "whole_image": {"anchors"}}
    kinds = {each["kind"] for each in found} - goes_along.get(kind, set())
    assert kinds == {kind} and code == expected
    first = next(each for each in found if each["kind"] == kind)
    assert file in f"{first['file']} {first['message']}" and first["detkit"] and first["mend"]
    assert not first["message"].startswith(str(first["file"]))  # the line would have it twice
    assert f"{kind.replace('_', ' ')}: " in out


def test_all_faults_are_found_in_one_pass_and_shown(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    for number, kind in enumerate(("outside", "normalized", "tiny", "whole_image", "same_box")):
        row = {"outside": (300, 10, 380, 60), "normalized": (0.1, 0.2, 0.8, 0.9), "tiny": (80, 60, 82, 62)}
        row |= {"whole_image": (1, 1, 200, 100), "same_box": GOOD[0][1:]}
        data.annotate(number, ("cat", *row[kind]))
    (data.root / "Annotations/i5.xml").write_text("<annotation><object>")
    data.image(6).write_bytes(b"")
    data.image(7).unlink()
    data.list_set("test", ["i9", "i10", "i11", "none"])
    code, out, found = doctor(capsys, "--output", "sheet")
    kinds = ["error"] * 3 + ["anchors", "unreadable", "normalized", "outside", "same_box", "tiny", "whole_image"]
    assert sorted(each["kind"] for each in found) == sorted(kinds) and code == 1
    assert "a run would stop (error, unreadable) and something would be left out" in out
    page = Path("sheet/index.html").read_text()
    assert page.count("data:image/jpeg") == 5 and 'id="whole_image"' in page and "<h2>tiny: 1</h2>" in page
    assert re.search(r"i7\.xml: no image i7", page) and "pictures: sheet/index.html" in out


def test_a_data_set_without_sets_is_looked_at_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "yolo"
    root.mkdir()
    (root / "classes.txt").write_text("cat\ndog\n")
    for number in range(6):
        coarse = np.random.default_rng(number).integers(0, 255, (5, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((200, 100), Image.Resampling.BICUBIC).save(root / f"{number}.jpg")
        (root / f"{number}.txt").write_text("0 0.3 0.5 0.4 0.8\n1 0.8 0.5 0.2 0.6\n")
    for number, line in enumerate(("7 0.5 0.5 0.1 0.1", "0 5 5 40 40", "0 0.5", "0 1.5 0.5 0.2 0.2")):
        with (root / f"{number}.txt").open("a") as file:
            file.write(line + "\n")
    (root / "4.jpg").write_bytes((root / "4.jpg").read_bytes()[:500])
    (root / "5.jpg").write_bytes(b"")
    assert main(["doctor", str(root), "--json", str(tmp_path / "found.json")]) == 1
    assert "all: 6 images" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    names = [(each["kind"], Path((each["file"] or each["message"]).partition(":")[0]).name) for each in found]
    expected = [("error", f"{number}.txt") for number in range(3)] + [("unreadable", "5.jpg"), ("outside", "3.txt")]
    assert sorted(names) == sorted([*expected, ("unreadable", "4.jpg")])


def test_names_of_files_are_escaped(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    data.annotate(1, ("<script>alert(1)</script>".replace("<", "&lt;"), 1, 1, 200, 100))
    assert doctor(capsys, "--output", "sheet")[0] == 0
    assert "<script>alert" not in Path("sheet/index.html").read_text()


def test_the_settings_of_a_config_are_compared(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        data.annotate(number, ("dog", 70, 10, 79, 19))
    Path("my.yaml").write_text("model: {class_path: FasterRCNN, init_args: {image: {min_size: 100, max_size: 200}}}\n")
    _, out, found = doctor(capsys)
    assert "(images resized to 800 px; " in out and found == []
    _, out, found = doctor(capsys, "--config", "my.yaml")
    assert "(images resized to 100 px; " in out and "small_objects" in {each["kind"] for each in found}
    assert "suggested: --model.image.min_size 160" in out


def test_from_python_by_the_path(data: DataSet) -> None:
    data.image(1).unlink()
    result = detkit.doctor("set")
    assert [check.finding.kind for check in result.checks] == ["error"] and result.exit_code == 1
    assert result.summary.splits["train"].images == 5


@pytest.mark.parametrize("args", [["nowhere"], ["set", "--output", "file/x"], ["set", "--max_detectoins", "3"]])
def test_mistakes(data: DataSet, capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    Path("file").write_text("")
    assert main(["doctor", *args]) == 2
    assert "Traceback" not in capsys.readouterr().err
