"""In which order is measured, what is made of the times, and the table, with times that are given."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from detkit.detectors import FastRCNN
from detkit.settings import construct
from detkit.tools.benchmark import measuring
from detkit.tools.benchmark.contenders import build_contender
from detkit.tools.benchmark.measuring import Row, measure, proposals, seconds_an_image
from detkit.tools.benchmark.picture import draw
from detkit.tools.benchmark.report import as_factor, cells, in_seconds, ratio, why_so_close, write
from detkit.tools.benchmark.stage_clock import STAGES

KEYS = ("rcnn", "fast_rcnn", "faster_rcnn")


def row(key: str, seconds: tuple[float, ...], **found: Any) -> Row:
    nothing = dict.fromkeys(("checkpoint", "recall_50", "recall_70", "map", "protocol"))
    return Row(
        **{
            **nothing,
            "key": key,
            "seconds": dict(zip(STAGES, seconds, strict=True)),
            "boxes": 7,
            "inputs": "9 to 9",
            "times": [],
            **found,
        }
    )


ROWS = [
    row("rcnn", (2, 35, 2, 1), recall_50=0.9, recall_70=math.nan),
    row("fast_rcnn", (2, 0.5, 0.25, 0.25), recall_50=0.9, map=0.5, protocol="eleven points"),
    row("faster_rcnn", (0.1, 0.1, 0.1, 0.1)),
]


def test_the_generations_are_timed_in_turns_after_a_first_call_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = [build_contender(key, "lenet5", ["a", "b"], 64, 96, 5) for key in KEYS]
    keys = {id(each.detector): each.key for each in contenders}
    calls: list[tuple[str, str]] = []

    def timed(detector: Any, sample: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        assert set(sample) == {"image", "image_id"}  # neither ground truth nor proposals
        calls.append((keys[id(detector)], sample["image_id"]))
        return {}, dict.fromkeys(STAGES, float(len(calls)))

    monkeypatch.setattr(measuring, "time_detection", timed)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    samples = [{"image": image, "image_id": name, "proposals": torch.zeros(1, 4)} for name in "xy"]
    steps: list[int] = []
    warm: list[int] = []
    rows = measure(contenders, samples, 2, "voc07", lambda: steps.append(len(calls)), lambda: warm.append(len(calls)))
    one_round = [(key, name) for name in "xy" for key in KEYS]
    assert calls == [(key, "x") for key in KEYS] + 2 * one_round
    assert warm == [3] and steps == [6, 9, 12, 15]  # the warm-up is no image of a round
    assert [r.times[1][0]["heads"] for r in rows] == [7, 8, 9]  # image y, first round
    assert [r.seconds["features"] for r in rows] == [8.5, 9.5, 10.5]  # mean of the medians of 4, 10 and 7, 13
    assert all((r.map, r.recall_50, r.checkpoint) == (None, None, None) for r in rows)


def test_what_the_networks_see_is_told() -> None:
    assert build_contender("rcnn", "lenet5", ["a"]).inputs == "crops of 32"
    assert build_contender("faster_rcnn", "lenet5", ["a"], 64, 96).inputs == "64 to 96"
    fast = build_contender("fast_rcnn", "lenet5", ["a"])
    assert fast.inputs == "600 to 1000"
    options = {"class_names": ["a"], "backbone": "tiny", "features__fpn": False, "test_sizes": [64, 96]}
    scales = construct(FastRCNN, {**options, "test_max_size": 200})
    assert fast._replace(detector=scales).inputs == "64 to 200, 96 to 200"


def test_an_interruption_of_one_round_does_not_count() -> None:
    times = [[{"heads": value} for value in image] for image in ([1.0, 100.0, 2.0], [5.0, 4.0, 900.0])]
    assert seconds_an_image(times, "heads") == (2 + 5) / 2


def test_proposals_are_those_of_the_detection() -> None:
    sample = {"image": torch.randint(0, 255, (3, 50, 80), dtype=torch.uint8), "image_id": "x"}
    searched = build_contender("rcnn", "lenet5", ["a"], 64, 96, 6).detector
    fast = build_contender("fast_rcnn", "lenet5", ["a"], 64, 96, 6).detector
    found = proposals(searched, sample)
    assert len(found) == 6
    torch.testing.assert_close(proposals(fast, sample), found)  # there and back through its own scale
    rpn = proposals(build_contender("faster_rcnn", "lenet5", ["a"], 64).detector, sample)
    assert len(rpn) and (rpn >= 0).all() and rpn[:, 2].max() <= 80.01 and rpn[:, 3].max() <= 50.01


def test_the_table_says_what_is_known() -> None:
    lines = {line[0]: line[1:] for _, group in cells(ROWS) for line in group}
    assert lines["features"] == ("35.0", "0.500", "0.100")
    assert lines["all"] == ("40.0", "3.00", "0.400")
    assert lines["input, pixels"] == ("9 to 9",) * 3
    assert lines["with proposals"] == ("1x", "13x", "100x")
    assert lines["without proposals"] == ("1x", "38x", "127x")
    assert ratio(ROWS[1:], ROWS[1]) is None
    assert lines["in 2015, with"] == ("1x (50 s)", "25x (2 s)", "250x (0.2 s)")
    assert lines["their recall, IoU 0.5"] == ("0.900", "0.900", "")
    assert lines["their recall, IoU 0.7"] == ("n/a", "", "")
    assert lines["mAP of detections"] == ("", "0.500", "")
    assert "mAP of detections" not in {line[0] for _, group in cells(ROWS[2:]) for line in group}


@pytest.mark.parametrize(
    ("value", "seconds", "factor"),
    [
        (123.4, "123", "123x"),
        (12.34, "12.3", "12x"),
        (1.234, "1.23", "1.2x"),
        (0.01234, "0.0123", "0.012x"),
        (0, "0.00", "0x"),
    ],
)
def test_numbers_have_the_digits_that_count(value: float, seconds: str, factor: str) -> None:
    assert in_seconds(value) == seconds
    assert as_factor(value) == factor


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    paths = write(ROWS, {"images": 3}, tmp_path)
    assert [p.name for p in paths] == ["generations.csv", "generations.json"]
    table = list(csv.DictReader(paths[0].open()))
    assert [r["generation"] for r in table] == ["R-CNN", "Fast R-CNN", "Faster R-CNN"]
    assert float(table[0]["seconds_post_processing"]) == 1 and float(table[2]["ratio"]) == pytest.approx(100)
    assert (table[1]["map"], table[1]["protocol"], table[0]["map"]) == ("0.5", "eleven points", "")
    content = json.loads(paths[1].read_text())
    assert content["images"] == 3 and content["generations"][0]["recall_70"] is None
    assert content["generations"][1]["seconds"]["all"] == 3


def test_the_picture_is_svg_with_every_number_that_has_room(tmp_path: Path) -> None:
    draw(ROWS, "measured nowhere", tmp_path / "a.svg")
    root = ElementTree.fromstring((tmp_path / "a.svg").read_text())
    texts = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"R-CNN", "Fast R-CNN", "Faster R-CNN", "measured nowhere", "here", "in 2015", *STAGES} <= texts
    assert {"40.0 s, 1x", "0.400 s, 100x", "0.2 s, 250x", "35.0 s", "2.00 s"} <= texts
    assert "1.00 s" not in texts  # R-CNN's post-processing, a fortieth of its bar
    draw(ROWS, "measured nowhere", tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_fast_rcnn_that_is_hardly_quicker_is_explained_by_what_was_measured() -> None:
    cheap = row("rcnn", (0.5, 0.25, 0, 0), boxes=500, inputs="crops of 64")
    fast = row("fast_rcnn", (0.5, 0.2, 0.4, 0))
    assert why_so_close([cheap, fast], "mobilenet_v2", 64) == (
        "note: Fast R-CNN is 0.68x as fast as R-CNN: R-CNN's 500 crops of 64 pixels take 0.250 s (0.5 ms each, "
        "mobilenet_v2), the shared map 0.200 s and the heads on it 0.400 s; to see what sharing saves, take crops of "
        "224 pixels (crop.size) and a larger backbone"
    )
    assert why_so_close([cheap, fast], "lenet5", 32).endswith("s; to see what sharing saves, take a larger backbone")
    proposing = [row("rcnn", (5, 5, 0, 0)), row("fast_rcnn", (5, 0.5, 0.5, 0))]
    assert why_so_close(proposing, "vgg16", 224) == (
        "note: Fast R-CNN is 1.7x as fast as R-CNN: proposals, which both need, take 5.00 of its 6.00 s; without "
        "them it is 5x as fast"
    )
    assert why_so_close(ROWS, "vgg16", 224) is None and why_so_close([fast], "vgg16", 224) is None
