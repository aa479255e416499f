"""Options that are read without jsonargparse have the values that it gives them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from detkit.cli.arguments import read_arguments
from detkit.cli.signatures import options_of
from detkit.cli.tools import TOOLS, _parse, plain_values
from detkit.tools.evaluate import evaluate

FILES = ["--detections", "a b/d-1.json", "--annotations=/x/y_2.json"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--report", "false", "--intervals", "0", "--score_threshold", "0.25"],
        ["--report=true", "--intervals", "12", "--score-threshold", "1"],
        ["--protocol", "voc07", "--split", "2007/test", "--hit_rule", ">=", "--difficult", "count"],
        ["--split", "2007", "--output", "007", "--images", "1.5", "--baseline", "true"],
        ["--split", "1e3", "--output", "0x1f", "--images", "off", "--baseline", "1_000"],
        ["--split", "2007-01-01", "--output", "nullable", "--images", "nan", "--baseline", "None"],
        ["--intervals", "1", "--intervals", "2"],
    ],
)
def test_plain_options_are_what_jsonargparse_makes_of_them(options: list[str]) -> None:
    arguments = read_arguments([*FILES, *options])
    tool = TOOLS["evaluate"]
    parsed = _parse("evaluate", tool, evaluate, arguments, options_of(tool.module, tool.function))
    given = plain_values(evaluate, arguments)
    assert given is not None
    assert {name: (value, type(value)) for name, value in given.items()} == {
        name: (parsed[name], type(parsed[name])) for name in given
    }
    defaults = {name: each.default for name, each in inspect.signature(evaluate).parameters.items()}
    assert {**defaults, **given} == parsed


@pytest.mark.parametrize(
    "options",
    [
        ["--help"],
        ["--iou_thresholds", "[0.5, 0.75]"],
        ["--iou_thresholds", "0.5"],
        ["--intervals", "many"],
        ["--intervals", "-1"],
        ["--report", "maybe"],
        ["--report"],
        ["--output", "null"],
        ["--output", "Null"],
        ["--output", "{a: 1}"],
        ["--output", ""],
        ["--protocol", "coco17"],
        ["--score_threshold", "0.5.1"],
        ["stray"],
        ["--", "x"],
    ],
)
def test_all_others_are_left_to_jsonargparse(options: list[str]) -> None:
    assert plain_values(evaluate, read_arguments([*FILES, *options])) is None


def test_without_a_needed_option_it_is_left_to_jsonargparse_too() -> None:
    assert plain_values(evaluate, read_arguments(FILES[:2])) is None


def test_evaluate_without_a_report_imports_little(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": []}')
    (tmp_path / "d.json").write_text('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    heavy = ["torch", "numba", "jsonargparse", "yaml", "PIL", "scipy", "matplotlib", "jinja2", "pycocotools", "cv2"]
    code = "import sys; from detkit.cli.main import main; code = main(sys.argv[1:]); "
    code += f"print(code, [name for name in {heavy} if name in sys.modules])"
    command = ["evaluate", "--detections", "d.json", "--annotations", "a.json", "--report", "false", "--intervals", "0"]
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
