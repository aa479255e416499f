"""Selective search: object proposals without training (Uijlings et al., IJCV 2013).

`selective_search` is the whole method. Its steps can also be called one by one, to draw or to change them::

    hsv = to_colour_space(image, "hsv")        # uint8 (H, W, C)
    labels = segment(hsv, k=150)               # initial regions, (H, W)
    regions = describe(hsv, labels)            # sizes, boxes, neighbours, histograms
    similarities(regions, regions.neighbours)  # of each pair of neighbours
    hierarchy = group(regions)                 # merged pair by pair until one is left
    rank([hierarchy])                          # boxes, those most likely to hold an object first
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.lazy import lazy_names
from detkit.proposals.selective_search.search import SearchParameters, parameters_of, rank, selective_search

if TYPE_CHECKING:
    from detkit.proposals.selective_search.colour_spaces import COLOUR_SPACES as COLOUR_SPACES
    from detkit.proposals.selective_search.colour_spaces import to_colour_space as to_colour_space
    from detkit.proposals.selective_search.grouping import MEASURES as MEASURES
    from detkit.proposals.selective_search.grouping import Hierarchy as Hierarchy
    from detkit.proposals.selective_search.grouping import group as group
    from detkit.proposals.selective_search.grouping import similarities as similarities
    from detkit.proposals.selective_search.regions import Regions as Regions
    from detkit.proposals.selective_search.regions import describe as describe
    from detkit.proposals.selective_search.segmentation import segment as segment
    from detkit.proposals.selective_search.segmentation import segment_many as segment_many

# Imported when first used: numba takes a second, which only a search needs.
__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        f"{__name__}.colour_spaces": ["COLOUR_SPACES", "to_colour_space"],
        f"{__name__}.grouping": ["MEASURES", "Hierarchy", "group", "similarities"],
        f"{__name__}.regions": ["Regions", "describe"],
        f"{__name__}.segmentation": ["segment", "segment_many"],
    },
)
__all__ += ["SearchParameters", "parameters_of", "rank", "selective_search"]
