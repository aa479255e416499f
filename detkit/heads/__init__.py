"""Heads: what follows the features of a region."""

from detkit.heads.box_regressor import BoxRegressors, BoxRegressorSettings, regression_examples
from detkit.heads.crop_classifier import CropClassifier, SetLimit, Variant
from detkit.heads.detection import DetectionSettings
from detkit.heads.hard_negatives import HardNegativeMiner, SVMSettings, Training
from detkit.heads.linear_svm import LinearSVMs, Objective, feature_scale, fit_svm, objective
from detkit.heads.ridge import Ridge, fit_ridge
from detkit.heads.roi_heads import BoxPredictor, RoIHeads, RoISettings, build_box_head

__all__ = [
    "BoxPredictor",
    "BoxRegressorSettings",
    "BoxRegressors",
    "CropClassifier",
    "DetectionSettings",
    "HardNegativeMiner",
    "LinearSVMs",
    "Objective",
    "Ridge",
    "RoIHeads",
    "RoISettings",
    "SVMSettings",
    "SetLimit",
    "Training",
    "Variant",
    "build_box_head",
    "feature_scale",
    "fit_ridge",
    "fit_svm",
    "objective",
    "regression_examples",
]
