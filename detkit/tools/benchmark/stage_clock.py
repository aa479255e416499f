"""Seconds of the stages of one detection, from clocks on the functions named in `PARTS`.

The time of a part within another part is not counted for the outer one, so the stages add up to the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

import torch

from detkit.detectors import RCNN, Detector, FasterRCNN, FastRCNN
from detkit.types import Detections, Sample

#: In the order of a detection.
PROPOSALS, FEATURES, HEADS, POST_PROCESSING = STAGES = ("proposals", "features", "heads", "post-processing")

#: The parts that a detector calls, and the stage of each. Resizing and normalising an image is part of `encode`. The
#: rest of `Detector.detect` is post-processing: choosing among the scores, decoding, clipping, suppression.
PARTS: dict[type[Detector], dict[str, str]] = {
    RCNN: {
        "encode": FEATURES,
        "given.of_batch": PROPOSALS,  # selective search
        "reader.read": FEATURES,  # warping, and the network on each crop
        "roi_heads.scores": HEADS,  # SVMs or softmax
        "roi_heads.box_regressors.forward": HEADS,
    },
    FastRCNN: {
        "encode": FEATURES,
        "propose": PROPOSALS,  # selective search
        "roi_heads.forward": HEADS,  # RoI pooling, box head and predictor
    },
    FasterRCNN: {
        "encode": FEATURES,
        "rpn.forward": PROPOSALS,  # within `encode`
        "propose": PROPOSALS,
        "roi_heads.forward": HEADS,
    },
}


class StageClock:
    """Adds up the seconds of stages, without those of the stages nested in them; a GPU is synchronized first."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time within as this stage."""
        self._look()
        self._open.append(name)
        try:
            yield
        finally:
            self._look()
            self._open.pop()

    def _look(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@torch.no_grad()
def time_detection(detector: Detector, sample: Sample) -> tuple[Detections, dict[str, float]]:
    """Detections of one sample without stored proposals, and the seconds of each of `STAGES`."""
    clock = StageClock(detector.device)
    parts = next(parts for generation, parts in PARTS.items() if isinstance(detector, generation))
    with ExitStack() as clocks:
        for path, stage in parts.items():
            clocks.enter_context(_timed(detector, path, clock, stage))
        with clock.stage(POST_PROCESSING):
            (detections,) = detector.detect([sample])
    return detections, clock.seconds


@contextmanager
def _timed(detector: Detector, path: str, clock: StageClock, stage: str) -> Iterator[None]:
    """Count a function of the detector, or of one of its parts, as a stage."""
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, detector)
    function: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with clock.stage(stage):
            return function(*args, **kwargs)

    setattr(owner, name, timed)  # on this object, hides the function of the class
    try:
        yield
    finally:
        delattr(owner, name)
