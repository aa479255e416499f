"""The kinds of errors in words: what each one is, and what can be done about it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis

#: Kind -> its meaning and the advice.
WORDS = {
    "classification": (
        "The box is on an object, but the class is wrong.",
        "Look at the confused classes below. Correct inconsistent labels, add images of the rarer of two classes, "
        "train longer, or use a stronger backbone.",
    ),
    "localization": (
        "The class is right, but the box fits badly (IoU {background} to {foreground}).",
        "Check that the annotated boxes are tight. Use {fit}.",
    ),
    "both": (
        "The class is wrong and the box fits badly.",
        "These are often parts of objects or similar objects: look at the images first. The advice for classification "
        "and localization applies.",
    ),
    "duplicate": (
        "Another detection of the same object has a higher score.",
        "Lower the IoU threshold of non-maximum suppression. Check for objects that are annotated twice.",
    ),
    "background": (
        "There is no annotated object (IoU below {background}).",
        "Check for objects that are not annotated. Raise the score threshold, or add images that contain only what is "
        "detected by mistake here.",
    ),
    "missed": (
        "An object that no detection is close to.",
        "See below whether such objects are small or of unusual shape. Use {cover}. More images of rare classes and a "
        "lower score threshold also help.",
    ),
}

_MORE = "is low (`detkit propose` prints it), more of them (proposals.max_boxes, or mode: quality of SelectiveSearch)"
#: By the detector's class, what makes boxes fit better and more objects be found; "" for an unknown detector.
REMEDIES = {
    "": {
        "fit": "larger images, anchors or proposals closer to the sizes and shapes of the objects, or a higher "
        "weight of the box loss",
        "cover": "larger images, smaller anchors or more proposals, or a feature pyramid",
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
    """A kind of error: name, AP that it costs (0..1, NaN where undefined), count, meaning and advice."""

    name: str
    ap: float
    count: int
    meaning: str
    remedy: str


def error_kinds(analysis: Analysis, detector: str | None = None) -> list[ErrorKind]:
    """All kinds of errors, the one that costs most first.

    Args:
        analysis: of the evaluation.
        detector: the name of the detector's class; the advice names what can be changed in it.
    """
    thresholds = {"foreground": f"{analysis.foreground:g}", "background": f"{analysis.background:g}"}
    words = thresholds | REMEDIES.get(detector or "", REMEDIES[""])
    kinds = [
        ErrorKind(kind, analysis.error_ap[kind], analysis.error_counts[kind], *(text.format(**words) for text in texts))
        for kind, texts in WORDS.items()
    ]
    return sorted(kinds, key=lambda kind: -1.0 if math.isnan(kind.ap) else kind.ap, reverse=True)
