"""Features: backbones by name, how they are initialised and trained, and the pooling of regions."""

from detkit.features.architectures import ARCHITECTURES, backbone_names
from detkit.features.backbones import Backbone, FeatureSettings, MapSettings, build_backbone
from detkit.features.crop_reader import CropFeatures, CropNetwork, build_crop_network
from detkit.features.preprocessing import ImageBatch, Preprocessing
from detkit.features.roi_pooling import (
    PyramidFeatures,
    PyramidPooler,
    RoIPooler,
    distinct_rois,
    nearest_scale,
    pooled_cells,
    sampled_points,
)
from detkit.features.warping import CropGeometry, crop_geometry, warp

__all__ = [
    "ARCHITECTURES",
    "Backbone",
    "CropFeatures",
    "CropGeometry",
    "CropNetwork",
    "FeatureSettings",
    "ImageBatch",
    "MapSettings",
    "Preprocessing",
    "PyramidFeatures",
    "PyramidPooler",
    "RoIPooler",
    "backbone_names",
    "build_backbone",
    "build_crop_network",
    "crop_geometry",
    "distinct_rois",
    "nearest_scale",
    "pooled_cells",
    "sampled_points",
    "warp",
]
