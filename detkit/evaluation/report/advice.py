"""The kinds of errors in words: what each one is, and what can be done about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis

#: AP at IoU 0.5 below which a detector has hardly learnt: its errors say nothing about the labels.
HARDLY_LEARNT = 0.2
#: AP75 as a part of AP50 below which boxes are loose.
LOOSE = 0.6

#: Kind -> its meaning, the advice, and what to look for in the labels, "" for nothing.
WORDS = {
    "classification": (
        "The box is on an object, but the class is wrong.",
        "Look at the confused classes below. Add images of the rarer of two classes, train longer, or use a stronger "
        "backbone.",
        "Correct inconsistent labels.",
    ),
    "localization": (
        "The class is right, but the box fits badly (IoU {background} to {foreground}).",
        "Use {fit}.",
        "Check that the annotated boxes are tight.",
    ),
    "both": (
        "The class is wrong and the box fits badly.",
        "These are often parts of objects or similar objects: look at the images first. The advice for classification "
        "and localization applies.",
        "",
    ),
    "duplicate": (
        "Another detection of the same object has a higher score.",
        "Lower the IoU threshold of non-maximum suppression.",
        "Check for objects that are annotated twice.",
    ),
    "background": (
        "There is no annotated object (IoU below {background}).",
        "Raise the score threshold, or add images that contain only what is detected by mistake here.",
        "Check for objects that are not annotated.",
    ),
    "missed": (
        "An object that no detection is close to.",
        "See below whether such objects are small or of unusual shape. Use {cover}. More images of rare classes and a "
        "lower score threshold also help.",
        "Check for labels where no object is.",
    ),
}

_MORE = "is low (`detkit propose` prints it), more of them (proposals.max_boxes, or mode: quality of SelectiveSearch)"
#: By the detector's class, what makes boxes fit better and more objects be found; "" for an unknown detector.
REMEDIES = {
    "": {
        "fit": "larger images, or a higher weight of the box loss",
        "cover": "larger images, or features of a smaller stride",
    },
    "FasterRCNN": {
        "fit": "larger images, anchors closer to the sizes and shapes of the objects, or a higher "
        "weight of the box loss",
        "cover": "larger images, smaller anchors or a feature pyramid",
    },
    "FastRCNN": {
        "fit": f"larger images, a higher weight of the box loss or, if the proposals' recall at IoU 0.7 {_MORE}",
        "cover": f"larger images, a feature pyramid or, if the proposals' recall {_MORE}",
    },
    "RCNN": {
        "fit": "larger crops (crop.size), box regressors (box_regression: true) or, if the proposals' recall at IoU "
        f"0.7 {_MORE}",
        "cover": f"larger crops (crop.size) or, if the proposals' recall {_MORE}",
    },
}


class ErrorKind(NamedTuple):
    """A kind of error: name, AP that it costs (0..1, NaN where undefined), count, meaning, advice, hint at labels."""

    name: str
    ap: float
    count: int  # type: ignore[assignment]  # hides tuple's own method
    meaning: str
    remedy: str
    label_hint: str  # "" for none


def has_hardly_learnt(analysis: Analysis) -> bool:
    """Whether AP at IoU 0.5 is so low that errors are the detector's own."""
    return analysis.base_ap < HARDLY_LEARNT


def first_advice(metrics: Mapping[str, Any], analysis: Analysis) -> list[tuple[str, str]]:
    """(heading, advice) of what comes before all kinds of errors: a detector that has not learnt, loose boxes."""
    ap_50, ap_75 = (metrics.get(key) for key in ("map_50", "map_75"))
    if has_hardly_learnt(analysis):
        text = (
            f"AP at IoU 0.5 is {analysis.base_ap:.2f}. Look at the curves of the losses and of the validation's AP "
            "first, and train longer, or with another learning rate. What follows is about a detector that has learnt."
        )
        return [("The detector has hardly learnt", text)]
    if ap_50 and ap_75 is not None and ap_75 < LOOSE * ap_50:
        words = REMEDIES.get(metrics.get("detector") or "", REMEDIES[""])
        text = (
            f"AP50 is {ap_50:.2f}, AP75 only {ap_75:.2f}: the objects are found, but the boxes fit loosely. Train "
            f"longer with a falling learning rate, or use {words['fit']}. The kinds of errors below are at IoU 0.5, "
            "where a loose box is no error."
        )
        return [("Loose boxes first", text)]
    return []


def error_kinds(analysis: Analysis, detector: str | None = None) -> list[ErrorKind]:
    """All kinds of errors, the one that costs most first.

    Args:
        analysis: of the evaluation.
        detector: the name of the detector's class; the advice names what can be changed in it.
    """
    thresholds = {"foreground": f"{analysis.foreground:g}", "background": f"{analysis.background:g}"}
    words = thresholds | REMEDIES.get(detector or "", REMEDIES[""])
    kinds = []
    for kind, texts in WORDS.items():
        meaning, remedy, label_hint = (text.format(**words) for text in texts)
        label_hint = "" if has_hardly_learnt(analysis) else label_hint
        cost, count = analysis.error_ap[kind], analysis.error_counts[kind]
        kinds.append(ErrorKind(kind, cost, count, meaning, remedy, label_hint))
    return sorted(kinds, key=lambda kind: -1.0 if math.isnan(kind.ap) else kind.ap, reverse=True)
