"""Pictures of what detkit computes, for teaching and for looking into one's own data: drawn with matplotlib.

Each function draws what a public function of detkit returns, on the Axes that it is given (``ax``) or on a new figure,
and returns the Axes; pictures of several parts return the Figure. Boxes are in the image's pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.lazy import lazy_names

if TYPE_CHECKING:
    from detkit.show.accuracy import errors as errors
    from detkit.show.accuracy import precision_recall as precision_recall
    from detkit.show.cells import convolution as convolution
    from detkit.show.cells import max_pooling as max_pooling
    from detkit.show.learning import curves as curves
    from detkit.show.learning import descent as descent
    from detkit.show.learning import distributions as distributions
    from detkit.show.learning import probabilities as probabilities
    from detkit.show.networks import feature_maps as feature_maps
    from detkit.show.networks import filters as filters
    from detkit.show.networks import receptive_field as receptive_field
    from detkit.show.overlap import iou as iou
    from detkit.show.overlap import nms as nms
    from detkit.show.refinement import crops as crops
    from detkit.show.refinement import margins as margins
    from detkit.show.refinement import regression as regression
    from detkit.show.refinement import warped_crops as warped_crops
    from detkit.show.roi import pooling as pooling
    from detkit.show.rpn import anchors as anchors
    from detkit.show.rpn import objectness as objectness
    from detkit.show.search import grouping as grouping
    from detkit.show.search import grouping_animation as grouping_animation
    from detkit.show.search import segmentation as segmentation
    from detkit.show.training import losses as losses
    from detkit.show.windows import proposals as proposals
    from detkit.show.windows import recall as recall

# No file has the name of a function: as an attribute of the package it would hide the function.
__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "detkit.show.accuracy": ["errors", "precision_recall"],
        "detkit.show.cells": ["convolution", "max_pooling"],
        "detkit.show.learning": ["curves", "descent", "distributions", "probabilities"],
        "detkit.show.networks": ["feature_maps", "filters", "receptive_field"],
        "detkit.show.overlap": ["iou", "nms"],
        "detkit.show.refinement": ["crops", "margins", "regression", "warped_crops"],
        "detkit.show.roi": ["pooling"],
        "detkit.show.rpn": ["anchors", "objectness"],
        "detkit.show.search": ["grouping", "grouping_animation", "segmentation"],
        "detkit.show.training": ["losses"],
        "detkit.show.windows": ["proposals", "recall"],
    },
)
