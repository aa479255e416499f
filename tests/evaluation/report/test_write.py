"""The report's files: what is in them, whatever was evaluated."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from detkit.evaluation.analysis import analyse
from detkit.evaluation.evaluation_set import EvaluationSet, empty_set
from detkit.evaluation.report import write_report
from detkit.evaluation.report.numbers import ClassRow, to_csv
from tests.evaluation.report.pages import NASTY, metrics_of, named, random_set, report, write_images
from tests.evaluation.sets import Found, Thing

VOID = {"meta", "link", "img", "br", "hr", "input"}
REPOSITORY = Path(__file__).parents[3]


class Outline(html.parser.HTMLParser):
    """The page's elements in order; fails where one is not closed, or an id is given twice."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
        assert set(used) <= set(ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(t == tag and all(a.get(k) == v for k, v in attributes.items()) for t, a in self.elements)


def objects_only() -> EvaluationSet:
    return named([("a", ([Thing((0, 0, 10, 10), 1), Thing((20, 20, 40, 9), 2)], [])), ("b", ([], []))])


def detections_only() -> EvaluationSet:
    return named([("a", ([], [Found((0, 0, 10, 10), 1, 0.9), Found((3, 3, 9, 9), 2, 0.2)]))])


@pytest.mark.parametrize(
    ("evaluation_set", "classes"),
    [
        (random_set(0, 4), 4),
        (random_set(1, 1), 1),
        (random_set(3, 20), 20),
        (objects_only(), 2),
        (detections_only(), 2),
        (empty_set(), 3),
        (empty_set(), 0),
        (named([(None, ([Thing((0, 0, 9, 9), 1)], [])), (None, ([], [Found((0, 0, 9, 9), 1, 0.5)]))]), 1),
    ],
    ids=["four", "one", "twenty", "no detections", "no objects", "no images", "no classes", "no ids"],
)
def test_whatever_was_evaluated_the_page_is_whole(tmp_path: Path, evaluation_set: EvaluationSet, classes: int) -> None:
    names = [f"class {k}" for k in range(classes)]
    page, analysis = report(
        tmp_path, evaluation_set, names, write_images(tmp_path / "images", evaluation_set.image_ids)
    )
    outline = Outline(page)
    sections = [a["id"] for tag, a in outline.elements if tag == "section"]
    assert sections == ["numbers", "classes", "curves", "errors", "confusion", "sensitivity", "suspects", "gallery"]
    assert page.count("<h1>") == 1
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()
    assert "None" not in outline.text
    assert len(page) < 1_500_000
    assert all(a.get("role") == "img" and a.get("aria-label") for tag, a in outline.elements if tag == "svg")
    rows = [a for tag, a in outline.elements if tag == "tr"]
    assert len(rows) >= 1 + classes
    curves = sum(bool(curve.num_objects) for curve in analysis.curves)
    assert page.count('<figure class="curve">') == (curves if curves > 1 else 0)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "index.html",
        "label_suspects.csv",
        "metrics.json",
        "per_class.csv",
    ]


def test_nothing_to_count_is_said(tmp_path: Path) -> None:
    page, _ = report(tmp_path / "a", detections_only(), ["cat", "dog"])
    assert "There are no objects to find" in page
    assert page.count("n/a") > 20
    page, _ = report(tmp_path / "b", objects_only(), ["cat", "dog"])
    assert "There are no detections" in page
    assert "0.000" in page


def test_many_classes_stay_light_and_fold(tmp_path: Path) -> None:
    s = random_set(2, 80, images=200)
    page, analysis = report(tmp_path, s, [f"class {k}" for k in range(80)])
    Outline(page)
    with_objects = sum(bool(curve.num_objects) for curve in analysis.curves)
    assert page.count('<figure class="curve">') == with_objects > 60
    folded = page[page.index("<details>") : page.index("</details>")]
    assert folded.count('<figure class="curve">') == with_objects - 12
    assert len(page) < 800_000  # without photos


def test_names_of_strangers_are_text(tmp_path: Path) -> None:
    ids = [f"../{name}.jpg" for name in NASTY] + list(range(6))
    s = random_set(4, len(NASTY), ids=ids)
    metrics = metrics_of(s, NASTY, data="<b>data</b>", checkpoint="<i>ckpt</i>", date="<u>now</u>")
    baseline = {**metrics, "data": "<em>other</em>", "map_per_class": {name: 0.5 for name in [*NASTY, "<s>old</s>"]}}
    path = write_report(tmp_path, metrics, s, analyse(s, NASTY), {}, "<h6>title</h6>", baseline)
    outline = Outline(path.read_text(encoding="utf-8"))
    found = {tag for tag, _ in outline.elements}
    assert found.isdisjoint({"em", "i", "u", "s", "h6", "img"})
    assert outline.count("script") == 1
    assert outline.text.count("a class name was run") > 3
    assert "{{ 7*7 }}" in outline.text
    assert "日本語" in outline.text
    assert "x" * 59 + "…" in outline.text
    assert "x" * 61 not in outline.text
    rows = list(csv.DictReader((tmp_path / "per_class.csv").open(encoding="utf-8", newline="")))
    assert [row["class"] for row in rows] == [name.replace("\udc80", "\\udc80") for name in NASTY]
    written = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert list(written["map_per_class"]) == NASTY  # JSON has a word for half a character


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    s = random_set(5, 3)
    page, _ = report(tmp_path, s, ["a", "b", "c"], write_images(tmp_path / "images", s.image_ids))
    outline = Outline(page)
    addresses = [a.get(name) or "" for _, a in outline.elements for name in ("src", "href", "action", "data", "srcset")]
    assert all(not address or address.startswith(("#", "data:")) for address in addresses)
    assert page.count("data:image/jpeg;base64,") > 5
    assert not re.search(r"url\((?!#)|@import|https?://", page)
    assert "default-src 'none'" in page


def test_metrics_json_has_null_for_nan_and_the_analysis(tmp_path: Path) -> None:
    s = random_set(6, 3)
    _, analysis = report(tmp_path, s, ["a", "b", "c"], more={"deep": [math.inf, {"er": -math.inf}]})
    text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["nothing"] is None
    assert content["more"] == {"deep": [None, {"er": None}]}
    assert content["checkpoint"] == str(Path("runs/toy/best.ckpt"))
    assert content["analysis"]["error_counts"] == analysis.error_counts
    assert content["map"] == metrics_of(s, ["a", "b", "c"])["map"]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x","y")'])
def test_a_class_name_that_is_a_formula_is_text_in_a_spreadsheet(name: str) -> None:
    numbers = [0.5] * (len(fields(ClassRow)) - 1)
    text = to_csv([ClassRow(name, *numbers), ClassRow("a=b", *numbers)])
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert [row[0] for row in rows] == ["class", f"'{name}".replace("\r", " "), "a=b"]
    assert rows[1][1:] == ["0.5"] * len(numbers)


def test_per_class_csv_has_every_number(tmp_path: Path) -> None:
    things = [Thing((0, 0, 10, 10), 1), Thing((50, 50, 10, 10), 1), Thing((20, 0, 10, 10), 1, difficult=True)]
    found = [Found((0, 0, 10, 10), 1, 0.75), Found((30, 30, 5, 5), 1, 0.5), Found((30, 30, 5, 5), 2, 0.25)]
    s = named([(1, (things, found)), (2, ([Thing((0, 0, 9, 9), 1)], []))])
    report(tmp_path, s, ["cat", "dog"], protocol="voc10")
    with (tmp_path / "per_class.csv").open(encoding="utf-8", newline="") as file:
        cat, dog = csv.DictReader(file)
    assert cat["class"] == "cat"
    assert float(cat["ap"]) == pytest.approx(1 / 3)
    assert float(cat["ap_50"]) == pytest.approx(34 / 101)
    counts = {"objects": "3", "ignored": "1", "images": "2", "detections": "2", "threshold": "0.75", "precision": "1.0"}
    assert {key: cat[key] for key in counts} == counts
    assert float(cat["recall"]) == pytest.approx(1 / 3)
    assert float(cat["f1"]) == pytest.approx(0.5)
    assert [dog[key] for key in ("ap", "ap_50", "threshold", "f1")] == ["n/a"] * 4
    assert [dog[key] for key in ("objects", "detections")] == ["0", "1"]


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    s = random_set(7, 4)
    images = write_images(tmp_path / "images", s.image_ids)
    for name in ("a", "b"):
        report(tmp_path / name, s, list("wxyz"), images, date="2020-02-02")
    for file in ("index.html", "metrics.json", "per_class.csv", "label_suspects.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_facts_are_on_the_page(tmp_path: Path) -> None:
    s = random_set(8, 3)
    page, _ = report(tmp_path, s, ["cat", "dog", "cow"], protocol="voc07", date="2020-02-02 20:02")
    text = Outline(page).text
    for fact in ("Test of toys", "VOC07 (AP at IoU > 0.50", "runs/toy/best.ckpt", "Toys(toys/)", "1.2.3", "2020-02-02"):
        assert fact in text
    assert f"Images{len(s)}" in re.sub(r"\s", "", text)
    assert f"Objectstofind{int((~s.ignored).sum())}" in re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("detector", "told", "untold"),
    [
        (
            "RCNN",
            ["proposals.max_boxes", "mode: quality", "detkit propose", "crop.size"],
            ["anchor", "box loss", "pyramid"],
        ),
        ("FastRCNN", ["proposals.max_boxes", "mode: quality", "detkit propose", "pyramid"], ["anchor", "crop.size"]),
        ("FasterRCNN", ["anchors", "pyramid"], ["proposal", "crop.size"]),
        (None, ["larger images", "box loss"], ["anchor", "proposal", "max_boxes", "crop.size"]),
    ],
)
def test_the_advice_is_for_the_detector(
    tmp_path: Path, detector: str | None, told: list[str], untold: list[str]
) -> None:
    page, _ = report(tmp_path, random_set(0, 2), ["circle", "star"], **({"detector": detector} if detector else {}))
    advice = page.partition('<dl class="advice">')[2].partition("</dl>")[0]
    assert [word for word in told if word not in advice] == []
    assert [word for word in untold if word in advice] == []


def test_the_report_needs_neither_torch_nor_matplotlib() -> None:
    program = (
        "import sys, tempfile; from pathlib import Path\n"
        "from detkit.evaluation.analysis import analyse\n"
        "from detkit.evaluation.evaluation_set import empty_set\n"
        "from detkit.evaluation.report import write_report\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    write_report(Path(folder), {}, empty_set(), analyse(empty_set(), ['a']), {}, 'title')\n"
        "print([name for name in ('torch', 'matplotlib', 'albumentations') if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stderr == ""
    assert result.stdout.strip() == "[]"
