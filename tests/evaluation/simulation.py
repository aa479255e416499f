"""A population of images with objects and detections, of which sets are drawn."""

from __future__ import annotations

import numpy as np

from detkit.evaluation.evaluation_set import EvaluationSet, offsets_of

SIDE, STEP = 40.0, 100.0  # of an object, and between two


def simulate(images: int, seed: int, hit: float = 0.8, classes: int = 3) -> EvaluationSet:
    """A set of independent images; some are harder than others in all of their objects.

    Args:
        hit: the share of objects that are detected, over all images.
        classes: the first is the most frequent.
    """
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3, images)
    owners = np.repeat(np.arange(images), counts)
    total = len(owners)
    labels = rng.choice(classes, total, p=np.arange(classes, 0, -1) / sum(range(classes + 1))) + 1
    boxes = np.stack([STEP * np.arange(total), np.zeros(total), np.full(total, SIDE), np.full(total, SIDE)], axis=1)
    easy = rng.normal(0, 1, images)[owners]
    drawn = rng.random(total)  # of an object whether it is detected, the same whatever `hit` is
    chance = 1 / (1 + np.exp(-(np.log(hit / (1 - hit)) + easy)))
    scores = 1 / (1 + np.exp(-(1 + easy + rng.normal(0, 1, total))))
    near = boxes + np.stack([rng.exponential(5, total), *np.zeros((3, total))], axis=1)
    found = drawn < chance
    false_owners = np.repeat(np.arange(images), rng.poisson(1, images))
    false = len(false_owners)
    false_boxes = np.stack(
        [STEP * np.arange(false), np.full(false, 1000.0), np.full(false, SIDE), np.full(false, SIDE)], 1
    )
    false_scores = 1 / (1 + np.exp(-rng.normal(-1, 1, false)))
    detected_owners = np.concatenate([owners[found], false_owners])
    order = np.argsort(detected_owners, kind="stable")
    flags = np.zeros(total, bool)
    return EvaluationSet(
        image_ids=list(range(images)),
        boxes=boxes,
        labels=labels.astype(np.int32),
        difficult=flags,
        crowd=flags,
        area=boxes[:, 2] * boxes[:, 3],
        object_offsets=offsets_of(counts),
        detected_boxes=np.concatenate([near[found], false_boxes])[order],
        scores=np.concatenate([scores[found], false_scores])[order],
        detected_labels=np.concatenate([labels[found], rng.integers(1, classes + 1, false)])[order].astype(np.int32),
        detection_offsets=offsets_of(np.bincount(detected_owners, minlength=images)),
    )
