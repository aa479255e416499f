"""Evaluation: how good detections are, always by a named protocol.

`MeanAveragePrecision` is COCO's and VOC's mean average precision, `ProposalRecall` the recall of proposals: each has
update, compute and reset, on any number of ranks. `Protocol` computes the numbers of MeanAveragePrecision from an
`EvaluationSet` of flat arrays, without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.lazy import lazy_names

if TYPE_CHECKING:
    from detkit.evaluation.evaluation_set import EvaluationSet as EvaluationSet
    from detkit.evaluation.mean_ap import MeanAveragePrecision as MeanAveragePrecision
    from detkit.evaluation.proposal_metric import ProposalRecall as ProposalRecall
    from detkit.evaluation.protocol import Protocol as Protocol

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "detkit.evaluation.evaluation_set": ["EvaluationSet"],
        "detkit.evaluation.mean_ap": ["MeanAveragePrecision"],
        "detkit.evaluation.proposal_metric": ["ProposalRecall"],
        "detkit.evaluation.protocol": ["Protocol"],
    },
)
