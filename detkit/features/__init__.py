"""Features: backbones by name, how they are initialised and trained, and the pooling of regions."""

from detkit.features.architectures import ARCHITECTURES
from detkit.features.backbones import Backbone, build_backbone
from detkit.features.image_pyramid import PyramidFeatures, PyramidPooler, nearest_scale
from detkit.features.preprocessing import ImageBatch, Preprocessing
from detkit.features.roi_pooling import RoIPooler, distinct_rois
from detkit.features.transfer import apply_transfer

__all__ = [
    "ARCHITECTURES",
    "Backbone",
    "ImageBatch",
    "Preprocessing",
    "PyramidFeatures",
    "PyramidPooler",
    "RoIPooler",
    "apply_transfer",
    "build_backbone",
    "distinct_rois",
    "nearest_scale",
]
