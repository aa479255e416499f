"""`split` and `detkit split`: what they write beside the data, and when they refuse to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detkit
from detkit.cli.main import main
from detkit.data.voc_xml import VOCObject, format_annotation
from detkit.errors import ConfigError, DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images with XML beside them, five of each class; 0 and 1 are alike."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    for number in range(10):
        pixels = np.random.default_rng(max(number, 1)).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        item = VOCObject("cat" if number < 5 else "dog", (4, 4, 20, 20), False)
        (folder / f"{number}.xml").write_text(format_annotation(f"{number}.png", 32, 24, [item]))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_command_divides_a_folder_for_good(photos: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("split", photos, "--data.split", "[0.6, 0.2, 0.2]", "--data.split_seed", "3")
    assert code == 0, err
    assert f"data: {photos} is read as VOC" in out
    assert f"split: {photos / 'split.json'} (written; split 0.6, 0.2, 0.2, split_seed 3)" in out
    sets = json.loads((photos / "split.json").read_text())
    assert {name: len(files) for name, files in sets.items()} == {"train": 6, "val": 2, "test": 2}
    assert sorted(name for files in sets.values() for name in files) == [f"{number}.png" for number in range(10)]
    assert any({"0.png", "1.png"} <= set(files) for files in sets.values())
    rows = {line.split("│")[0].strip(): line.split("│")[1:] for line in out.splitlines() if "│" in line}
    assert [int(cell) for cell in rows["images"]] == [6, 2, 2]
    assert sum(int(cell) for cell in rows["cat (1)"]) == sum(int(cell) for cell in rows["dog (2)"]) == 5
    assert "same box" not in out
    # Whatever a later command asks for, the file decides.
    data = detkit.data.open(photos, split=[1, 0, 0], num_workers=0)
    assert {name: data.annotations(name).files.tolist() for name in sets} == {k: sorted(v) for k, v in sets.items()}
    before = (photos / "split.json").stat().st_mtime_ns
    assert "(unchanged; " in run("split", photos, "--data.split", "[0.6, 0.2, 0.2]", "--data.split_seed", "3")[1]
    assert (photos / "split.json").stat().st_mtime_ns == before


def test_another_division_is_not_replaced_unasked(photos: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    (photos / "split.json").write_text('{"train": ["0.png"], "val": ["1.png"]}')
    code, _, err = run("split", photos)
    assert code == 2 and "divides the data set otherwise already; --replace true replaces it" in err
    assert json.loads((photos / "split.json").read_text()) == {"train": ["0.png"], "val": ["1.png"]}
    code, out, _ = run("split", photos, "--replace")
    assert code == 0 and "(replaced; " in out
    assert len(json.loads((photos / "split.json").read_text())["train"]) == 8


def test_sets_on_the_command_line_are_kept(photos: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("split", photos, "--data.sets", '{"train": ["[0-7].png"], "val": ["8.png", "9"]}')
    assert code == 0, err
    sets = json.loads((photos / "split.json").read_text())
    assert sets == {"train": [f"{number}.png" for number in range(8)], "val": ["8.png", "9.png"]}


def test_a_data_set_with_sets_of_its_own_is_refused(photos: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    for number, split in enumerate(["train", "valid"]):
        (photos / split).mkdir()
        for suffix in (".png", ".xml"):
            (photos / f"{number}{suffix}").rename(photos / split / f"{number}{suffix}")
    code, _, err = run("split", photos)
    assert code == 2 and "has sets of its own (train, val), so there is nothing to divide" in err
    assert not (photos / "split.json").exists()


def test_the_file_lies_beside_a_description(photos: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    for number in range(10):
        (photos / f"{number}.xml").unlink()
        (photos / f"{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (photos / "data.yaml").write_text("names: [cat]\n")
    assert run("split", photos / "data.yaml")[0] == 0
    assert detkit.data.open(photos).split_file == str(photos / "split.json")
    assert detkit.split(detkit.data.open(photos)).text.endswith(
        "split.json (unchanged; split 0.8, 0.1, 0.1, split_seed 0)"
    )


def test_in_python(photos: Path, tmp_path: Path) -> None:
    result = detkit.split(detkit.data.open(photos))
    assert result.path == photos / "split.json" and result.summary.splits["train"].images == 8
    with pytest.raises(ConfigError, match="divides the data set otherwise"):
        detkit.split(detkit.data.open(photos, split_seed=1))
    (tmp_path / "all.json").write_text(
        '{"images": [{"id": 1, "file_name": "my photos/0.png"}], "categories": [{"id": 1, "name": "cat"}]}'
    )
    with pytest.raises(DataError, match="no image is annotated, so there is nothing to divide"):
        detkit.split(detkit.data.open(tmp_path / "all.json"))


def test_the_quick_checks_are_printed(photos: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    item = VOCObject("cat", (4, 4, 20, 20), False)
    (photos / "4.xml").write_text(format_annotation("4.png", 32, 24, [item, item]))
    code, out, err = run("split", photos)
    assert code == 0, err
    assert "same box: 1" in out and "4.png: cat [4, 4, 20, 20] is there twice" in out
