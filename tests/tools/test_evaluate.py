"""`detkit.evaluate` and its command: from files to the table and the report, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detkit.cli.main import main
from detkit.errors import DetkitError
from detkit.evaluation.tables import find_baseline
from detkit.tools.evaluate import REPORT_FILES, evaluate
from tests.evaluation.test_coco_files import FOREIGN, FOUND, TRUTH, ours, random_files, theirs, write
from tests.evaluation.test_voc_result_files import ROWS
from tests.evaluation.test_voc_result_files import TRUTH as VOC_TRUTH
from tests.evaluation.voc_devkit import write_devkit, write_results

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # the tests need no installation
COCO = {"detections": "detections.json", "annotations": "annotations.json"}
VOC = {"detections": "voc/results", "annotations": "voc/VOC2007"}
TABLE = {**COCO, "report": False}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh folder with COCO's detections.json and annotations.json, and VOC's in voc/."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, TRUTH, FOUND)
    write_devkit(Path("voc/VOC2007"), VOC_TRUTH, images=True)
    write_results(Path("voc/results"), ROWS)


def words(options: dict[str, Any]) -> list[str]:
    """The options as on the command line."""
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return ["evaluate", *(word for name, value in values.items() for word in (f"--{name}", value))]


def row(text: str, name: str) -> str:
    """The value beside a name in the table."""
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines() if line.startswith("│")]
    (value,) = (cells[2] for cells in rows if cells[1] == name)
    return value


def test_coco_files_to_a_table_and_a_report() -> None:
    result = evaluate(**COCO)
    text = result.text
    assert "COCO (AP at IoU 0.50:0.95, 101 points" in text
    assert (row(text, "AP"), row(text, "AP cat"), row(text, "AP dog")) == ("0.450", "0.450", "n/a")
    assert "3 images, 2 objects (1 crowd), 3 detections, 2 classes" in text
    assert text.endswith("report: report/index.html") and result.path == Path("report/index.html")
    assert {path.name for path in Path("report").iterdir()} == set(REPORT_FILES)
    metrics = json.loads(Path("report/metrics.json").read_text())
    assert metrics["map"] == result.metrics["map"] == ours(Path("detections.json"), Path("annotations.json"))[0]
    assert metrics["map_per_class"] == {"dog": None, "cat": metrics["map"]}
    assert (metrics["num_images"], metrics["num_over_limit"]) == (3, 0)
    assert (metrics["detections"], metrics["data"]) == ("detections.json", "annotations.json")
    assert "split" not in metrics
    again = evaluate(Path("detections.json"), Path("annotations.json"))
    assert again.text.endswith("report: report/index.html (instead of an earlier one; --output FOLDER keeps both)")


def test_the_command_prints_what_the_function_returns(capsys: pytest.CaptureFixture[str]) -> None:
    options = {**COCO, "protocol": "voc10", "iou_thresholds": [0.3, 0.9], "hit_rule": ">=", "report": False}
    text = evaluate(**options).text
    assert main(words(options)) == 0
    out, err = capsys.readouterr()
    timeless = [[line for line in each.splitlines() if not line.startswith("read in")] for each in (out, text)]
    assert timeless[0] == timeless[1] and err == ""
    assert "VOC10 (AP at IoU >= 0.30, 0.90, area under the curve" in out
    assert main([word.replace("_", "-") if word.startswith("--") else word for word in words(options)]) == 0


def test_the_written_numbers_are_those_of_pycocotools() -> None:
    paths = write(Path(), *random_files(11))
    assert evaluate(**TABLE, output="out").path == Path("out/metrics.json")
    metrics = json.loads(Path("out/metrics.json").read_text())
    names = [f"{which}{part}" for which in ("map", "mar") for part in ("_small", "_medium", "_large")]
    positions = {"map": 0, "map_50": 1, "map_75": 2, "mar_1": 6, "mar_10": 7, "mar_100": 8}
    positions |= dict(zip(names, (3, 4, 5, 9, 10, 11), strict=True))
    expected = theirs(*paths)
    assert {name: metrics[name] for name in positions} == {name: expected[i] for name, i in positions.items()}


def test_voc_files_by_the_protocol_of_their_year_or_any_other() -> None:
    text = evaluate(**VOC).text
    assert "VOC07 (AP at IoU > 0.50, 11 points" in text
    assert row(text, "AP cat") == "1.000"
    assert "3 images, 4 objects (1 difficult), 4 detections, 3 classes" in text
    assert "evaluate: voc/results on voc/VOC2007 (test), 3 images" in text
    assert "report: voc/report/index.html" in text
    assert json.loads(Path("voc/report/metrics.json").read_text())["split"] == "test"
    assert row(evaluate(**VOC, protocol="coco", report=False).text, "AP75") == "0.500"
    pattern = evaluate("voc/results/comp4_*.txt", "voc", split="2007/test", report=False)
    assert "VOC07" in pattern.text


def test_detections_beyond_the_limit_are_counted() -> None:
    Path("detections.json").write_text(json.dumps(FOUND + FOUND[:1] * 2))
    text = evaluate(**TABLE, max_detections=[1, 2]).text
    assert "at most 2 detections an image and class" in text
    assert row(text, "AR, 1 detection") == "0.900"
    assert "not counted: 1 detections beyond the 2 best of their image and class" in text


def test_what_was_left_out_is_noted() -> None:
    Path("detections.json").write_text(json.dumps(FOREIGN))
    before = sorted(Path().rglob("*"))
    result = evaluate(**TABLE, other_images="drop")
    assert "3 detections" in result.text
    assert "note: detections.json: 3 of 6 detections are of 2 images" in result.text
    assert result.path is None and "report" not in result.text
    assert sorted(Path().rglob("*")) == before  # without a report nothing is written
    Path("detections.json").write_text("[]")
    text = evaluate(**COCO).text
    assert row(text, "AP") == "0.000"
    assert "note: there are no detections" in text


def test_a_baseline_is_compared_with() -> None:
    evaluate(**COCO, output="old")
    Path("detections.json").write_text(json.dumps(FOUND[1:]))
    assert "baseline: AP 0.450 -> " in evaluate(**COCO, baseline="old/metrics.json").text
    assert "aseline" in Path("report/index.html").read_text()
    for text, message in (
        ("{", "the JSON is cut short"),
        ("[" * 100_000, ""),
        ('{"map": 1e999}', "number out of range"),
        ("[]", "expected 'object'"),
        ("{}", "not the metrics.json of a report"),
    ):
        Path("other.json").write_text(text)
        with pytest.raises(DetkitError, match=f"^baseline other.json: {message}"):
            evaluate(**COCO, baseline="other.json")


@pytest.mark.parametrize("name", ["detections", "annotations"])
def test_no_file_is_replaced_that_is_read(name: str) -> None:
    Path(f"{name}.json").rename("metrics.json")
    before = Path("metrics.json").read_bytes()
    with pytest.raises(DetkitError, match=r"^metrics\.json: is read, and would be replaced"):
        evaluate(**COCO | {name: "metrics.json"}, output=".")
    assert Path("metrics.json").read_bytes() == before
    evaluate(**COCO | {name: "metrics.json"}, output="old")
    with pytest.raises(DetkitError, match=r"^old/metrics\.json: is read"):
        evaluate(**COCO | {name: "metrics.json"}, output="old", baseline="old")


@pytest.mark.parametrize("odd", [10**400, [], {}, None, "much", True])
def test_a_baseline_with_odd_values(odd: Any) -> None:
    """A baseline may come from elsewhere: what cannot be compared is left out."""
    evaluate(**COCO, output="old")
    metrics = json.loads(Path("old/metrics.json").read_text())
    analysis = {"by_class": [{"objects": odd}], "error_ap": {"localization": odd}}
    odd_ones = dict.fromkeys(metrics, odd) | {"analysis": analysis, "map_50": odd}
    Path("other.json").write_text(json.dumps(odd_ones))
    assert "baseline: " in evaluate(**COCO, baseline="other.json").text
    Path("other.json").write_text(json.dumps(metrics | {"map_per_class": dict.fromkeys(metrics["map_per_class"], odd)}))
    assert "baseline: AP 0." in evaluate(**COCO, baseline="other.json").text


def test_the_pictures_are_found() -> None:
    Path("photos").mkdir()
    Path("val").mkdir()
    for name in ("photos/a.jpg", "photos/b.jpg", "val/b.jpg"):
        Image.new("RGB", (60, 60), "red").save(name)
    Path("annotations").mkdir()
    Path("annotations.json").rename("annotations/instances_val.json")
    guessed = {"detections": "detections.json", "annotations": "annotations/instances_val.json"}
    for options in (guessed, {**guessed, "images": "photos"}, {**VOC, "output": "report"}):
        evaluate(**options)
        assert "data:image/jpeg" in Path("report/index.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**TABLE, "iou_thresholds": 50}, "iou_thresholds must be one or more numbers from 0 to 1"),
        ({**VOC, "max_detections": 10}, "max_detections is for the protocol coco, not for voc07"),
        ({**TABLE, "hit_rule": ">="}, "hit_rule is for the protocols voc07 and voc10, not for coco"),
        ({**TABLE, "split": "test"}, "split test is for VOC's layout, and annotations.json is no folder"),
        ({**VOC, "split": "val"}, "voc/VOC2007/ImageSets/Main/val.txt: image set does not exist"),
        ({**COCO, "annotations": "voc/VOC2007"}, "are COCO's and annotations"),
        ({**COCO, "detections": "voc/results"}, "voc/results: is a folder"),
        ({**COCO, "detections": "none.json"}, "none.json: file does not exist"),
        ({**COCO, "images": "nowhere"}, "images nowhere: folder does not exist"),
        (
            {**COCO, "output": "annotations.json"},
            "annotations.json: cannot be written (a file is where a folder is needed; ",
        ),
        ({**COCO, "score_threshold": float("nan")}, "score_threshold"),
    ],
)
def test_what_cannot_work_is_one_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DetkitError) as caught:
        evaluate(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "detections"),
        ({**TABLE, "protocoll": "coco"}, "protocoll"),
        ({**TABLE, "protocol": "voc08"}, "voc08"),
        ({**TABLE, "iou_thresholds": "half"}, "iou_thresholds"),
        ({**COCO, "images": "nowhere"}, "detkit: images nowhere: folder does not exist\n"),
    ],
)
def test_the_command_ends_with_one_message(
    options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(options)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("detkit: ") and message in err and out == "" and "Traceback" not in err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--help"])
    assert caught.value.code == 0
    assert "comp4_det_test_CLASS.txt" in capsys.readouterr().out


@pytest.mark.parametrize("options", [COCO, VOC])
def test_the_program_itself_starts_without_torch(options: dict[str, Any]) -> None:
    heavy = "('torch', 'lightning', 'torchmetrics', 'pycocotools', 'albumentations')"
    code = (
        f"import sys; from detkit.cli.main import main; code = main({words(options)!r}); "
        f"print([m for m in {heavy} if m in sys.modules]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_intervals_are_printed_and_in_the_report() -> None:
    text = evaluate(**COCO, intervals=50).text
    assert "95 % interval" in text and "intervals in" in text
    metrics = json.loads(Path("report/metrics.json").read_text())
    low, high = metrics["intervals"]["map"]
    assert low <= metrics["map"] <= high and metrics["intervals"]["resamples"] == 50
    assert f"[{low:.3f}, {high:.3f}]" in text
    page = Path("report/index.html").read_text()
    assert f"[{low:.3f}, {high:.3f}]" in page
    few = metrics["intervals"]["note"]
    assert few.startswith("3 images with ") and few in page and f"95 % intervals: {few}" in " ".join(text.split())
    assert f",{low}," in Path("report/per_class.csv").read_text()  # the only class with objects


def test_without_intervals_there_are_none() -> None:
    text = evaluate(**COCO, intervals=0).text
    assert "interval" not in text and not Path("report/resamples.npz").exists()
    assert "95 %" not in Path("report/index.html").read_text()
    with pytest.raises(DetkitError, match="intervals -1"):
        evaluate(**COCO, intervals=-1)


def test_the_interval_of_a_difference_needs_the_baselines_resamples() -> None:
    evaluate(**COCO, intervals=50, output="first")
    text = evaluate(**COCO, intervals=50, baseline="first", output="second").text
    assert "(+0.0 [+0.0, +0.0])" in text
    assert "one that holds 0 may be chance" in Path("second/index.html").read_text()
    text = evaluate(**COCO, intervals=40, baseline="first", output="second").text
    assert "no interval of the difference: the baseline has 50 resamples, this evaluation 40" in text
    Path("first/resamples.npz").unlink()
    text = evaluate(**COCO, intervals=50, baseline="first", output="second").text
    assert "no interval of the difference: the baseline has no resamples.npz" in text
    assert "There is no interval of the differences" in Path("second/index.html").read_text()
    Path("first/resamples.npz").write_bytes(b"something else")
    with pytest.raises(DetkitError, match=r"resamples\.npz: not the resamples of a report"):
        evaluate(**COCO, baseline="first", output="second")


def test_the_baseline_of_a_run_is_its_newest_report(tmp_path: Path) -> None:
    for version in ("version_2/report", "version_10/report", "version_11"):
        (tmp_path / version).mkdir(parents=True)
    for version in (2, 10):
        (tmp_path / f"version_{version}/report/metrics.json").write_text("{}")
    assert find_baseline(tmp_path) == tmp_path / "version_10/report/metrics.json"
    assert find_baseline(tmp_path / "version_2") == tmp_path / "version_2/report/metrics.json"
    with pytest.raises(DetkitError, match="version_11: there is no such file"):
        find_baseline(tmp_path / "version_11")
