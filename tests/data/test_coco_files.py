"""COCO's results, read in parts, are what they are as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detkit.data import coco_files
from detkit.data.coco_files import Results, read_results
from detkit.errors import DataError

ROW = {"image_id": 7, "category_id": 2, "bbox": [1, 2.5, -3e-7, 4], "score": 0.1 + 0.2}
numbers = st.one_of(st.floats(-1e9, 1e9), st.integers(-(10**9), 10**9))
rows = st.fixed_dictionaries(
    {
        "image_id": st.one_of(st.integers(-9, 10**6), st.integers(-(2**63), 2**63 - 1)),
        "category_id": st.integers(0, 90),
        "bbox": st.lists(numbers, min_size=4, max_size=4),
        "score": numbers,
    },
    optional={"note": st.sampled_from(["}, {", "[{", "]", '"', "\\", "é"]), "more": st.just([{}, {"a": [{}, {}]}])},
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(rows, max_size=8), part=st.integers(1, 200), indent=st.sampled_from([None, 0, 3]))
def test_read_in_parts_of_any_size(
    tmp_path: Path, content: list[dict[str, Any]], part: int, indent: int | None
) -> None:
    (tmp_path / "d.json").write_text(json.dumps(content, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_files, "PART", part)
        results, findings = read_results(tmp_path / "d.json")
    assert findings == []
    assert [int(value) for value in results.image_ids] == [row["image_id"] for row in content]
    assert [int(value) for value in results.category_ids] == [row["category_id"] for row in content]
    assert results.boxes.tolist() == [row["bbox"] for row in content]
    assert results.scores.tolist() == [row["score"] for row in content]


@pytest.mark.parametrize(
    "text",
    [
        "[ROW, ROW]",
        "[ROW, ROW] ",
        "\n[\tROW ,\r\n ROW\n]\n",
        "[]",
        "[ ]",
        # Nothing of these is a list in JSON of detections with whole ids.
        "[ROW, ROW",
        "[ROW, ROW]]",
        "[[ROW, ROW]",
        "[ROW, ROW,]",
        "[ROW,, ROW]",
        "[, ROW]",
        "[ROW ROW]",
        "[ROW, ROW] x",
        "x [ROW, ROW]",
        "ROW, ROW",
        "[ROW,\x0b ROW]",
        "[ROW, ROW], [ROW, ROW]",
        "[ROW, 5, ROW]",
        "[ROW, [ROW, ROW]]",
        '{"predictions": [ROW, ROW]}',
        "[ROW, {}]",
        '[ROW, {"image_id": 1.0, "category_id": 2.0, "bbox": [1, 2, 3, 4], "score": 1}]',
        '[ROW, {"image_id": "a", "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]',
        '[ROW, {"image_id": true, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]',
        '[ROW, {"image_id": 1.5, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]',
        '[ROW, {"image_id": 9007199254740993, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]',
        '[ROW, {"image_id": 9223372036854775808, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]',
        '[ROW, {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1e999}]',
        '[ROW, {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 2e9], "score": 1}]',
        '[ROW, {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3], "score": 1}]',
        '[ROW, {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, NaN], "score": 1}]',
        "",
        " ",
        "]",
        "[",
        "][",
    ],
)
def test_any_text_gives_what_it_gives_as_a_whole(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.json"
    path.write_text(text.replace("ROW", json.dumps(ROW)))
    in_parts = []
    for part in (1, 2**20):
        monkeypatch.setattr(coco_files, "PART", part)
        in_parts.append(outcome(path))
    monkeypatch.setattr(coco_files, "_plain_results", lambda content: None)
    assert in_parts == [outcome(path)] * 2


IN_PROCESSES = """
import json, os, sys
import numpy as np
from detkit.data import coco_files

forks, fork = [], os.fork
coco_files.SHARE, coco_files.PART = 60, 150
coco_files.available_cores = lambda: 3
os.fork = lambda: forks.append(0) or fork()
read = coco_files._plain_results(sys.stdin.buffer.read())
print(json.dumps([read and [np.asarray(column).tolist() for column in read], len(forks)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux a process is copied")
@pytest.mark.parametrize(("count", "copies"), [(0, 0), (1, 0), (2, 1), (60, 2)])
def test_read_in_several_processes(count: int, copies: int) -> None:
    content = [ROW | {"image_id": number, "score": number / 7} for number in range(count)]
    read, forks = read_in_processes(json.dumps(content))
    assert forks == copies
    image_ids, category_ids, boxes, scores = read
    assert image_ids == [row["image_id"] for row in content] and category_ids == [2] * count
    assert boxes == [ROW["bbox"]] * count and scores == [row["score"] for row in content]


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux a process is copied")
@pytest.mark.parametrize("wrong", [0, 30, 59])
def test_what_is_wrong_in_any_process_is_left_to_the_slow_reader(wrong: int) -> None:
    content = [ROW] * 60
    content[wrong] = ROW | {"image_id": "a"}
    assert read_in_processes(json.dumps(content)) == [None, 2]


def read_in_processes(text: str) -> Any:
    """What `_plain_results` gives in a process of one thread, and how many copies of it were started."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    program = [sys.executable, "-c", IN_PROCESSES]
    result = subprocess.run(program, input=text, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux a process is copied")
def test_the_command_reads_in_several_processes(tmp_path: Path) -> None:
    objects = [{"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}]
    truth = {"images": [{"id": 7, "width": 9, "height": 9}], "categories": [{"id": 2, "name": "a"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth | {"annotations": objects}))
    count = 3 * coco_files.SHARE // len(json.dumps(ROW)) + 1
    (tmp_path / "found.json").write_text(f"[{', '.join([json.dumps(ROW)] * count)}]")
    program = [sys.executable, "-c", COMMAND, "--detections", "found.json", "--annotations", "truth.json"]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    result = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert f"{count:,} detections" in result.stdout and result.stdout.splitlines()[-1] == "0 2"


COMMAND = """
import os, sys
from detkit import system
from detkit.cli.main import main

forks, fork = [], os.fork
system.available_cores = lambda: 3
os.fork = lambda: forks.append(0) or fork()
code = main(["evaluate", *sys.argv[1:], "--report", "false", "--intervals", "0"])
print(code, len(forks))
"""


def outcome(path: Path) -> Any:
    """What is read, or the message."""
    try:
        results, findings = read_results(path)
    except DataError as error:
        return str(error)
    return [np.asarray(column).tolist() for column in Results(*results)], [str(finding) for finding in findings]
