from __future__ import annotations

from pathlib import Path

from detkit.data import VOC


def test_counts_and_findings(two_cats: Path) -> None:
    file = two_cats / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<xmax>20<", "<xmax>2<").replace("<xmin>6<", "<xmin>0<"))
    data = VOC(str(two_cats))
    summary = data.summary()
    train = summary.splits["train"]
    assert (train.images, train.boxes, train.empty, train.difficult, train.crowd, train.dropped) == (2, 2, 0, 1, 0, 1)
    assert train.per_class == {"cat": 1, "dog": 1}
    assert train.findings == {"degenerate": 1, "zero_based": 1, "clipped": 1}
    assert summary.splits["val"].dropped == 0
    assert "coordinate of 0" in summary.warnings[0]
    text = str(summary)
    assert "a.xml, object 1: [1, 2, 2, 22] has a side of at most 1 px; box left out" in text
    assert "cat (1)" in text and "train" in text
    found = {(each.kind, each.object) for each in summary.findings["train"]}
    assert found == {("degenerate", 1), ("zero_based", 2), ("clipped", 2)}
    assert summary.category_ids == {"cat": 1, "dog": 2}


def test_many_findings_are_cut_short(two_cats: Path) -> None:
    file = two_cats / "Annotations" / "b.xml"
    start, _, rest = file.read_text().partition("\t<object>")
    one, _, end = rest.partition("</object>")
    bad = f"\t<object>{one}</object>".replace("<xmax>20<", "<xmax>2<")
    file.write_text(start + bad * 8 + end)
    lines = VOC(str(two_cats)).summary(["train"]).lines()
    assert lines[0] == "train: degenerate: 8"
    assert len(lines) == 5 and lines[-1].strip() == "and 5 more"


def test_split_without_boxes_is_warned_of(two_cats: Path) -> None:
    file = two_cats / "Annotations" / "b.xml"
    file.write_text("<annotation><size><width>40</width><height>30</height></size></annotation>")
    summary = VOC(str(two_cats)).summary(["val"])
    assert summary.splits["val"].empty == 1
    assert summary.warnings == ["val: no image has a box"]


def test_class_names_with_brackets_are_shown_as_they_are(two_cats: Path) -> None:
    for file in (two_cats / "Annotations").iterdir():
        file.write_text(file.read_text().replace(">cat<", ">[red]cat<"))
    assert "[red]cat (1)" in str(VOC(str(two_cats)).summary())
