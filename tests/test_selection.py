from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import batched_nms, nms

from detkit.detections import Selection
from detkit.errors import ConfigError
from detkit.types import Detections

NAMES = ["cat", "dog", "cow"]


@st.composite
def detections(draw: st.DrawFn) -> Detections:
    count = draw(st.integers(0, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    corner = torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 20], dim=1)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    return Detections({"boxes": boxes, "scores": scores, "labels": torch.randint(1, 4, (count,), generator=generator)})


@given(detections(), st.floats(0, 1), st.sets(st.sampled_from(NAMES)))
def test_scores_and_classes(found: Detections, score: float, classes: set[str]) -> None:
    kept = Selection(score, sorted(classes))(found, NAMES)
    rows = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    expected = [row for row in rows if row[1] >= torch.tensor(score) and NAMES[row[2] - 1] in classes]
    assert list(zip(*(kept[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)) == expected


@given(detections())
def test_suppression_across_classes_is_torchvisions(found: Detections) -> None:
    kept = Selection(agnostic_nms=True)(found, NAMES)
    assert torch.equal(kept["boxes"], found["boxes"][nms(found["boxes"], found["scores"], 0.5)])
    assert len(kept["scores"]) <= len(batched_nms(found["boxes"], found["scores"], found["labels"], 0.5))


def test_wrong_choices_are_told() -> None:
    with pytest.raises(ConfigError, match=r"there is no class 'cut'; did you mean 'cat'\? There are: cat, dog, cow"):
        Selection(classes=["cut"]).labels(NAMES)
    with pytest.raises(ConfigError, match="score_threshold: 2"):
        Selection(2)
