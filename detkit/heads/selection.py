"""Which of an image's detections a user wants: of some classes, from a score, and one for each place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detkit.boxes import nms
from detkit.detections import labels_of
from detkit.settings import check_range
from detkit.types import Detections

AGNOSTIC_IOU = 0.5


@dataclass(frozen=True)
class Selection:
    """A choice among detections.

    Args:
        score_threshold: least score, 0 to 1.
        classes: names of the classes that are kept; None keeps all.
        agnostic_nms: suppress across classes too: of two detections whose IoU is above `AGNOSTIC_IOU` only the better
            one is kept.
    """

    score_threshold: float = 0.0
    classes: Sequence[str] | None = None
    agnostic_nms: bool = False

    def __post_init__(self) -> None:
        check_range("score_threshold", self.score_threshold, 0, 1)

    def labels(self, class_names: Sequence[str]) -> list[int]:
        """The labels that are kept, from 1.

        Raises:
            ConfigError: a class that there is not.
        """
        return labels_of(class_names if self.classes is None else self.classes, class_names)

    def __call__(self, detections: Detections, class_names: Sequence[str]) -> Detections:
        """The detections of one image that are kept, in their order.

        Raises:
            ConfigError: see `labels`.
        """
        kept = Detections(detections, class_names).filter(self.score_threshold, self.classes)
        if self.agnostic_nms:
            kept = kept.select(nms(kept["boxes"], kept["scores"], AGNOSTIC_IOU))
        return kept
