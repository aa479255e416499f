"""Data sets as LightningDataModules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.lazy import lazy_names

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations as Annotations
    from detkit.data.annotations import AnnotationsBuilder as AnnotationsBuilder
    from detkit.data.annotations import Finding as Finding
    from detkit.data.coco import COCO as COCO
    from detkit.data.csv_tables import CSV as CSV
    from detkit.data.datamodule import DetectionDataModule as DetectionDataModule
    from detkit.data.images import ImageFolder as ImageFolder
    from detkit.data.label_studio import LabelStudio as LabelStudio
    from detkit.data.labelme import LabelMe as LabelMe
    from detkit.data.layouts import open as open
    from detkit.data.shapes import Shapes as Shapes
    from detkit.data.summary import DataSummary as DataSummary
    from detkit.data.voc import VOC as VOC
    from detkit.data.yolo import YOLO as YOLO

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "detkit.data.annotations": ["Annotations", "AnnotationsBuilder", "Finding"],
        "detkit.data.coco": ["COCO"],
        "detkit.data.csv_tables": ["CSV"],
        "detkit.data.datamodule": ["DetectionDataModule"],
        "detkit.data.images": ["ImageFolder"],
        "detkit.data.label_studio": ["LabelStudio"],
        "detkit.data.labelme": ["LabelMe"],
        "detkit.data.layouts": ["open"],
        "detkit.data.shapes": ["Shapes"],
        "detkit.data.summary": ["DataSummary"],
        "detkit.data.voc": ["VOC"],
        "detkit.data.yolo": ["YOLO"],
    },
)
