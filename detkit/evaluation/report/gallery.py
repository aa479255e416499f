"""Which images are worth a look: the worst and the best of a set.

Images are judged as a user of the detector would see them: detections below the score threshold are left out. What an
image costs is the number of its objects that are not found plus the scores of its false detections, each score taken as
0 to 1: a miss is as bad as a false detection that is certain, and a false detection that is hardly above the threshold
costs little. The worst images are those that cost most.

The best are images with objects, all of them found, and no false detection; of those, the ones with the widest margin
between the lowest score of a hit and the highest score of a false detection below the threshold. Equal images are
taken in the order of their ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from detkit.evaluation.errors import ERROR_KINDS, objects_to_find

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis
    from detkit.evaluation.evaluation_set import EvaluationSet

MOST_IMAGES = 8


@dataclass(frozen=True, eq=False, slots=True)
class Verdict:
    """What the images of a set look like at the score threshold.

    Attributes:
        shown: (D,) bool, detections that reach the threshold and count.
        false: (D,) bool, those of them that are errors.
        to_find: (G,) bool, objects that count.
        found: (G,) bool, objects that a shown detection found.
        found_score: (G,) float64, score of the detection that found an object, shown or not; NaN for none.
        cost: (I,) float64.
        margin: (I,) float64; NaN for an image that is not among the best.
    """

    shown: np.ndarray
    false: np.ndarray
    to_find: np.ndarray
    found: np.ndarray
    found_score: np.ndarray
    cost: np.ndarray
    margin: np.ndarray


def judge(evaluation_set: EvaluationSet, analysis: Analysis) -> Verdict:
    """Judges each image."""
    s, assignment, kind = evaluation_set, analysis.assignment, analysis.errors.kind
    threshold = -math.inf if math.isnan(analysis.score_threshold) else analysis.score_threshold
    shown = assignment.counted & (s.scores >= threshold)
    wrong = kind >= 0
    hits = assignment.hits
    to_find = objects_to_find(s, len(analysis.class_names))
    found_score = np.full(len(s.labels), np.nan)
    found_score[assignment.object[hits]] = s.scores[hits]
    found = np.zeros(len(s.labels), bool)
    found[assignment.object[hits & shown]] = True

    false, images = shown & wrong, s.detection_images
    weights = np.clip(s.scores[false], 0.0, 1.0)
    cost = np.bincount(images[false], weights, minlength=len(s)) + np.bincount(
        s.object_images[to_find & ~found], minlength=len(s)
    )
    lowest_hit, highest_error = np.full(len(s), np.inf), np.zeros(len(s))
    np.minimum.at(lowest_hit, images[hits & shown], s.scores[hits & shown])
    np.maximum.at(highest_error, images[wrong], s.scores[wrong])
    best = (np.bincount(s.object_images[to_find], minlength=len(s)) > 0) & (cost == 0)
    # An image may have no cost though a detection is false: one with a score of 0.
    best &= np.bincount(images[false], minlength=len(s)) == 0
    return Verdict(shown, false, to_find, found, found_score, cost, np.where(best, lowest_hit - highest_error, np.nan))


def worst_images(verdict: Verdict, most: int = MOST_IMAGES) -> list[int]:
    """Numbers of the images that cost most, the worst first; none that cost nothing."""
    order = np.argsort(-verdict.cost, kind="stable")[:most]
    return [int(image) for image in order if verdict.cost[image] > 0]


def best_images(verdict: Verdict, most: int = MOST_IMAGES) -> list[int]:
    """Numbers of the best images, the best first."""
    order = np.argsort(-verdict.margin, kind="stable")[:most]  # NaN goes last
    return [int(image) for image in order if not math.isnan(verdict.margin[image])]


def error_words(evaluation_set: EvaluationSet, analysis: Analysis, verdict: Verdict, image: int) -> str:
    """What is right and wrong in an image, in a sentence."""
    s, kind = evaluation_set, analysis.errors.kind
    objects = slice(*s.object_offsets[image : image + 2])
    detections = slice(*s.detection_offsets[image : image + 2])
    to_find, found = int(verdict.to_find[objects].sum()), int(verdict.found[objects].sum())
    words = [f"{found} of {to_find} object{'s' if to_find != 1 else ''} found" if to_find else "no objects to find"]
    counts = np.bincount(kind[detections][verdict.false[detections]], minlength=len(ERROR_KINDS))
    words += [f"{count} {name}" for name, count in zip(ERROR_KINDS, counts.tolist(), strict=True) if count]
    return ", ".join(words)
