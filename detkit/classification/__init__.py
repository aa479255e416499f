"""Image classification: pre-training a backbone on images with one class each.

It stands above the detectors: a classifier is trained as they are, and one of its data sets is the crops of a detection
data set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.lazy import lazy_names

if TYPE_CHECKING:
    from detkit.classification.cifar10 import CIFAR10 as CIFAR10
    from detkit.classification.class_folder import ClassFolder as ClassFolder
    from detkit.classification.classifier import ImageClassifier as ImageClassifier
    from detkit.classification.datamodule import ClassificationDataModule as ClassificationDataModule
    from detkit.classification.object_crops import ObjectCrops as ObjectCrops

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "detkit.classification.cifar10": ["CIFAR10"],
        "detkit.classification.class_folder": ["ClassFolder"],
        "detkit.classification.classifier": ["ImageClassifier"],
        "detkit.classification.datamodule": ["ClassificationDataModule"],
        "detkit.classification.object_crops": ["ObjectCrops"],
    },
)
