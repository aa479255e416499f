from __future__ import annotations

import builtins
import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import detkit
from detkit.engine.prediction_formats import Classes, Predicted, write_coco
from detkit.errors import ConfigError
from detkit.features.backbones import MapSettings
from detkit.heads.detection import DetectionSettings
from detkit.types import Detections

NAMES, IDS = ["person", "dog"], [1, 18]
FIELDS = {
    "boxes": torch.tensor([[1.1, 2.0, 5.4, 9.0], [0.0, 0.0, 3.0, 3.0], [2.0, 2.0, 4.0, 8.0]]),
    "scores": torch.tensor([0.98, 0.6, 0.1]),
    "labels": torch.tensor([1, 2, 1]),
}
EMPTY = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}


@pytest.fixture
def found() -> Detections:
    return Detections(FIELDS, NAMES, IDS)


def test_it_stays_a_dict(found: Detections) -> None:
    assert isinstance(found, dict) and {**found} == dict(found) == FIELDS and list(found) == list(FIELDS)
    assert found["boxes"] is FIELDS["boxes"] and "labels" in found and len(found) == 3
    buffer = io.BytesIO()
    torch.save(found, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for other in (copy.copy(found), copy.deepcopy(found), found.copy(), pickle.loads(pickle.dumps(found)), saved):
        assert type(other) is Detections and (other.class_names, other.category_ids) == (NAMES, IDS)
        assert all(torch.equal(other[key], FIELDS[key]) for key in FIELDS)


def test_it_says_what_is_in_it(found: Detections) -> None:
    assert repr(found) == "3 detections: 2 person, 1 dog; best 0.98"
    assert repr(found.filter(classes=["dog"])) == "1 detection: 1 dog; best 0.60"
    assert repr(Detections(EMPTY, NAMES)) == "0 detections"
    assert repr(Detections(FIELDS)) == "3 detections: 2 class 1, 1 class 2; best 0.98"
    assert repr(Detections({"boxes": EMPTY["boxes"]})) == repr({"boxes": EMPTY["boxes"]})


@given(st.floats(0, 1, width=32), st.none() | st.sets(st.sampled_from(NAMES)))
def test_the_filter_keeps_scores_and_classes_in_their_order(score: float, classes: set[str] | None) -> None:
    kept = Detections(FIELDS, NAMES, IDS).filter(score, None if classes is None else sorted(classes))
    rows = zip(FIELDS["boxes"].tolist(), FIELDS["scores"].tolist(), FIELDS["labels"].tolist(), strict=True)
    wanted = [row for row in rows if row[1] >= score and (classes is None or NAMES[row[2] - 1] in classes)]
    assert list(zip(*(kept[key].tolist() for key in FIELDS), strict=True)) == wanted
    assert (kept.class_names, kept.category_ids) == (NAMES, IDS)


def test_a_wrong_filter_is_told(found: Detections) -> None:
    with pytest.raises(ConfigError, match=r"no class 'dig'; did you mean 'dog'\? There are: person, dog"):
        found.filter(classes=["dig"])
    with pytest.raises(ConfigError, match="the names of the classes are not known"):
        Detections(FIELDS).filter(classes=["dog"])
    with pytest.raises(ConfigError, match="score: 50"):
        found.filter(50)


def test_cocos_rows_are_those_of_the_file(found: Detections, tmp_path: Path) -> None:
    import json

    rows = found.to_coco("a.jpg")
    assert rows[0] == {"image_id": "a.jpg", "category_id": 1, "bbox": [1.1, 2.0, 4.3, 7.0], "score": 0.98}
    boxes = [[float(str(value)) for value in row] for row in FIELDS["boxes"].numpy()]
    image = Predicted("a.jpg", "a.jpg", (9, 9), boxes, [0.98, 0.6, 0.1], [1, 2, 1])
    write_coco([image], tmp_path / "a.json", Classes(NAMES, IDS))
    assert json.loads((tmp_path / "a.json").read_text()) == rows
    assert [row["category_id"] for row in found.to_coco(7, category_ids=[5, 6])] == [5, 6, 5]
    assert [row["category_id"] for row in Detections(FIELDS).to_coco(7)] == [1, 2, 1]
    assert Detections(EMPTY).to_coco(7) == []
    assert found.to_coco(7, np.array([5, 6]))[1]["category_id"] == 6
    with pytest.raises(ConfigError, match="to_coco: 1 category_ids, and there are detections of class 2"):
        found.to_coco(7, [5])


def test_one_class_may_be_a_word(found: Detections) -> None:
    assert repr(found.filter(classes=NAMES[0])) == repr(found.filter(classes=[NAMES[0]]))


def test_the_drawing_is_detkits(found: Detections) -> None:
    image = np.full((40, 40, 3), 90, np.uint8)
    drawn = detkit.draw(image, FIELDS, class_names=NAMES, score_threshold=0.3)
    assert found.draw(image, score_threshold=0.3).tobytes() == drawn.tobytes()


def test_a_table_has_a_detection_a_row(found: Detections) -> None:
    pytest.importorskip("pandas")
    table = found.to_pandas()
    assert list(table) == ["xmin", "ymin", "xmax", "ymax", "class", "score", "label"]
    assert np.array_equal(table[["xmin", "ymin", "xmax", "ymax"]].to_numpy(), FIELDS["boxes"].numpy())
    assert table["class"].tolist() == ["person", "dog", "person"] and table["label"].tolist() == [1, 2, 1]
    assert len(Detections(EMPTY, NAMES).to_pandas()) == 0


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_a_missing_package_is_named(found: Detections, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **others: Any) -> Any:
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=rf"^to_{package} needs {package}; install it: pip install {package}$"):
        getattr(found, f"to_{package}")()


def test_names_and_ids_travel_with_what_a_detector_finds() -> None:
    settings = {"features": MapSettings(fpn=False), "detection": DetectionSettings(score_threshold=0.0)}
    model = detkit.FasterRCNN(NAMES, backbone="tiny", category_ids=IDS, **settings).eval()
    image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        every = [model.predict(image), *model([image]), *model.predict_step([{"image": image, "image_id": 1}], 0)]
    for each in every:
        assert (each.class_names, each.category_ids) == (NAMES, IDS) and len(each["scores"])
        assert {row["category_id"] for row in each.to_coco(1)} <= set(IDS)
