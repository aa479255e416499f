"""Where the time of one detection goes, told by clocks on the parts that a detector calls.

Nothing of a detector is repeated here: while one image is detected, the parts named in `PARTS` note when they begin and
end. A part within a part takes its time from the outer one, so that the stages add up to the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from detkit.detectors import Detector

#: In the order of a detection.
PROPOSALS, FEATURES, HEADS, POST_PROCESSING = STAGES = ("proposals", "features", "heads", "post-processing")

#: What a detector calls, from the detector on, and the stage it belongs to; a generation has some of them. Resizing and
#: normalising an image is part of `encode`. What is left of `Detector.detect` is post-processing: choosing among the
#: scores, decoding, clipping, suppression.
PARTS = {
    "encode": FEATURES,
    "reader.read": FEATURES,  # R-CNN: warping, and the network on each crop
    "proposals_of": PROPOSALS,  # R-CNN, Fast R-CNN: selective search
    "rpn.forward": PROPOSALS,  # Faster R-CNN: within `encode`
    "propose": PROPOSALS,
    "roi_heads.forward": HEADS,  # Fast and Faster R-CNN: RoI pooling, box head and predictor
    "roi_heads.scores": HEADS,  # R-CNN: SVMs or softmax
    "roi_heads.box_regressors.forward": HEADS,
}


class StageClock:
    """Adds up the seconds of stages that may lie within each other.

    Args:
        device: waited for before each look at the clock, if it computes by itself.

    Attributes:
        seconds: of each stage, without those of the stages within it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens within as this stage."""
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
def time_detection(detector: Detector, sample: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Detections of one sample, whose proposals are not known yet, and the seconds of each of `STAGES`."""
    clock = StageClock(detector.device)
    with ExitStack() as clocks:
        for path, stage in PARTS.items():
            clocks.enter_context(_watched(detector, path, clock, stage))
        with clock.stage(POST_PROCESSING):
            (found,) = detector.detect([sample])
    return found, clock.seconds


@contextmanager
def _watched(detector: Detector, path: str, clock: StageClock, stage: str) -> Iterator[None]:
    """Let a function of the detector or of one of its parts count as a stage; nothing where there is no such part."""
    *owners, name = path.split(".")
    owner = reduce(lambda part, each: getattr(part, each, None), owners, detector)
    function: Callable[..., Any] | None = getattr(owner, name, None)
    if function is None:
        yield
        return

    def watched(*args: Any, **kwargs: Any) -> Any:
        with clock.stage(stage):
            return function(*args, **kwargs)

    setattr(owner, name, watched)  # of this object alone, before the class's own
    try:
        yield
    finally:
        delattr(owner, name)
