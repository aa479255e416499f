"""COCO's files: COCOeval's numbers from the same files, and what is said of bad ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detkit.errors import DataError
from detkit.evaluation.coco_files import _look_up, read_coco_results
from detkit.evaluation.protocol import Protocol

TWELVE = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
TWELVE += ("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")


def write(folder: Path, truth: Any, found: Any) -> tuple[Path, Path]:
    """Detections and annotations as files."""
    paths = folder / "detections.json", folder / "annotations.json"
    for path, content in zip(paths, (found, truth), strict=True):
        path.write_text(json.dumps(content))
    return paths


def ours(detections: Path, annotations: Path, difficult: str = "ignore", **choices: str) -> np.ndarray:
    files = read_coco_results(detections, annotations, **choices)
    numbers = Protocol("coco", difficult=difficult).evaluate(files.evaluation_set, len(files.class_names))
    return np.array([numbers[name] for name in TWELVE])


def theirs(detections: Path, annotations: Path) -> np.ndarray:
    """pycocotools' numbers; NaN for its -1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        run = COCOeval(truth, truth.loadRes(str(detections)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return np.where(run.stats == -1, np.nan, run.stats)


def random_files(seed: int, strings: bool = False) -> tuple[dict, list]:
    """A small set with all that COCO's files may hold: crowds, ties, odd ids in any order, empty images, thin boxes."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(1000)[: rng.integers(1, 8)].tolist()
    ids = [f"img {i}" for i in ids] if strings else ids
    categories = (rng.permutation(90)[: rng.integers(1, 5)] + 1).tolist()

    def box() -> list:
        corner, sides = rng.integers(0, 200, 2), rng.integers(0, 150, 2) * rng.choice([0.25, 1, 1.5])
        return [*corner.tolist(), *sides.tolist()]

    annotations = []
    for number in range(rng.integers(1, 40)):
        bbox = box()
        annotations.append(
            {
                "id": number + 1,
                "image_id": ids[rng.integers(len(ids))],
                "category_id": categories[rng.integers(len(categories))],
                "bbox": bbox,
                "area": float(rng.choice([bbox[2] * bbox[3], 500.0, 1024.0, 9216.0])),
                "iscrowd": int(rng.random() < 0.2),
                "segmentation": [[1, 2, 3, 4, 5.5, 6]],
            }
        )
    found = []
    for _ in range(rng.integers(1, 120)):
        near = annotations[rng.integers(len(annotations))]
        moved = [value + float(rng.choice([0, 0, 3.5, 11])) for value in near["bbox"]]
        found.append(
            {
                "image_id": near["image_id"] if rng.random() < 0.8 else ids[rng.integers(len(ids))],
                "category_id": near["category_id"] if rng.random() < 0.8 else categories[rng.integers(len(categories))],
                "bbox": moved if rng.random() < 0.7 else box(),
                "score": round(float(rng.random()), int(rng.integers(1, 4))),
            }
        )
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in ids]
    truth = {"images": images, "annotations": annotations, "info": {}}
    truth["categories"] = [{"id": c, "name": f"class {c}", "supercategory": "thing"} for c in categories]
    return truth, found


TRUTH = {
    "info": {},  # pycocotools 2.0.10 cannot load detections without it
    "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}, {"id": 5}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 40, "bbox": [10, 10, 20, 30], "area": 321.5, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [-5, 0, 0.5, 700], "iscrowd": 1},
    ],
    "categories": [{"id": 40, "name": "cat"}, {"id": 2, "name": "dog"}],
}
FOUND = [
    {"image_id": 7, "category_id": 40, "bbox": [11, 10, 20, 30], "score": 0.25},
    {"image_id": 3, "category_id": 40, "bbox": [1, 2, 3, 4.5], "score": 1},
    {"image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 5], "score": -3.5},
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), strings=st.booleans())
def test_the_twelve_numbers_are_those_of_pycocotools_from_the_same_files(
    tmp_path: Path, seed: int, strings: bool
) -> None:
    paths = write(tmp_path, *random_files(seed, strings))
    np.testing.assert_array_equal(ours(*paths), theirs(*paths))


def test_more_than_a_hundred_detections_and_equal_scores(tmp_path: Path) -> None:
    truth, found = random_files(3)
    found = [row | {"score": round(row["score"], 1)} for row in found] * 5
    paths = write(tmp_path, truth, found)
    np.testing.assert_array_equal(ours(*paths), theirs(*paths))
    assert len(found) > 300


def test_what_is_in_the_files_stays_as_it_is_written(tmp_path: Path) -> None:
    files = read_coco_results(*write(tmp_path, TRUTH, FOUND))
    s = files.evaluation_set
    assert s.image_ids == [3, 5, 7]
    assert files.image_files == ["a.jpg", "", "b.jpg"]
    assert (files.class_names, files.category_ids) == (["dog", "cat"], [2, 40])
    assert s.boxes.tolist() == [[-5, 0, 0.5, 700], [10, 10, 20, 30]]
    assert s.area.tolist() == [350.0, 321.5]  # where it is missing, the box's
    assert s.crowd.tolist() == [True, False]
    assert s.labels.tolist() == [1, 2]
    assert s.object_offsets.tolist() == [0, 1, 1, 2]
    assert s.detection_offsets.tolist() == [0, 1, 1, 3]
    assert s.scores.tolist() == [1.0, 0.25, -3.5]
    assert s.detected_labels.tolist() == [2, 2, 1]
    assert s.detected_boxes.tolist() == [[1, 2, 3, 4.5], [11, 10, 20, 30], [0, 0, 5, 5]]
    assert (files.protocol, files.findings) == ("coco", [])


def test_no_detection_at_all_gives_an_ap_of_zero(tmp_path: Path) -> None:
    assert ours(*write(tmp_path, TRUTH, []))[0] == 0


def test_files_packed_by_gzip_and_a_byte_order_mark(tmp_path: Path) -> None:
    detections, annotations = write(tmp_path, TRUTH, FOUND)
    packed = tmp_path / "detections.json.gz"
    packed.write_bytes(gzip.compress(detections.read_bytes()))
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes())
    np.testing.assert_array_equal(ours(packed, annotations), ours(detections, annotations))


def test_ids_kept_as_floats_are_the_same_ids(tmp_path: Path) -> None:
    floats = [row | {"image_id": float(row["image_id"]), "category_id": float(row["category_id"])} for row in FOUND]
    expected = ours(*write(tmp_path, TRUTH, FOUND))
    paths = write(tmp_path, TRUTH, floats)
    np.testing.assert_array_equal(ours(*paths), expected)
    np.testing.assert_array_equal(theirs(*paths), expected)


def test_an_annotation_with_id_0_is_found_as_any_other(tmp_path: Path) -> None:
    """COCOeval keeps the id of what a detection has matched, 0 for nothing, and so takes this hit for a miss."""
    truth, found = perfect_set(3)
    paths = write(tmp_path, truth, found)
    assert ours(*paths)[0] == theirs(*paths)[0] == 1
    truth["annotations"][0]["id"] = 0
    paths = write(tmp_path, truth, found)
    assert ours(*paths)[0] == 1
    assert theirs(*paths)[0] == pytest.approx(0.442, abs=5e-4)


def perfect_set(objects: int) -> tuple[dict, list]:
    """Objects with ids from 1 on in one image, and a detection of each, the first one of the highest score."""
    boxes = [[20 * number, 0, 10, 10] for number in range(objects)]
    rows = [{"image_id": 7, "category_id": 2, "bbox": box} for box in boxes]
    annotations = [row | {"id": number, "area": 100, "iscrowd": 0} for number, row in enumerate(rows, 1)]
    found = [row | {"score": 1 - number / 10} for number, row in enumerate(rows)]
    return {"info": {}, "images": [{"id": 7}], "annotations": annotations, "categories": [{"id": 2}]}, found


def test_ignore_is_overwritten_by_iscrowd_as_in_cocoeval(tmp_path: Path) -> None:
    marked = TRUTH | {"annotations": [row | {"ignore": 1} for row in TRUTH["annotations"]]}
    paths = write(tmp_path, marked, FOUND)
    assert "1 objects are marked ignore" in str(read_coco_results(*paths).findings[0])  # the other one is a crowd
    np.testing.assert_array_equal(ours(*paths), theirs(*paths))


def test_objects_marked_difficult(tmp_path: Path) -> None:
    marked = TRUTH | {"annotations": [row | {"difficult": 1} for row in TRUTH["annotations"]]}
    paths = write(tmp_path, marked, FOUND)
    files = read_coco_results(*paths)
    assert files.evaluation_set.difficult.tolist() == [True, True]
    (finding,) = map(str, files.findings)
    assert "1 objects are marked difficult" in finding  # the other one is a crowd anyway
    np.testing.assert_array_equal(ours(*paths, difficult="count"), theirs(*paths))
    assert np.isnan(ours(*paths)[0])


def test_names_that_categories_share_gain_their_ids(tmp_path: Path) -> None:
    categories = [{"id": 40, "name": "cat"}, {"id": 2, "name": "cat"}, {"id": 9}]
    files = read_coco_results(*write(tmp_path, TRUTH | {"categories": categories}, FOUND))
    assert files.class_names == ["cat (2)", "category 9", "cat (40)"]


FOREIGN = [*FOUND, FOUND[0] | {"image_id": 8}, FOUND[0] | {"image_id": 8}, FOUND[0] | {"image_id": 9}]


def test_detections_of_other_images_are_refused_or_left_out(tmp_path: Path) -> None:
    paths = write(tmp_path, TRUTH, FOREIGN)
    with pytest.raises(
        DataError, match=r"3 of 6 detections are of 2 images .*: 8, 9; it has 3, 5, 7.*--other_images drop"
    ):
        read_coco_results(*paths)
    files = read_coco_results(*paths, other_images="drop")
    assert len(files.evaluation_set.scores) == 3
    assert "3 of 6 detections are of 2 images" in str(files.findings[0])
    expected = ours(*write(tmp_path, TRUTH, FOUND))
    np.testing.assert_array_equal(ours(*write(tmp_path, TRUTH, FOREIGN), other_images="drop"), expected)


def test_other_categories_are_refused_or_left_out_as_pycocotools_does(tmp_path: Path) -> None:
    found = [*FOUND[:1], FOUND[0] | {"category_id": 1}, *FOUND[1:]]
    paths = write(tmp_path, TRUTH, found)
    with pytest.raises(
        DataError, match=r"1 of 4 detections are of 1 classes .*: 1; it has 2, 40.*--other_classes drop"
    ):
        read_coco_results(*paths)
    np.testing.assert_array_equal(ours(*paths, other_classes="drop"), theirs(*paths))


def test_objects_of_other_images_and_categories(tmp_path: Path) -> None:
    rows = TRUTH["annotations"]
    truth = TRUTH | {"annotations": [*rows, rows[0] | {"image_id": 8}, rows[0] | {"category_id": 1}]}
    paths = write(tmp_path, truth, FOUND)
    with pytest.raises(DataError, match="1 of 4 annotations are of 1 images"):
        read_coco_results(*paths)
    with pytest.raises(DataError, match="1 of 4 annotations are of 1 classes"):
        read_coco_results(*paths, other_images="drop")
    files = read_coco_results(*paths, other_images="drop", other_classes="drop")
    assert len(files.evaluation_set.boxes) == 2


def test_numbers_in_one_file_and_strings_in_the_other(tmp_path: Path) -> None:
    found = [row | {"image_id": str(row["image_id"])} for row in FOUND]
    with pytest.raises(DataError, match="ids are strings here and numbers there: write them alike"):
        read_coco_results(*write(tmp_path, TRUTH, found))


DETECTION = '{"image_id": 7, "category_id": 40, "bbox": [11, 10, 20, 30], "score": 0.25}'


def changed(old: str, new: str, good: int = 0) -> str:
    """Detections, after `good` good ones, with a bad one."""
    return f"[{', '.join([*[DETECTION] * good, DETECTION.replace(old, new)])}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("hello", r"not JSON at byte 0: 'hello'"),
        (f"[{DETECTION}, {DETECTION}", "cut short"),
        (f"[{DETECTION}] x", "not JSON at byte"),
        (changed("0.25", "NaN", good=1), r"entry 1 \(counted from 0\): score is NaN"),
        (changed("10", "-Infinity"), r"entry 0 \(counted from 0\): bbox is -?Infinity"),
        (changed("0.25", "1e999"), r"detection 0 \(counted from 0\): score: number out of range"),
        (changed("0.25", "1e300"), r"detection 0 \(counted from 0\): score: expected 'float' <= 1000000000.0"),
        (changed("11", "-1e10"), r"bbox\[0\]: expected 'float' >= -1000000000.0"),
        (changed('"image_id": 7', '"image_id": [7]'), r"image_id: expected 'int \| float \| str', got 'array'"),
        (changed('"image_id": 7', '"image_id": 1e300'), "image_id: expected 'float' <= 9007199254740992.0"),
        (changed("40", "{}"), r"category_id: expected 'int \| float', got 'object'"),
        (changed("40", "1" + "0" * 400), "category_id: expected 'int' <= 9223372036854775807"),
        (changed("40", "true"), r"category_id: expected 'int \| float', got 'bool'"),
        (changed("0.25", "null"), "score: expected 'float', got 'null'"),
        (changed(", 30", "", good=1), r"detection 1 .*bbox: expected 'array' of length 4"),
        (changed(", 30", ", 30, 1"), r"bbox: expected 'array' of length 4"),
        (changed("30", '"30"'), r"bbox\[3\]: expected 'float', got 'str'"),
        (changed("score", "confidence"), "object missing required field 'score'"),
        ("[7]", "detection 0 .*expected 'object', got 'int'"),
        (f'{{"annotations": [{DETECTION}]}}', "has no list 'predictions'; wanted is a list of"),
        ("[" * 5000 + "]" * 5000, "detections.json: "),
        ('[{"image_id": "\udcff"}]', "detections.json: "),
    ],
)
def test_bad_detections_are_named_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    detections, annotations = write(tmp_path, TRUTH, FOUND)
    detections.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message) as caught:
        read_coco_results(detections, annotations)
    assert str(caught.value).startswith(f"{detections}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "the list 'images': expected 'array', got 'null'"),
        ({"images": []}, "'images' is empty"),
        ({"categories": []}, "'categories' is empty"),
        ({"images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3}, {"id": 7}]}, "image id 7 is given twice"),
        ({"images": [{"id": 7}, {"id": "x3"}]}, "numbers and strings"),
        ({"images": [{"file_name": "a.jpg"}]}, r"image 0 \(counted from 0\): object missing required field 'id'"),
        ({"categories": [{"id": 2, "name": "cat"}, {"id": 2, "name": "dog"}]}, "category id 2 is given twice"),
        ({"categories": [{"id": 2, "name": "a\r=1+1"}]}, r"class name 'a.r=1.1' has a control character"),
        ({"images": [{"id": "a\0"}]}, "image id 'a.x00' holds a NUL"),
        (
            {"annotations": [{"id": 1, "image_id": 7, "category_id": 2}]},
            "annotation 0 .* has no bbox, and no segmentation to take it from",
        ),
        ({"annotations": [TRUTH["annotations"][0] | {"area": "big"}]}, "annotation 0 .*: area: expected 'float"),
    ],
)
def test_bad_annotations_are_named_with_their_place(tmp_path: Path, change: dict, message: str) -> None:
    detections, annotations = write(tmp_path, TRUTH | change, FOUND)
    with pytest.raises(DataError, match=message) as caught:
        read_coco_results(detections, annotations)
    assert str(caught.value).startswith(f"{annotations}: ")


def test_annotations_without_annotations(tmp_path: Path) -> None:
    detections, annotations = write(tmp_path, {"images": TRUTH["images"], "categories": TRUTH["categories"]}, FOUND)
    with pytest.raises(DataError, match="has no list of annotations: there is nothing to compare with"):
        read_coco_results(detections, annotations)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    detections, annotations = write(tmp_path, TRUTH, FOUND)
    with pytest.raises(DataError, match=r"nowhere\.json: file does not exist"):
        read_coco_results(tmp_path / "nowhere.json", annotations)
    with pytest.raises(DataError, match="is a folder"):
        read_coco_results(detections, tmp_path)
    annotations.write_bytes(gzip.compress(b"{}")[:-4])
    with pytest.raises(DataError, match="cannot be read"):
        read_coco_results(detections, annotations)


@pytest.mark.parametrize("compressed", [True, False])
def test_results_with_masks_only_are_pycocotools_numbers(tmp_path: Path, compressed: bool) -> None:
    from pycocotools import mask

    rng = np.random.default_rng(0)
    truth, _ = random_files(3)
    found = []
    for image in truth["images"]:
        for category in truth["categories"]:
            pixels = np.zeros((200, 200), np.uint8, order="F")
            x, y, width, height = rng.integers(0, 90, 4)
            pixels[y : y + height + 1, x : x + width + 1] = rng.integers(0, 2, (height + 1, width + 1))
            runs = mask.encode(pixels)
            runs["counts"] = runs["counts"].decode()
            if not compressed:
                edges = np.flatnonzero(np.diff(pixels.ravel(order="F"), prepend=0, append=0))
                runs["counts"] = np.diff(edges, prepend=0, append=pixels.size).tolist()
            row = {"image_id": image["id"], "category_id": category["id"], "segmentation": runs}
            found.append(row | {"score": float(rng.random())})
    paths = write(tmp_path, truth, found)
    boxes = [list(row["bbox"]) for row in _boxes_of_pycocotools(*paths)] if compressed else None
    files = read_coco_results(*paths)
    assert len(files.evaluation_set.scores) == len(found)
    assert f"{len(found)} detections have no bbox" in str(files.findings[-1])
    if boxes is not None:
        np.testing.assert_allclose(ours(*paths), theirs(*paths), rtol=0, atol=1e-12)
        assert sorted(files.evaluation_set.detected_boxes.tolist()) == sorted(boxes)


def _boxes_of_pycocotools(detections: Path, annotations: Path) -> list[dict]:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(annotations)).loadRes(str(detections)).dataset["annotations"]


@pytest.mark.parametrize("name", ["predictions", "detections", "results"])
def test_results_in_an_object(tmp_path: Path, name: str) -> None:
    truth, found = random_files(5)
    plain = ours(*write(tmp_path, truth, found))
    paths = write(tmp_path, truth, {"info": {"by": "x"}, name: found})
    np.testing.assert_array_equal(ours(*paths), plain)
    assert f"the detections are read from its list '{name}'" in str(read_coco_results(*paths).findings[-1])


@pytest.mark.parametrize("names", ["in/{}.jpg", "{}.jpg", "in\\{}.jpg"])
def test_detections_that_name_their_images_by_file(tmp_path: Path, names: str) -> None:
    truth, found = random_files(5)
    plain = ours(*write(tmp_path, truth, found))
    for image in truth["images"]:
        image["file_name"] = names.format(image["id"])
    by_file = [row | {"image_id": f"in/{row['image_id']}.jpg"} for row in found]
    paths = write(tmp_path, truth, by_file)
    np.testing.assert_array_equal(ours(*paths), plain)
    assert "name their images by file" in str(read_coco_results(*paths).findings)
    truth["images"].append({"id": 5000, "file_name": "other/" + names.format(found[0]["image_id"]).replace("\\", "/")})
    paths = write(tmp_path, truth, by_file)
    if names == "{}.jpg":  # two files of this name: which one is meant is not guessed
        with pytest.raises(DataError, match="are of 1 images that"):
            read_coco_results(*paths)
    else:
        np.testing.assert_array_equal(ours(*paths), plain)


near_and_far = st.one_of(
    st.integers(-3, 30), st.integers(2**62 - 3, 2**62 + 3), st.sampled_from([-(2**63), -(2**62) - 5, 2**63 - 1])
)


@given(st.lists(near_and_far, unique=True), st.lists(near_and_far, max_size=60))
def test_ids_are_looked_up_as_in_a_dictionary(known: list[int], ids: list[int]) -> None:
    table = {number: position for position, number in enumerate(known)}
    assert _look_up(table, np.array(ids, np.int64)).tolist() == [table.get(number, -1) for number in ids]
