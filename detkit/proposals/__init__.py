"""Proposals: where objects may be."""

from detkit.proposals.methods import ProposalMethod, SelectiveSearch, SlidingWindows, StoredRPN
from detkit.proposals.region_proposal_network import ProposalBatch, Proposals, RegionProposalNetwork, RPNSettings
from detkit.proposals.selective_search import selective_search
from detkit.proposals.sliding_windows import sliding_windows
from detkit.proposals.store import ProposalStore

__all__ = [
    "ProposalBatch",
    "ProposalMethod",
    "ProposalStore",
    "Proposals",
    "RPNSettings",
    "RegionProposalNetwork",
    "SelectiveSearch",
    "SlidingWindows",
    "StoredRPN",
    "selective_search",
    "sliding_windows",
]
