"""Features: backbones by name, how they are initialised and trained, and the pooling of regions."""

from detkit.features.architectures import ARCHITECTURES
from detkit.features.backbones import Backbone, build_backbone
from detkit.features.preprocessing import ImageBatch, Preprocessing
from detkit.features.roi_pooling import RoIPooler
from detkit.features.transfer import apply_transfer

__all__ = [
    "ARCHITECTURES",
    "Backbone",
    "ImageBatch",
    "Preprocessing",
    "RoIPooler",
    "apply_transfer",
    "build_backbone",
]
