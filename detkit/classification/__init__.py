"""Image classification: pre-training a backbone on images with one class each.

The room stands above the detectors': a classifier is trained as they are, and the crops of a detection data set are
one of the things it learns from. Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detkit.classification.cifar10 import CIFAR10
    from detkit.classification.class_folder import ClassFolder
    from detkit.classification.classifier import ImageClassifier
    from detkit.classification.datamodule import ClassificationDataModule
    from detkit.classification.object_crops import ObjectCrops

_MODULES = {
    "CIFAR10": "cifar10",
    "ClassFolder": "class_folder",
    "ClassificationDataModule": "datamodule",
    "ImageClassifier": "classifier",
    "ObjectCrops": "object_crops",
}

__all__ = ["CIFAR10", "ClassFolder", "ClassificationDataModule", "ImageClassifier", "ObjectCrops"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
