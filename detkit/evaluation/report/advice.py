"""The kinds of errors in words: what each is, and what to do about it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis

WORDS = {
    "classification": (
        "The box is on an object, but the class is wrong.",
        "Look at the confused pairs below; unify what is labelled inconsistently, add examples of the rarer of "
        "two classes, train longer or use a stronger backbone.",
    ),
    "localization": (
        "The class is right, but the box fits badly (IoU {background} to {foreground}).",
        "Check how tightly the boxes are annotated; use {fit}.",
    ),
    "both": (
        "Wrong class and badly fitting box.",
        "Often parts of objects or look-alikes: look at them in the gallery first; the remedies of classification "
        "and localization hold.",
    ),
    "duplicate": (
        "The object was found already, by a detection with a better score.",
        "Lower the IoU threshold of non-maximum suppression; check for objects that are annotated twice.",
    ),
    "background": (
        "There is no annotated object (IoU below {background}).",
        "Look for objects that the annotation lacks; raise the score threshold, or add images that hold only what "
        "is mistaken here.",
    ),
    "missed": (
        "An object that no detection is about.",
        "See below whether they are small or of odd shape: use {cover}; more examples of rare classes and a lower "
        "score threshold help too.",
    ),
}

_MORE = "is low (`detkit propose` prints it), more of them (max_proposals, or proposal_mode: quality)"
#: What helps boxes to fit, and objects to be found, by the class of the detector; "" for one that is not known.
REMEDIES = {
    "": {
        "fit": "larger images, anchors or proposals nearer to the objects' sizes and shapes, or more weight on the "
        "box loss",
        "cover": "larger images, smaller anchors or more proposals, or a feature pyramid",
    },
    "FasterRCNN": {
        "fit": "larger images, anchors nearer to the objects' sizes and shapes, or more weight on the box loss",
        "cover": "larger images, smaller anchors or a feature pyramid",
    },
    "FastRCNN": {
        "fit": f"larger images, more weight on the box loss, or, if the proposals' recall at IoU 0.7 {_MORE}",
        "cover": f"larger images, a feature pyramid or, if the proposals' recall {_MORE}",
    },
    "RCNN": {
        "fit": "larger crops (crop_size), box regressors (box_regression: true), or, if the proposals' recall at IoU "
        f"0.7 {_MORE}",
        "cover": f"larger crops (crop_size) or, if the proposals' recall {_MORE}",
    },
}


class ErrorKind(NamedTuple):
    """A kind of error: its name, AP lost to it (0..1, NaN where undefined), how often, what it is and what to do."""

    name: str
    ap: float
    count: int
    meaning: str
    remedy: str


def error_kinds(analysis: Analysis, detector: str | None = None) -> list[ErrorKind]:
    """All kinds, the costliest first.

    Args:
        analysis: of the detections.
        detector: the class that made them, for what can be changed in it: R-CNN and Fast R-CNN have no anchors.
    """
    helps = REMEDIES.get(detector or "", REMEDIES[""])
    at = {"foreground": f"{analysis.foreground:g}", "background": f"{analysis.background:g}"}
    kinds = [
        ErrorKind(kind, analysis.error_ap[kind], analysis.error_counts[kind], what.format(**at), remedy.format(**helps))
        for kind, (what, remedy) in WORDS.items()
    ]
    return sorted(kinds, key=lambda kind: -1.0 if math.isnan(kind.ap) else kind.ap, reverse=True)
