"""Selective search: where objects may be, from the image alone (Uijlings et al., IJCV 2013).

`selective_search` does it all. Its steps can be had one by one, to be drawn or changed::

    hsv = to_colour_space(image, "hsv")        # uint8 (H, W, C)
    labels = segment(hsv, k=150)               # initial regions, (H, W)
    regions = describe(hsv, labels)            # sizes, boxes, neighbours, histograms
    similarities(regions, regions.neighbours)  # how alike neighbours are
    hierarchy = group(regions)                 # merged two by two until one is left
    rank([hierarchy])                          # boxes, most object-like first
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .parameters import SearchParameters, parameters_of
from .search import selective_search, selective_search_many

if TYPE_CHECKING:
    from .colour_spaces import COLOUR_SPACES, to_colour_space
    from .grouping import Hierarchy, group
    from .ranking import rank
    from .regions import Regions, describe
    from .segmentation import segment, segment_many
    from .similarity import MEASURES, similarities

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
    "selective_search_many",
    "similarities",
    "to_colour_space",
]

# These are compiled: numba takes a second to import, only for those who search.
_HOMES = {
    "COLOUR_SPACES": ".colour_spaces",
    "to_colour_space": ".colour_spaces",
    "segment": ".segmentation",
    "segment_many": ".segmentation",
    "Regions": ".regions",
    "describe": ".regions",
    "MEASURES": ".similarity",
    "similarities": ".similarity",
    "Hierarchy": ".grouping",
    "group": ".grouping",
    "rank": ".ranking",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
