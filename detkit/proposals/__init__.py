"""Proposals: where objects may be."""

from detkit.proposals.region_proposal_network import Proposals, RegionProposalNetwork, RPNSettings
from detkit.proposals.selective_search import selective_search
from detkit.proposals.sliding_windows import sliding_windows
from detkit.proposals.store import ProposalStore

__all__ = [
    "ProposalStore",
    "Proposals",
    "RPNSettings",
    "RegionProposalNetwork",
    "selective_search",
    "sliding_windows",
]
