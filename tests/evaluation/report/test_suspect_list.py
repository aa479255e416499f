"""The label suspects of a report: the file, the pictures, and where there are none."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.report.pages import named, report
from tests.evaluation.sets import Found, Thing

NAMES = ["=cat", "<b>dog</b>"]
RIGHT = ([Thing((10, 10, 40, 40), 1)], [Found((10, 10, 40, 40), 1, 0.99)])


def test_the_file_has_label_and_suggestion(tmp_path: Path) -> None:
    missing = ([], [Found((60.5, 20, 30, 30), 2, 0.95)])
    wrong = ([Thing((10, 10, 40, 40), 1)], [Found((12, 10, 40, 40), 2, 0.98)])
    dogs = ([Thing((60, 20, 30, 30), 2)], [Found((60, 20, 30, 30), 2, 0.99)])
    images = [(n, RIGHT if n % 2 else dogs) for n in range(20)]
    s = named([*images, ("a", missing), ("b", wrong)])
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(tmp_path / "photo b.png")
    page, _ = report(tmp_path / "out", s, NAMES, {"b": tmp_path / "photo b.png"})
    rows = list(csv.DictReader((tmp_path / "out" / "label_suspects.csv").open(encoding="utf-8", newline="")))
    assert [(row["image"], row["kind"], row["label"], row["suggested_label"]) for row in rows] == [
        ("photo b.png", "wrong class", "'=cat", "<b>dog</b>"),
        ("a", "missing", "", "<b>dog</b>"),
    ]
    corners = [
        [row[f"{whose}{side}"] for side in ("x1", "y1", "x2", "y2")] for row in rows for whose in ("", "suggested_")
    ]
    assert corners == [
        ["10.0", "10.0", "50.0", "50.0"],
        ["12.0", "10.0", "52.0", "50.0"],
        [""] * 4,
        ["60.5", "20.0", "90.5", "50.0"],
    ]
    assert [row["score"] for row in rows] == ["0.9800", "0.9500"]
    section = page.partition('<section id="suspects"')[2].partition("</section>")[0]
    assert section.count("<figure>") == 2 and section.count("data:image/jpeg") == 1
    assert "<b>dog" not in section and "&lt;b&gt;dog" in section
    assert '<a href="#suspects">label suspects</a>' in page
    report(tmp_path / "out", named([(1, RIGHT)]), NAMES)  # a later report without suspects replaces the file
    assert len((tmp_path / "out" / "label_suspects.csv").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize(("found", "said"), [([], "There is no list"), (RIGHT[1], "No label is contradicted")])
def test_why_there_are_none_is_said(tmp_path: Path, found: list[Found], said: str) -> None:
    page, _ = report(tmp_path, named([(1, (RIGHT[0], found))]), NAMES)
    assert said in page
    assert '<a href="#suspects">label suspects</a>' not in page
