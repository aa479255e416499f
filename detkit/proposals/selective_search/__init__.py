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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detkit.proposals.selective_search.search import SearchParameters, parameters_of, rank, selective_search

if TYPE_CHECKING:
    from detkit.proposals.selective_search.colour_spaces import COLOUR_SPACES, to_colour_space
    from detkit.proposals.selective_search.grouping import MEASURES, Hierarchy, group, similarities
    from detkit.proposals.selective_search.regions import Regions, describe
    from detkit.proposals.selective_search.segmentation import segment, segment_many

__all__ = [
    "COLOUR_SPACES",
    "MEASURES",
    "Hierarchy",
    "Regions",
    "SearchParameters",
    "describe",
    "group",
    "parameters_of",
    "rank",
    "segment",
    "segment_many",
    "selective_search",
    "similarities",
    "to_colour_space",
]

# Imported on first use: numba takes a second, which only a search needs.
_MODULES = {
    "colour_spaces": ("COLOUR_SPACES", "to_colour_space"),
    "segmentation": ("segment", "segment_many"),
    "regions": ("Regions", "describe"),
    "grouping": ("MEASURES", "Hierarchy", "group", "similarities"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
