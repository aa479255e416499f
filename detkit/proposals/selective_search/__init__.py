"""Selective search: object proposals without training (Uijlings et al., IJCV 2013).

Its steps can be called one by one, to draw or to change them::

    hsv = colour_spaces.to_colour_space(image, "hsv")           # uint8 (H, W, C)
    segmentations = segmentation.segment(hsv, ks=[150])         # initial regions for each k
    labels = segmentations.labels(0)                            # (H, W), those of the first k
    (found,) = regions.describe(hsv, segmentations)             # sizes, boxes, neighbours, histograms
    hierarchy = grouping.group(found)                           # merged pair by pair until one is left
    hierarchy.regions_after(10)[labels]                         # (H, W), the regions after ten merges
    search.rank([hierarchy])                                    # boxes, those most likely to hold an object first
"""

from detkit.proposals.selective_search.search import SearchParameters, parameters_of, rank, selective_search

__all__ = ["SearchParameters", "parameters_of", "rank", "selective_search"]
