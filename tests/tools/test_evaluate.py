"""`detkit evaluate`: from files to the table and the report, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from detkit.cli.main import main
from tests.evaluation.test_coco_files import FOREIGN, FOUND, TRUTH, ours, random_files, theirs, write
from tests.evaluation.test_voc_result_files import ROWS
from tests.evaluation.test_voc_result_files import TRUTH as VOC_TRUTH
from tests.evaluation.voc_devkit import write_devkit, write_results


@pytest.fixture
def evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`detkit evaluate` in a fresh folder with COCO's detections.json and annotations.json, and VOC's in voc/."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, TRUTH, FOUND)
    write_devkit(Path("voc/VOC2007"), VOC_TRUTH, images=True)
    write_results(Path("voc/results"), ROWS)

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["evaluate", *args])
        return (code, *capsys.readouterr())

    return run


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # the tests need no installation
COCO = ("--detections", "detections.json", "--annotations", "annotations.json")
VOC = ("--detections", "voc/results", "--annotations", "voc/VOC2007")
TABLE = (*COCO, "--no-report")


def row(out: str, name: str) -> str:
    """The value beside a name in the table."""
    rows = [[cell.strip() for cell in line.split("│")] for line in out.splitlines() if line.startswith("│")]
    (value,) = (cells[2] for cells in rows if cells[1] == name)
    return value


def test_coco_files_to_a_table_and_a_report(evaluate: Callable) -> None:
    code, out, err = evaluate(*COCO)
    assert (code, err) == (0, "")
    assert "COCO (AP at IoU 0.50:0.95, 101 points" in out
    assert (row(out, "AP"), row(out, "AP cat"), row(out, "AP dog")) == ("0.450", "0.450", "n/a")
    assert "3 images, 2 objects (1 crowd), 3 detections, 2 classes" in out
    assert "report: report/index.html\n" in out
    assert {path.name for path in Path("report").iterdir()} == {"index.html", "metrics.json", "per_class.csv"}
    metrics = json.loads(Path("report/metrics.json").read_text())
    assert metrics["map"] == ours(Path("detections.json"), Path("annotations.json"))[0]
    assert metrics["map_per_class"] == {"dog": None, "cat": metrics["map"]}
    assert "report: report/index.html (instead of an earlier one; --output FOLDER keeps both)" in evaluate(*COCO)[1]
    assert (metrics["num_images"], metrics["num_over_limit"]) == (3, 0)
    assert (metrics["detections"], metrics["data"]) == ("detections.json", "annotations.json")
    assert "split" not in metrics


def test_the_written_numbers_are_those_of_pycocotools(evaluate: Callable) -> None:
    paths = write(Path(), *random_files(11))
    assert evaluate(*COCO, "--no-report", "--output", "out")[0] == 0
    metrics = json.loads(Path("out/metrics.json").read_text())
    names = [f"{which}{part}" for which in ("map", "mar") for part in ("_small", "_medium", "_large")]
    places = {"map": 0, "map_50": 1, "map_75": 2, "mar_1": 6, "mar_10": 7, "mar_100": 8}
    places |= dict(zip(names, (3, 4, 5, 9, 10, 11), strict=True))
    expected = theirs(*paths)
    assert {name: metrics[name] for name in places} == {name: expected[place] for name, place in places.items()}


def test_voc_files_by_the_protocol_of_their_year_or_any_other(evaluate: Callable) -> None:
    code, out, err = evaluate(*VOC)
    assert (code, err) == (0, "")
    assert "VOC07 (AP at IoU > 0.50, 11 points" in out
    assert row(out, "AP cat") == "1.000"
    assert "3 images, 4 objects (1 difficult), 4 detections, 3 classes" in out
    assert "evaluate: voc/results on voc/VOC2007 (test), 3 images" in out
    assert "report: voc/report/index.html" in out
    assert json.loads(Path("voc/report/metrics.json").read_text())["split"] == "test"
    code, out, _ = evaluate(*VOC, "--protocol", "coco", "--no-report")
    assert (code, row(out, "AP75")) == (0, "0.500")
    code, out, _ = evaluate(*COCO, "--protocol", "voc10", "--iou_thresholds", "0.3", "0.9", "--no_report")
    assert "VOC10 (AP at IoU > 0.30, 0.90, area under the curve" in out
    code, out, _ = evaluate(*VOC, "--protocol", "voc10", "--hit-rule", ">=", "--no-report")
    assert "VOC10 (AP at IoU >= 0.50" in out


def test_a_devkit_and_a_pattern(evaluate: Callable) -> None:
    args = ("--detections", "voc/results/comp4_*.txt", "--annotations", "voc", "--split", "2007/test")
    assert "VOC07" in evaluate(*args, "--no-report")[1]


def test_detections_beyond_the_limit_are_told(evaluate: Callable) -> None:
    Path("detections.json").write_text(json.dumps(FOUND + FOUND[:1] * 2))
    out = evaluate(*TABLE, "--max-detections", "1", "2")[1]
    assert "at most 2 detections an image and class" in out
    assert row(out, "AR, 1 detection") == "0.900"
    assert "not counted: 1 detections beyond the 2 best of their image and class" in out


def test_what_was_left_out_is_told(evaluate: Callable) -> None:
    Path("detections.json").write_text(json.dumps(FOREIGN))
    out = evaluate(*TABLE, "--other-images", "drop")[1]
    assert "3 detections" in out
    assert "note: detections.json: 3 of 6 detections are of 2 images" in out


def test_no_detections_at_all(evaluate: Callable) -> None:
    Path("detections.json").write_text("[]")
    code, out, _ = evaluate(*COCO)
    assert (code, row(out, "AP")) == (0, "0.000")
    assert "note: there is no detection at all" in out


def test_without_a_report_nothing_is_written(evaluate: Callable) -> None:
    before = sorted(Path().rglob("*"))
    code, out, _ = evaluate(*TABLE)
    assert (code, "report" in out) == (0, False)
    assert sorted(Path().rglob("*")) == before


def test_a_baseline_is_compared_with(evaluate: Callable) -> None:
    assert evaluate(*COCO, "--output", "old")[0] == 0
    Path("detections.json").write_text(json.dumps(FOUND[1:]))
    assert evaluate(*COCO, "--baseline", "old/metrics.json")[0] == 0
    assert "aseline" in Path("report/index.html").read_text()
    for text, message in (("{", "cannot be read as JSON"), ("[]", "not the metrics.json of a report")):
        Path("other.json").write_text(text)
        code, _, err = evaluate(*COCO, "--baseline", "other.json")
        assert (code, err.startswith(f"detkit: --baseline other.json: {message}")) == (2, True)


def test_the_pictures_are_found(evaluate: Callable) -> None:
    from PIL import Image

    Path("photos").mkdir()
    Path("val").mkdir()
    for name in ("photos/a.jpg", "photos/b.jpg", "val/b.jpg"):
        Image.new("RGB", (60, 60), "red").save(name)
    Path("annotations").mkdir()
    Path("annotations.json").rename("annotations/instances_val.json")
    guessed = ("--detections", "detections.json", "--annotations", "annotations/instances_val.json")
    sizes = []
    for args in (guessed, (*guessed, "--images", "photos"), (*VOC, "--output", "report")):
        assert evaluate(*args)[0] == 0
        sizes.append(Path("report/index.html").read_text().count("data:image/jpeg"))
    assert all(sizes)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "the following arguments are required: --detections, --annotations\n`detkit evaluate --help` shows"),
        ((*TABLE, "--protocoll", "coco"), "unrecognized arguments: --protocoll coco"),
        ((*TABLE, "--protocol", "voc08"), "argument --protocol: invalid choice: 'voc08'"),
        ((*TABLE, "--iou-thresholds", "50"), "iou_thresholds must be one or more numbers from 0 to 1"),
        ((*TABLE, "--iou-thresholds", "half"), "argument --iou-thresholds: invalid float value: 'half'"),
        ((*VOC, "--max-detections", "10"), "max_detections is for the protocol coco, not for voc07"),
        ((*TABLE, "--hit-rule", ">="), "hit_rule is for the protocols voc07 and voc10, not for coco"),
        ((*TABLE, "--split", "test"), "--split is for VOC's layout, and annotations.json is no folder"),
        ((*VOC, "--split", "val"), "voc/VOC2007/ImageSets/Main/val.txt: image set does not exist"),
        (("--detections", "detections.json", "--annotations", "voc/VOC2007"), "is COCO's and --annotations"),
        (("--detections", "voc/results", "--annotations", "annotations.json"), "voc/results: is a folder"),
        (("--detections", "none.json", "--annotations", "annotations.json"), "none.json: file does not exist"),
        ((*COCO, "--images", "nowhere"), "--images nowhere: folder does not exist"),
        ((*COCO, "--output", "annotations.json"), "the report cannot be written"),
        ((*COCO, "--score-threshold", "nan"), "score_threshold"),
    ],
)
def test_what_cannot_work_ends_with_one_message(evaluate: Callable, args: tuple[str, ...], message: str) -> None:
    code, _, err = evaluate(*args)
    assert code == 2
    assert err.startswith("detkit: ")
    assert message in err
    assert "Traceback" not in err


def test_help(evaluate: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate("--help")
    assert caught.value.code == 0
    assert "comp4_det_test_CLASS.txt" in capsys.readouterr().out


@pytest.mark.parametrize("args", [COCO, VOC])
def test_the_program_itself_starts_without_torch(evaluate: Callable, args: tuple[str, ...]) -> None:
    heavy = "('torch', 'lightning', 'torchmetrics', 'pycocotools', 'albumentations')"
    code = (
        f"import sys; from detkit.cli.main import main; code = main({['evaluate', *args]!r}); "
        f"print([m for m in {heavy} if m in sys.modules]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_exit_code_of_the_program(evaluate: Callable) -> None:
    command = [sys.executable, "-m", "detkit", "evaluate", *COCO, "--images", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "detkit: --images nowhere: folder does not exist\n"
