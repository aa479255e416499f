"""Label suspects: each kind of wrong label planted beside right ones, and what is no suspect."""

from __future__ import annotations

import pytest

from detkit.evaluation.analysis import analyse
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.suspects import find_suspects
from tests.evaluation.sets import Box, Found, Image, Thing, flat

NAMES = ["cat", "dog"]
PLACE: Box = (200.0, 0.0, 40.0, 40.0)


def among_right_ones(things: list[Thing], found: list[Found], top: float = 0.99, wrong: int = 0) -> EvaluationSet:
    """An image with these after 60 images of a cat and a dog that are found; `wrong` of them are not."""
    boxes: list[Box] = [(0.0, 0.0, 40.0, 40.0), (100.0, 0.0, 42.0, 40.0)]
    right: list[Image] = [
        ([Thing(box, k + 1) for k, box in enumerate(boxes)], [Found(box, k + 1, top) for k, box in enumerate(boxes)])
        for _ in range(60)
    ]
    for image in range(wrong):
        right[image] = (right[image][0], [])
    return flat([*right, (things, found)])


def suspects_of(evaluation_set: EvaluationSet) -> list[tuple[str, int, int]]:
    """Kind, label and detection of each, the rows counted from those of the last image."""
    s = evaluation_set
    starts = s.object_offsets[-2], s.detection_offsets[-2]
    found = find_suspects(s, analyse(s, NAMES))
    assert all(each.image == len(s) - 1 for each in found)
    assert [each.suspicion for each in found] == sorted((each.suspicion for each in found), reverse=True)
    rows = [(each.label, each.detection) for each in found]
    return [
        (each.kind, *(row if row < 0 else int(row - start) for row, start in zip(pair, starts, strict=True)))
        for each, pair in zip(found, rows, strict=True)
    ]


@pytest.mark.parametrize("top", [0.99, 0.5, 3.0])  # a softmax, a focal loss, the margin of an SVM
@pytest.mark.parametrize(
    ("things", "found", "suspects"),
    [
        ([], [(PLACE, 1, 1.0)], [("missing", -1, 0)]),
        ([Thing(PLACE, 1)], [], [("spurious", 0, -1)]),
        ([Thing(PLACE, 1)], [(PLACE, 2, 1.0), (PLACE, 1, 0.05)], [("wrong class", 0, 0)]),
        ([Thing(PLACE, 1)], [((220.0, 0.0, 40.0, 40.0), 1, 1.0)], [("loose box", 0, 0)]),
        ([Thing(PLACE, 1)], [(PLACE, 1, 1.0)], []),
        ([Thing(PLACE, 1)], [(PLACE, 1, 0.9), (PLACE, 2, 0.9)], []),  # the detector is of two minds
        ([], [(PLACE, 1, 0.3)], []),  # no confidence
        ([Thing(PLACE, 1), Thing((210.0, 0.0, 40.0, 40.0), 1)], [(PLACE, 1, 1.0)], []),  # two that one detection covers
        ([Thing(PLACE, 1, difficult=True)], [], []),
        ([Thing(PLACE, 1, difficult=True)], [(PLACE, 2, 1.0)], []),
        ([Thing((0.0, 0.0, 400.0, 400.0), 1, crowd=True)], [(PLACE, 1, 1.0)], []),
    ],
)
def test_each_kind_is_found(top: float, things: list[Thing], found: list[tuple], suspects: list[tuple]) -> None:
    s = among_right_ones(things, [Found(box, label, top * score) for box, label, score in found], top)
    assert suspects_of(s) == suspects


def test_an_object_that_is_hard_to_find_is_no_suspect() -> None:
    """Of 60 labels alike only 24 are found: that nothing is found is no news."""
    assert suspects_of(among_right_ones([], [], wrong=0)) == []
    s = among_right_ones([Thing(PLACE, 1)], [], wrong=36)
    analysis = analyse(s, NAMES)
    object.__setattr__(analysis, "base_ap", 0.9)
    assert find_suspects(s, analysis) == []


def test_a_detector_that_is_not_good_is_no_judge() -> None:
    s = among_right_ones([], [Found(PLACE, 1, 0.99)], wrong=40)
    assert analyse(s, NAMES).base_ap < 0.5
    assert find_suspects(s, analyse(s, NAMES)) == []
    nothing = flat([([], [])])
    assert find_suspects(nothing, analyse(nothing, NAMES)) == []


def test_the_surest_contradiction_comes_first() -> None:
    things = [Thing((300.0, 0.0, 40.0, 40.0), 2)]
    found = [Found(PLACE, 1, 0.7), Found((300.0, 0.0, 40.0, 40.0), 1, 0.99), Found((500.0, 0.0, 40.0, 40.0), 1, 0.9)]
    assert [kind for kind, *_ in suspects_of(among_right_ones(things, found))] == ["wrong class", "missing", "missing"]
