"""Heads: what follows the features of a region."""

from detkit.heads.box_head import BoxPredictor, build_box_head
from detkit.heads.region_classifier import RegionClassifier, RegionSettings

__all__ = ["BoxPredictor", "RegionClassifier", "RegionSettings", "build_box_head"]
