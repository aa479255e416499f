"""The confusion matrix: worked by hand, and its sums against counts over random sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.errors import ConfigError
from detkit.evaluation.confusion import confusion_matrix
from detkit.evaluation.matching import assign
from tests.evaluation.sets import Found, Image, Thing, flat, iou, match, random_images

CAT, DOG = 1, 2
HERE, THERE, ELSEWHERE = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 10.0, 10.0), (90.0, 90.0, 10.0, 10.0)


def confused(images: list[Image], classes: int, *thresholds: float) -> np.ndarray:
    whole = flat(images)
    return confusion_matrix(whole, classes, assign(whole, classes), *thresholds)


def test_worked_by_hand() -> None:
    things = [Thing(HERE, CAT), Thing(THERE, DOG), Thing(ELSEWHERE, DOG), Thing((30.0, 0.0, 9.0, 9.0), CAT)]
    found = [
        Found(HERE, CAT, 0.9),
        Found(THERE, CAT, 0.8),  # a dog taken for a cat
        Found((70.0, 0.0, 5.0, 5.0), DOG, 0.7),  # nothing there
        Found(ELSEWHERE, DOG, 0.4),  # below the threshold: that dog is not found
    ]
    #                                                         cat dog none
    assert confused([(things, found)], 2, 0.5).tolist() == [[1, 0, 1], [1, 0, 1], [0, 1, 0]]
    assert confused([(things, found)], 2, 0.4).tolist() == [[1, 0, 1], [1, 1, 0], [0, 1, 0]]


def test_the_right_class_comes_before_a_better_score() -> None:
    image = ([Thing(HERE, DOG)], [Found(HERE, CAT, 0.9), Found((0.0, 0.0, 10.0, 8.0), DOG, 0.8)])
    assert confused([image], 2).tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_of_the_wrong_classes_the_best_score_comes_first() -> None:
    image = ([Thing(HERE, 3)], [Found(HERE, CAT, 0.7), Found(HERE, DOG, 0.8)])
    matrix = confused([image], 3)
    assert matrix[2].tolist() == [0, 1, 0, 0] and matrix[3].tolist() == [1, 0, 0, 0]


def test_what_is_ignored_does_not_count() -> None:
    things = [Thing(HERE, CAT, difficult=True), Thing(THERE, DOG, crowd=True)]
    matrix = confused([(things, [Found(HERE, CAT, 0.9), Found(THERE, DOG, 0.9)])], 2)
    assert matrix.sum() == 0


def test_nothing() -> None:
    assert confused([], 2).tolist() == np.zeros((3, 3)).tolist()


@pytest.mark.parametrize(("score", "overlap"), [(0.5, 0.0), (0.5, 1.5), (math.nan, 0.5)])
def test_thresholds_without_sense_are_refused(score: float, overlap: float) -> None:
    with pytest.raises(ConfigError, match="choose an IoU"):
        confused([], 1, score, overlap)


def plain(images: list[Image], classes: int, threshold: float) -> np.ndarray:
    matrix = np.zeros((classes + 1, classes + 1), int)
    for things, found in images:
        found = sorted((d for d in found if d.score >= threshold), key=lambda d: -d.score)
        taken = match((things, found))
        free = {t for t, thing in enumerate(things) if not thing.ignored} - set(taken)
        for detection, t in zip(found, taken, strict=True):
            if t >= 0:
                matrix[things[t].label - 1, detection.label - 1] += not things[t].ignored
                continue
            best = max(((iou(detection.box, things[t].box), t) for t in free), default=(0.0, -1))
            row = classes
            if best[0] >= 0.5:
                row = things[best[1]].label - 1
                free.remove(best[1])
            matrix[row, detection.label - 1] += 1
        for t in free:
            matrix[things[t].label - 1, classes] += 1
    return matrix


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), eighths=st.integers(0, 9))
def test_equal_to_the_plain_definition(seed: int, eighths: int) -> None:
    images, threshold = random_images(seed), eighths / 8
    whole = flat(images)
    assignment = assign(whole, 3)
    matrix = confusion_matrix(whole, 3, assignment, threshold)
    assert matrix.tolist() == plain(images, 3, threshold).tolist()
    # Every object once in its row, every detection that counts once in its column.
    assert matrix[:3].sum(axis=1).tolist() == [
        sum(t.label == label and not t.ignored for things, _ in images for t in things) for label in (1, 2, 3)
    ]
    counted = assignment.counted & ~assignment.ignored & (whole.scores >= threshold)
    assert matrix[:, :3].sum(axis=0).tolist() == np.bincount(whole.detected_labels[counted], minlength=4)[1:].tolist()
