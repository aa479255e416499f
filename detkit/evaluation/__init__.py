"""Evaluation: how good detections are, always by a named protocol.

`MeanAveragePrecision` is COCO's and VOC's mean average precision and `ProposalRecall` the recall of proposals, each a
torchmetrics.Metric. `Protocol` computes the same numbers from an `EvaluationSet` of flat arrays, without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation_set import EvaluationSet
    from .mean_ap import MeanAveragePrecision
    from .proposal_metric import ProposalRecall
    from .protocol import Protocol

__all__ = ["EvaluationSet", "MeanAveragePrecision", "ProposalRecall", "Protocol"]

# torchmetrics and numba take seconds to import: only for those who evaluate.
_HOMES = {
    "EvaluationSet": ".evaluation_set",
    "MeanAveragePrecision": ".mean_ap",
    "ProposalRecall": ".proposal_metric",
    "Protocol": ".protocol",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
