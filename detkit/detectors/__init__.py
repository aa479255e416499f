"""The detectors: one LightningModule for each generation."""

from detkit.detectors.base import Detector
from detkit.detectors.fast_rcnn import FastRCNN
from detkit.detectors.faster_rcnn import FasterRCNN

__all__ = ["Detector", "FastRCNN", "FasterRCNN"]
