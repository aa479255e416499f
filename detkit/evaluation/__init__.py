"""Evaluation: how good detections are, always by a named protocol.

`MeanAveragePrecision` is COCO's and VOC's mean average precision, a torchmetrics.Metric.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mean_ap import MeanAveragePrecision

__all__ = ["MeanAveragePrecision"]

# torchmetrics takes seconds to import: only for those who evaluate.
_HOMES = {"MeanAveragePrecision": ".mean_ap"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
