"""Each kind of error in an example worked by hand, and what it costs against the definition, over random sets."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.errors import ConfigError
from detkit.evaluation.errors import ERROR_KINDS, ErrorAP, Errors, error_ap, find_errors
from detkit.evaluation.matching import assign
from tests.evaluation.sets import Found, Image, Thing, average_precisions, flat, iou, match, random_images

CAT, DOG = 1, 2
HERE, THERE = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 10.0, 10.0)
NARROW = (0.0, 0.0, 10.0, 4.0)  # IoU 0.4 with HERE


def look_at(images: list[Image], classes: int = 2) -> tuple[list[str | None], Errors, ErrorAP]:
    whole = flat(images)
    assignment = assign(whole, classes)
    errors = find_errors(whole, classes, assignment)
    names = [None if kind < 0 else ERROR_KINDS[kind] for kind in errors.kind]
    return names, errors, error_ap(whole, classes, errors, assignment)


def numbers(result: ErrorAP) -> dict[str, float]:
    """The base, and what costs something."""
    values = {"base": result.base} | result.dap
    values |= {"false positives": result.false_positives, "false negatives": result.false_negatives}
    return {name: value for name, value in values.items() if name == "base" or value > 1e-12}


def test_classification() -> None:
    # The dog's AP is 1 already; the cat's is 0, and 1 when the second detection calls it a cat.
    kinds, errors, result = look_at(
        [([Thing(HERE, CAT), Thing(THERE, DOG)], [Found(THERE, DOG, 0.9), Found(HERE, DOG, 0.8)])]
    )
    assert kinds == [None, "classification"]
    assert errors.object.tolist() == [-1, 0] and errors.repairs.tolist() == [False, True]
    assert not errors.missed.any()
    assert numbers(result) == pytest.approx({"base": 0.5, "classification": 0.5, "false negatives": 0.5})


def test_localization() -> None:
    kinds, errors, result = look_at([([Thing(HERE, CAT)], [Found(NARROW, CAT, 0.9)])])
    assert kinds == ["localization"] and not errors.missed.any()
    # Without the detection there is still nothing found; without the object there is a detection of nothing.
    assert numbers(result) == pytest.approx({"base": 0, "localization": 1})


def test_both() -> None:
    # The dog is found second, with precision 1/2. No error is about the cat: it is missed, and without it there is one
    # class less.
    things = [Thing(HERE, CAT), Thing(THERE, DOG)]
    kinds, errors, result = look_at([(things, [Found(NARROW, DOG, 0.9), Found(THERE, DOG, 0.8)])], classes=3)
    assert kinds == ["both", None] and errors.missed.tolist() == [True, False]
    expected = {"base": 0.25, "both": 0.25, "missed": 0.25, "false positives": 0.25, "false negatives": 0.25}
    assert numbers(result) == pytest.approx(expected)
    np.testing.assert_allclose(result.base_per_class, [0, 0.5, math.nan])


def test_duplicate() -> None:
    # Precision is 1 up to a recall of 1/2 (51 of the 101 recalls), then 2/3.
    found = [Found(HERE, CAT, 0.9), Found(HERE, CAT, 0.8), Found(THERE, CAT, 0.7)]
    kinds, errors, result = look_at([([Thing(HERE, CAT), Thing(THERE, CAT)], found)])
    assert kinds == [None, "duplicate", None]
    assert errors.object.tolist() == [-1, 0, -1] and not errors.repairs.any()
    gain = 50 / 3 / 101
    assert numbers(result) == pytest.approx({"base": 1 - gain, "duplicate": gain, "false positives": gain})


def test_background() -> None:
    kinds, _, result = look_at([([Thing(HERE, CAT)], [Found(THERE, CAT, 0.9), Found(HERE, CAT, 0.8)])])
    assert kinds == ["background", None]
    assert numbers(result) == pytest.approx({"base": 0.5, "background": 0.5, "false positives": 0.5})


def test_missed() -> None:
    kinds, errors, result = look_at([([Thing(HERE, CAT), Thing(THERE, CAT)], [Found(HERE, CAT, 0.9)])])
    assert kinds == [None] and errors.missed.tolist() == [False, True]
    assert numbers(result) == pytest.approx({"base": 51 / 101, "missed": 50 / 101, "false negatives": 50 / 101})
    assert errors.counts() == dict.fromkeys(ERROR_KINDS, 0) | {"missed": 1}


@pytest.mark.parametrize(
    ("height", "label", "kind"),
    [
        (5.0, CAT, None),  # IoU 0.5 is a hit
        (4.9, CAT, "localization"),
        (1.0, CAT, "localization"),  # 0.1
        (0.9, CAT, "background"),
        (5.0, DOG, "classification"),
        (4.9, DOG, "both"),
        (1.0, DOG, "both"),
        (0.9, DOG, "background"),
    ],
)
def test_where_the_kinds_end(height: float, label: int, kind: str | None) -> None:
    assert look_at([([Thing(HERE, CAT)], [Found((0.0, 0.0, 10.0, height), label, 0.9)])])[0] == [kind]


def test_the_first_kind_that_fits() -> None:
    cat, dog = Thing(HERE, CAT), Thing((0.0, 0.0, 10.0, 9.0), DOG)
    # IoU 0.9 with the dog; with the cat 0.4: its place is wrong, not its class.
    assert look_at([([Thing(NARROW, CAT), dog], [Found(HERE, CAT, 0.9)])])[0] == ["localization"]
    # A second detection of the cat, which would also do for the dog.
    found = [Found(HERE, CAT, 0.9), Found(HERE, CAT, 0.8)]
    assert look_at([([cat, dog], found)])[0] == [None, "classification"]


def test_only_the_best_error_about_an_object_can_find_it() -> None:
    found = [Found(NARROW, CAT, 0.9), Found(HERE, DOG, 0.8), Found(THERE, DOG, 0.7)]
    kinds, errors, result = look_at([([Thing(HERE, CAT), Thing(THERE, DOG)], found)])
    assert kinds == ["localization", "classification", None]
    assert errors.repairs.tolist() == [True, False, False]
    # Without the classification error the dog comes first, but the cat stays unfound.
    expected = {"base": 0.25, "localization": 0.5, "classification": 0.25, "false positives": 0.25}
    assert numbers(result) == pytest.approx(expected)


def test_of_equal_overlaps_the_error_is_about_the_first_object() -> None:
    for label in (CAT, DOG):
        things = [Thing(THERE, CAT), Thing(HERE, CAT), Thing(HERE, CAT)]
        found = Found(NARROW if label == CAT else HERE, label, 0.9)
        errors = look_at([(things, [found])])[1]
        assert errors.object.tolist() == [1] and errors.missed.tolist() == [True, False, True]


def test_what_is_ignored_is_no_error() -> None:
    things = [Thing(HERE, CAT, difficult=True), Thing(THERE, CAT, crowd=True)]
    inside = (52.0, 52.0, 3.0, 3.0)
    kinds, errors, result = look_at(
        [(things, [Found(HERE, CAT, 0.9), Found(inside, CAT, 0.8), Found(inside, DOG, 0.7)])]
    )
    assert kinds == [None, None, "background"]  # no object that counts is near the last one
    assert not errors.missed.any()
    assert math.isnan(result.base) and all(math.isnan(value) for value in result.dap.values())
    assert math.isnan(result.false_positives) and math.isnan(result.false_negatives)


def test_beyond_the_limit_is_no_error() -> None:
    whole = flat([([Thing(HERE, CAT)], [Found(THERE, CAT, 0.9), Found(NARROW, CAT, 0.8)])])
    errors = find_errors(whole, 2, assign(whole, 2, max_detections=1))
    assert errors.kind.tolist() == [ERROR_KINDS.index("background"), -1] and errors.missed.tolist() == [True]


def test_labels_beyond_the_classes_do_not_count() -> None:
    kinds, errors, _ = look_at([([Thing(HERE, 3), Thing(THERE, CAT)], [Found(HERE, CAT, 0.9), Found(HERE, 3, 0.9)])])
    assert kinds == ["background", None] and errors.missed.tolist() == [False, True]


def test_nothing_found_at_all() -> None:
    _, errors, result = look_at([([Thing(HERE, CAT)], [])], classes=1)
    assert errors.missed.tolist() == [True]
    assert (result.base, result.dap["missed"], result.false_negatives) == (0, 1, 1)


def test_no_images() -> None:
    kinds, errors, result = look_at([])
    assert kinds == [] and sum(errors.counts().values()) == 0 and math.isnan(result.base)


@pytest.mark.parametrize(("foreground", "background"), [(0.5, 0.5), (0.5, 0.0), (1.1, 0.1), (math.nan, 0.1)])
def test_thresholds_without_sense_are_refused(foreground: float, background: float) -> None:
    with pytest.raises(ConfigError, match="choose 0 < background < foreground"):
        find_errors(flat([]), 1, assign(flat([]), 1), foreground, background)


def explain(images: list[Image]) -> tuple[list[list[str | None]], list[list[int]], list[list[bool]], list[list[bool]]]:
    """Per image, by the definition: the kinds, what each error is about, which would find it, and missed objects."""
    kinds, abouts, repairs, missed = [], [], [], []
    for things, found in images:
        taken = match((things, found))
        kind: list[str | None] = [None] * len(found)
        about = [-1] * len(found)
        hits = {t for t in taken if t >= 0}
        for d, detection in enumerate(found):
            if taken[d] >= 0:
                continue
            near = [(iou(detection.box, thing.box), -t) for t, thing in enumerate(things) if not thing.ignored]
            own = max((o for o in near if things[-o[1]].label == detection.label), default=(0.0, 1))
            other = max((o for o in near if things[-o[1]].label != detection.label), default=(0.0, 1))
            if 0.1 <= own[0] < 0.5:
                kind[d], about[d] = "localization", -own[1]
            elif other[0] >= 0.5:
                kind[d], about[d] = "classification", -other[1]
            elif own[0] >= 0.5:
                kind[d], about[d] = "duplicate", -own[1]
            else:
                kind[d] = "both" if other[0] >= 0.1 else "background"
        best = {}
        for d in sorted(range(len(found)), key=lambda d: -found[d].score):
            if kind[d] in ("localization", "classification") and about[d] not in hits:
                best.setdefault(about[d], d)
        kinds.append(kind)
        abouts.append(about)
        repairs.append([d in best.values() for d in range(len(found))])
        missed.append([not thing.ignored and t not in hits and t not in best for t, thing in enumerate(things)])
    return kinds, abouts, repairs, missed


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_kinds_are_those_of_the_definition(seed: int) -> None:
    images = random_images(seed)
    names, errors, _ = look_at(images, classes=3)
    kinds, abouts, repairs, missed = explain(images)
    whole = flat(images)
    assert names == list(chain(*kinds))
    first = np.repeat(whole.object_offsets[:-1], np.diff(whole.detection_offsets))
    assert np.where(errors.object < 0, -1, errors.object - first).tolist() == list(chain(*abouts))
    assert errors.repairs.tolist() == list(chain(*repairs)) and errors.missed.tolist() == list(chain(*missed))
    assert errors.counts() == {kind: names.count(kind) for kind in ERROR_KINDS[:5]} | {"missed": sum(map(sum, missed))}


def mend(images: list[Image], kind: str) -> list[Image]:
    """The images as they would be without errors of this kind."""
    mended = []
    for (things, found), kinds, about, repairs, missed in zip(images, *explain(images), strict=True):
        taken = match((things, found))
        new = []
        for d, detection in enumerate(found):
            wrong = kinds[d] == kind or (kind == "false positives" and kinds[d] is not None)
            if not wrong:
                new.append(detection)
            elif repairs[d] and kind != "false positives":
                new.append(replace(detection, box=things[about[d]].box, label=things[about[d]].label))
        unfound = [t not in taken and not thing.ignored for t, thing in enumerate(things)]
        gone = {"missed": missed, "false negatives": unfound}.get(kind, [False] * len(things))
        mended.append(([thing for thing, away in zip(things, gone, strict=True) if not away], new))
    return mended


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_costs_are_those_of_the_mended_set(seed: int) -> None:
    images = random_images(seed)
    present = sorted({thing.label for things, _ in images for thing in things if not thing.ignored})
    result = look_at(images, classes=3)[2]
    if not present:
        assert math.isnan(result.base)
        return

    def average(images: list[Image]) -> float:
        values = [average_precisions(images, 3)[label - 1] for label in present]
        values = [value for value in values if value is not None]
        return sum(values) / len(values) if values else 1.0

    base = average(images)
    assert result.base == pytest.approx(base, abs=1e-12)
    for kind in ERROR_KINDS:
        assert result.dap[kind] == pytest.approx(average(mend(images, kind)) - base, abs=1e-12), kind
    assert result.false_positives == pytest.approx(average(mend(images, "false positives")) - base, abs=1e-12)
    assert result.false_negatives == pytest.approx(average(mend(images, "false negatives")) - base, abs=1e-12)
