"""detkit: R-CNN, Fast R-CNN and Faster R-CNN as LightningModules that share one set of parts.

Importing it is quick: what a name needs is imported when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from detkit.__about__ import __version__
from detkit.errors import DetkitError

if TYPE_CHECKING:
    from detkit import boxes, data, evaluation, proposals
    from detkit.classification import ImageClassifier
    from detkit.detectors import RCNN, FasterRCNN, FastRCNN
    from detkit.detectors.loading import load
    from detkit.drawing import draw

_WHERE = {
    **dict.fromkeys(("RCNN", "FastRCNN", "FasterRCNN"), "detkit.detectors"),
    "ImageClassifier": "detkit.classification",
    "load": "detkit.detectors.loading",
    "draw": "detkit.drawing",
}
_ROOMS = ("boxes", "classification", "data", "detectors", "evaluation", "features", "heads", "proposals", "training")

__all__ = [
    "RCNN",
    "DetkitError",
    "FastRCNN",
    "FasterRCNN",
    "ImageClassifier",
    "__version__",
    "boxes",
    "data",
    "draw",
    "evaluation",
    "load",
    "proposals",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"detkit.{name}")
    raise AttributeError(f"module 'detkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_ROOMS])
