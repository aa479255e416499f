"""COCO's results, read in parts, are what they are as a whole."""

from __future__ import annotations

import json
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
        "image_id": st.integers(-(2**63), 2**63 - 1),
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


def outcome(path: Path) -> Any:
    """What is read, or the message."""
    try:
        results, findings = read_results(path)
    except DataError as error:
        return str(error)
    return [np.asarray(column).tolist() for column in Results(*results)], [str(finding) for finding in findings]
