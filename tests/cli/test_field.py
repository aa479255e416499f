"""Inputs as people have them (the shared fixtures), each through the real command line: what is told of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from detkit.cli.main import main
from detkit.tools.finding_kinds import KINDS

#: Input -> exit code, boxes of all sets (counted in the files by hand), and what is said (a pattern).
FIELD = {
    "base": (0, 80, "nothing found"),
    "voc_spaces": (0, 16, ""),
    "voc_stems": (0, 4, ""),
    "voc_two_boxes": (0, 4, r"several boxes: 1 .*\n.*has several boxes; each is taken as an object"),
    "voc_size": (0, 12, r"other size: .*\n.*the image's size counts"),
    "voc_exif": (0, 4, r"exif: 3 .*\n.*does not tell whether the boxes are meant before or after turning it"),
    "voc_nested": (0, 4, ""),
    "voc_norm": (1, 0, "the coordinates look normalised"),
    "voc_gbk": (0, 2, ""),
    "voc_ext": (0, 8, ""),
    "same_folder": (0, 6, "is read as VOC: XML annotations"),
    "roboflow_voc": (0, 8, "train: 2 images .*\nval: 2 images"),
    "voc_negatives": (1, 8, "neg.xml: annotation file does not exist; .* --data.missing_annotations empty"),
    "coco_crowdstr": (0, 6, "flags such as iscrowd are strings"),
    "coco_winsep": (0, 6, ""),
    "coco_bom": (0, 6, ""),
    "coco_rf_dup": (0, 6, "category 0 .* has no objects"),
    "coco_rf_layout": (0, 18, "train: 3 images .*\nval: 3 images .*\ntest: 3 images"),
    "coco_segonly": (0, 6, "have no bbox: that of their segmentation is taken"),
    "coco_nosize": (0, 6, "no size is given"),
    "coco_bigid": (2, 0, "image 0 .* id: expected 'int' <= 9223372036854775807"),
    "coco_infoonly": (1, 0, "no box to learn from is left"),
    "coco_dupannid": (0, 6, ""),
}


@pytest.mark.parametrize("name", FIELD)
def test_field(shared: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, boxes, said = FIELD[name]
    folder = tmp_path / name
    shutil.copytree(shared("fixtures/field") / name, folder)
    assert main(["doctor", str(folder), "--json", str(tmp_path / "found.json")]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err and re.search(said, out + err), out + err
    if code < 2:
        content = json.loads((tmp_path / "found.json").read_text())
        assert sum(split["boxes"] for split in content["splits"].values()) == boxes
        assert {each["kind"] for each in content["findings"]} <= set(KINDS)
