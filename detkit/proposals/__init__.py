"""Proposals: where objects may be."""

from detkit.proposals.region_proposal_network import Proposals, RegionProposalNetwork, RPNSettings

__all__ = ["Proposals", "RPNSettings", "RegionProposalNetwork"]
