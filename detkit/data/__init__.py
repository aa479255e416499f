"""Data sets as LightningDataModules.

Names are imported when first used: torch and Lightning take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations, Finding
    from detkit.data.coco import COCO
    from detkit.data.datamodule import DetectionDataModule
    from detkit.data.images import ImageFolder
    from detkit.data.shapes import Shapes
    from detkit.data.summary import DataSummary
    from detkit.data.voc import VOC

_MODULES = {
    "Annotations": "annotations",
    "COCO": "coco",
    "DataSummary": "summary",
    "DetectionDataModule": "datamodule",
    "Finding": "annotations",
    "ImageFolder": "images",
    "Shapes": "shapes",
    "VOC": "voc",
}

__all__ = [
    "COCO",
    "VOC",
    "Annotations",
    "DataSummary",
    "DetectionDataModule",
    "Finding",
    "ImageFolder",
    "Shapes",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
