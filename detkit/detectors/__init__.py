"""The detectors: one LightningModule for each generation."""

from detkit.detectors.base import Detector, load
from detkit.detectors.fast_rcnn import FastRCNN
from detkit.detectors.faster_rcnn import FasterRCNN
from detkit.detectors.inference import optimize_for_inference
from detkit.detectors.proposals import ProposalSettings
from detkit.detectors.rcnn.model import RCNN

__all__ = ["RCNN", "Detector", "FastRCNN", "FasterRCNN", "ProposalSettings", "load", "optimize_for_inference"]
