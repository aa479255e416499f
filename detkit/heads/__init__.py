"""Heads: what follows the features of a region."""

from detkit.heads.box_head import BoxPredictor, build_box_head
from detkit.heads.box_regressor import BoxRegressors, BoxRegressorSettings, regression_examples
from detkit.heads.crop_classifier import CropClassifier, SetLimit, Variant
from detkit.heads.hard_negatives import HardNegativeMiner, SVMSettings, Training
from detkit.heads.linear_svm import LinearSVMs, Objective, feature_scale, fit_svm, objective
from detkit.heads.region_classifier import RegionClassifier, RegionSettings
from detkit.heads.ridge import Ridge, RidgeSolver

__all__ = [
    "BoxPredictor",
    "BoxRegressorSettings",
    "BoxRegressors",
    "CropClassifier",
    "HardNegativeMiner",
    "LinearSVMs",
    "Objective",
    "RegionClassifier",
    "RegionSettings",
    "Ridge",
    "RidgeSolver",
    "SVMSettings",
    "SetLimit",
    "Training",
    "Variant",
    "build_box_head",
    "feature_scale",
    "fit_svm",
    "objective",
    "regression_examples",
]
