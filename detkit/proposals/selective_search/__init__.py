"""Selective search: object proposals without training (Uijlings et al., IJCV 2013).

Its steps are `to_colour_space`, `segment` (initial regions), `describe` (their sizes, boxes, neighbours and
histograms), `group` (merged pair by pair until one is left) and `rank`, each in the module of its name.
"""

from detkit.proposals.selective_search.search import SearchParameters, parameters_of, rank, selective_search

__all__ = ["SearchParameters", "parameters_of", "rank", "selective_search"]
