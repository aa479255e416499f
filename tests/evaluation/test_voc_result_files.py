"""The VOC devkit's files: known answers, names and rows of result files, and what is said of bad ones."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detkit.errors import DataError
from detkit.evaluation.evaluation_files import EvaluationFiles
from detkit.evaluation.protocol import Protocol
from detkit.evaluation.voc_result_files import read_voc_results
from tests.evaluation.voc_devkit import write_devkit, write_results

TRUTH = {
    "000012": [("cat", (11, 21, 30, 40), False), ("dog", (1, 1, 500, 375), True)],
    "000003": [("traffic_light", (5.5, 6, 5.5, 6), False), ("cat", (1, 2, 30, 40), False)],
    "000007": [],
}
ROWS = {
    "cat": "000012 0.5 11.0 21.0 30.0 40.0\n000003 0.9 1 2 30 40\n",
    "dog": "000012 1e-3 2 2 500 375\n",
    "traffic_light": "000007 .25 -3 0 7.5 10\n",
}


def mean_ap(files: EvaluationFiles, protocol: str, **settings: object) -> float:
    return Protocol(protocol, **settings).evaluate(files.evaluation_set, len(files.class_names))["map"]


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """A VOC2007 folder in a VOCdevkit."""
    return write_devkit(tmp_path / "VOCdevkit/VOC2007", TRUTH)


@pytest.mark.slow
def test_the_known_answer_on_voc2007_test(shared: Callable[[str], Path], tmp_path: Path) -> None:
    root = shared("fixtures/voc07_test")
    with gzip.open(root / "ground_truth.json.gz", "rt") as file:
        content = json.load(file)
    truth = {i: [(o["name"], o["bbox"], o["difficult"]) for o in objects] for i, objects in content.items()}
    folder = write_devkit(tmp_path / "VOC2007", truth)
    files = read_voc_results(root / "detections", folder)
    assert files.protocol == "voc07"
    assert [round(mean_ap(files, name), 4) for name in ("voc07", "voc10")] == [0.6775, 0.6968]
    assert (len(files.class_names), files.findings) == (20, [])


@pytest.mark.parametrize(("protocol", "expected"), [("voc07", 26.84), ("voc10", 24.57)])
def test_the_known_answer_on_the_toy_set(
    shared: Callable[[str], Path], tmp_path: Path, protocol: str, expected: float
) -> None:
    root = shared("fixtures/toy_ap30")

    def read(path: Path) -> list[list[float]]:
        return [[float(value) for value in line.split()[1:]] for line in path.read_text().splitlines()]

    def box(x: float, y: float, w: float, h: float) -> tuple[float, ...]:
        return x + 1, y + 1, x + w + 1, y + h + 1  # 1-based

    truth = {f.stem: [("person", box(*row), False) for row in read(f)] for f in (root / "groundtruths").iterdir()}
    lines = [
        " ".join(map(str, (path.stem, row[0], *box(*row[1:]))))
        for path in sorted((root / "detections").iterdir())
        for row in read(path)
    ]
    results = write_results(tmp_path / "results", {"person": "\n".join(lines)})
    files = read_voc_results(results, write_devkit(tmp_path / "VOC2007", truth))
    assert round(100 * mean_ap(files, protocol, iou_thresholds=[0.3]), 2) == expected


def test_boxes_are_1_based_and_inclusive(devkit: Path, tmp_path: Path) -> None:
    files = read_voc_results(write_results(tmp_path / "results", ROWS), devkit)
    s = files.evaluation_set
    assert s.image_ids == ["000003", "000007", "000012"]
    assert files.class_names == ["cat", "dog", "traffic_light"]
    assert s.boxes.tolist() == [[4.5, 5, 1, 1], [0, 1, 30, 39], [10, 20, 20, 20], [0, 0, 500, 375]]
    assert s.area.tolist() == [1, 30 * 39, 400, 500 * 375]
    assert s.labels.tolist() == [3, 1, 1, 2]
    assert s.difficult.tolist() == [False, False, False, True]
    assert s.object_offsets.tolist() == [0, 2, 2, 4]
    assert s.detection_offsets.tolist() == [0, 1, 2, 4]
    assert s.detected_boxes.tolist() == [[0, 1, 30, 39], [-4, -1, 11.5, 11], [10, 20, 20, 20], [1, 1, 499, 374]]
    assert s.scores.tolist() == [0.9, 0.25, 0.5, 0.001]
    assert s.detected_labels.tolist() == [1, 3, 1, 2]
    assert mean_ap(files, "coco") == 0.5  # all cats, no traffic light; the dog is difficult


@pytest.mark.parametrize("prefix", ["comp4_det_test_", "comp3_det_test_", "comp4_1a-2b_det_test_", "my_run_", ""])
def test_any_prefix_will_do(devkit: Path, tmp_path: Path, prefix: str) -> None:
    expected = read_voc_results(write_results(tmp_path / "expected", ROWS), devkit).evaluation_set
    results = write_results(tmp_path / "results", ROWS, prefix)
    for given in (results, f"{results}/*.txt"):
        found = read_voc_results(given, devkit).evaluation_set
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.detected_labels, expected.detected_labels)


def test_one_file_and_packed_files(devkit: Path, tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", ROWS)
    path = results / "comp4_det_test_traffic_light.txt"
    files = read_voc_results(path, devkit)
    assert files.evaluation_set.detected_labels.tolist() == [3]
    told = "it counts as never found; is one missing?"
    assert [finding.message for finding in files.findings] == [f"none for {name}: {told}" for name in ("cat", "dog")]
    (results / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match="two files for traffic_light"):
        read_voc_results(results, devkit)
    path.unlink()
    assert read_voc_results(results, devkit).evaluation_set.detected_labels.tolist() == [1, 3, 1, 2]


def test_of_a_folder_with_several_sets_those_of_the_split_are_taken(devkit: Path, tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", ROWS)
    write_results(results, {"cat": "000099 1 1 1 2 2\n"}, "comp4_det_val_")
    write_results(results, {"cat": "000012 0.7\n"}, "comp2_cls_test_")
    assert len(read_voc_results(results, devkit).evaluation_set.scores) == 4
    write_results(results, ROWS, "comp3_det_test_")
    with pytest.raises(
        DataError, match=r"several competitions or sets: comp3_det_test_, comp4_det_test_; name one: '.*comp3_det_"
    ):
        read_voc_results(results, devkit)
    assert len(read_voc_results(f"{results}/comp3_det_test_*", devkit).evaluation_set.scores) == 4


def test_years_and_what_they_are_evaluated_by(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit"
    write_devkit(root / "VOC2007", {"000012": TRUTH["000012"]}, images=True)
    write_devkit(root / "VOC2012", {i: TRUTH[i] for i in ("000003", "000007")}, "val")
    results = write_results(tmp_path / "results", ROWS, "both_")
    files = read_voc_results(results, root, "2007/test+2012/val")
    assert files.evaluation_set.image_ids == ["000003", "000007", "000012"]
    assert files.image_files == ["", "", f"{root}/VOC2007/JPEGImages/000012.jpg"]
    assert files.protocol == "voc10"
    with pytest.raises(DataError, match=r"several folders \(2007, 2012\)"):
        read_voc_results(results, root)


def test_an_image_that_is_listed_twice_is_counted_once(devkit: Path, tmp_path: Path) -> None:
    listed = devkit / "ImageSets/Main/test.txt"
    listed.write_text(listed.read_text() * 2)
    files = read_voc_results(write_results(tmp_path / "results", ROWS), devkit)
    assert len(files.evaluation_set.boxes) == 4


def test_other_images_are_refused_or_left_out(devkit: Path, tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", ROWS | {"cat": ROWS["cat"] + "12 0.3 1 1 9 9\n"})
    message = (
        r"_cat\.txt: 1 of 3 detections are of 1 images that .*VOC2007 \(test\) does not have: '12'; it has '000003'"
    )
    with pytest.raises(DataError, match=message):
        read_voc_results(results, devkit)
    files = read_voc_results(results, devkit, other_images="drop")
    assert len(files.evaluation_set.scores) == 4
    assert "1 of 3 detections" in str(files.findings[0])


def test_other_classes_are_refused_or_left_out(devkit: Path, tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", ROWS | {"Cat": ROWS["cat"], "bird": ""})
    with pytest.raises(DataError, match=r"2 of 2 detections are of 1 classes .*: 'Cat'; it has 'cat', 'dog'"):
        read_voc_results(results, devkit)
    files = read_voc_results(results, devkit, other_classes="drop")
    assert (files.class_names, len(files.evaluation_set.scores)) == (["cat", "dog", "traffic_light"], 4)


@pytest.mark.parametrize(
    "line",
    [
        "000012 0.5 1 2 3",
        "000012 nan 1 2 3 4",
        "000012 0.5 1 2 inf 4",
        "000012 0.5 1 2 1e300 4",
        "000012 -1e10 1 2 3 4",
        "000012 0.5 1 2 three 4",
        "000012, 0.5, 1, 2, 3, 4",
    ],
)
def test_a_bad_row_is_named_with_its_line(devkit: Path, tmp_path: Path, line: str) -> None:
    results = write_results(tmp_path / "results", ROWS | {"cat": f"{ROWS['cat']}\n{line}\n{ROWS['cat']}"})
    with pytest.raises(DataError) as caught:
        read_voc_results(results, devkit)
    place = f"{results}/comp4_det_test_cat.txt, line 4"
    expected = f"{place}: {line!r} is not 'image_id score x1 y1 x2 y2' with finite numbers of at most 1e9"
    assert str(caught.value) == expected


def test_results_and_annotations_that_are_not_there(devkit: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for given in (empty, tmp_path / "nowhere", f"{tmp_path}/*.txt"):
        with pytest.raises(DataError, match=r"no result files here; .*comp4_det_test_CLASS\.txt"):
            read_voc_results(given, devkit)
    results = write_results(tmp_path / "results", ROWS)
    with pytest.raises(DataError, match=r"val\.txt: image set does not exist \(available: test\)"):
        read_voc_results(results, devkit, "val")
    (devkit / "Annotations/000003.xml").unlink()
    with pytest.raises(DataError, match=r"000003\.xml: annotation file does not exist"):
        read_voc_results(results, devkit)


def test_no_row_at_all_gives_an_ap_of_zero(devkit: Path, tmp_path: Path) -> None:
    files = read_voc_results(write_results(tmp_path / "results", dict.fromkeys(ROWS, "")), devkit)
    assert (len(files.evaluation_set.scores), mean_ap(files, "voc07")) == (0, 0.0)


def test_a_box_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    devkit = write_devkit(tmp_path / "VOC2007", {"1": [("cat", (1, 1, float("nan"), 5), False)]})
    with pytest.raises(DataError, match=r"1\.xml: object 1: .* is not finite"):
        read_voc_results(write_results(tmp_path / "results", {"cat": ""}), devkit)


def test_a_box_far_beyond_any_image_is_refused(tmp_path: Path) -> None:
    devkit = write_devkit(tmp_path / "VOC2007", {"1": [("cat", (1, 1, 1e300, 5), False)]})
    with pytest.raises(DataError, match=r"1\.xml: object 1: .* is not finite, or beyond 1e9"):
        read_voc_results(write_results(tmp_path / "results", {"cat": ""}), devkit)


def test_damaged_packed_results_and_pipes(devkit: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    packed = bytearray(gzip.compress(ROWS["cat"].encode() * 9))
    packed[20] ^= 255
    (results / "comp4_det_test_cat.txt.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"comp4_det_test_cat\.txt\.gz: cannot be read"):
        read_voc_results(results, devkit)
    (results / "comp4_det_test_cat.txt.gz").unlink()
    os.mkfifo(results / "comp4_det_test_cat.txt")
    with pytest.raises(DataError, match=r"comp4_det_test_cat\.txt: is a pipe"):
        read_voc_results(results, devkit)
    line = b"\xff\xfe" + "000012 0.5 1 2 3 4\n".encode("utf-16-le") * 500
    (results / "comp4_det_test_cat.txt").unlink()
    (results / "comp4_det_test_cat.txt").write_bytes(line.replace(b"\n", b" "))
    with pytest.raises(DataError, match=r"comp4_det_test_cat\.txt, line 1: ") as caught:
        read_voc_results(results, devkit)
    assert len(str(caught.value)) < 500


def test_image_ids_with_spaces(devkit: Path, tmp_path: Path) -> None:
    before = read_voc_results(write_results(tmp_path / "before", ROWS), devkit)
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        path = devkit / folder / f"000012{suffix}"
        if path.exists():
            path.rename(path.with_name(f"photo 1 0{suffix}"))
    lists = list((devkit / "ImageSets/Main").glob("*.txt"))
    for path in lists:
        path.write_text(path.read_text().replace("000012", "photo 1 0"))
    rows = {name: text.replace("000012", "photo 1 0") for name, text in ROWS.items()}
    after = read_voc_results(write_results(tmp_path / "after", rows), devkit)
    assert sorted(after.evaluation_set.scores) == sorted(before.evaluation_set.scores)
    assert "photo 1 0" in after.evaluation_set.image_ids


def test_the_sets_of_detkit_split(devkit: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    shutil.copytree(devkit / "Annotations", loose)
    names = sorted(path.stem for path in loose.glob("*.xml"))
    (loose / "split.json").write_text(json.dumps({"train": [f"{names[0]}.jpg"], "test": [f"{names[1]}.jpg"]}))
    results = write_results(tmp_path / "results", ROWS)
    files = read_voc_results(results, loose, "test", other_images="drop", other_classes="drop")
    assert files.evaluation_set.image_ids == [names[1]]
    with pytest.raises(DataError, match="names no annotated image of the set 'val'"):
        read_voc_results(results, loose, "val")
