"""What any LightningModule of detkit needs around it; the callbacks that follow a fit, for a Trainer of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.lazy import lazy_names

if TYPE_CHECKING:
    from detkit.engine.curves import RunCurves as RunCurves
    from detkit.engine.model_card import ModelCard as ModelCard
    from detkit.engine.progress import EpochBar as EpochBar
    from detkit.engine.progress import EpochLines as EpochLines
    from detkit.engine.run_pictures import PredictionPicture as PredictionPicture
    from detkit.engine.run_pictures import TrainBatchPicture as TrainBatchPicture
    from detkit.engine.time_estimate import TimeEstimate as TimeEstimate

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "detkit.engine.curves": ["RunCurves"],
        "detkit.engine.model_card": ["ModelCard"],
        "detkit.engine.progress": ["EpochBar", "EpochLines"],
        "detkit.engine.run_pictures": ["PredictionPicture", "TrainBatchPicture"],
        "detkit.engine.time_estimate": ["TimeEstimate"],
    },
)
