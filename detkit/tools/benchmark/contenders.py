"""The three generations on one backbone: loaded from checkpoints, or built with random weights to be timed only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detkit.detectors import RCNN, Detector, FasterRCNN, FastRCNN, ProposalSettings
from detkit.engine.checkpoints import find_checkpoint, read_checkpoint, restore
from detkit.errors import CheckpointError
from detkit.features.architectures import architecture
from detkit.settings import construct

BACKBONE = "mobilenet_v2"
#: Context of R-CNN's crops (16 pixels for the others), and pooled cells a side (7 for the others).
CONTEXTS = {"lenet5": 4}
POOL_SIZES = {"alexnet": 6, "lenet5": 8}


class Generation(NamedTuple):
    """A generation: its name, its class, and the seconds an image of the course's table, proposals counted.

    The papers agree, for VGG16 on a K40: R-CNN 47 s and Fast R-CNN 0.32 s without proposals (Fast R-CNN, table 4),
    Faster R-CNN 0.198 s with them.
    """

    name: str
    cls: type[Detector]
    seconds_2015: float


#: By the argument that names its checkpoint.
GENERATIONS = {
    "rcnn": Generation("R-CNN", RCNN, 50.0),
    "fast_rcnn": Generation("Fast R-CNN", FastRCNN, 2.0),
    "faster_rcnn": Generation("Faster R-CNN", FasterRCNN, 0.2),
}


class Contender(NamedTuple):
    """A detector to be measured, in eval mode; ``checkpoint`` is None if its weights are random."""

    key: str
    detector: Detector
    checkpoint: str | None

    @property
    def inputs(self) -> str:
        """Sizes of the network's inputs, in pixels."""
        if isinstance(self.detector, RCNN):
            return f"crops of {self.detector.network.crop_size}"
        scales: Any = self.detector.test_scales if isinstance(self.detector, FastRCNN) else ()
        scales = scales or (self.detector.preprocessing,)
        return ", ".join(f"{scale.settings.min_sizes[-1]} to {scale.settings.max_size}" for scale in scales)

    def to(self, device: torch.device) -> None:
        """Move the detector to the device, where all generations compute in float32."""
        self.detector.to(device)
        if isinstance(self.detector, RCNN):
            self.detector.reader.bf16 = False


def load_contenders(paths: Mapping[str, str | Path | None]) -> list[Contender]:
    """The detectors of the checkpoints or run folders that are given, by the keys of `GENERATIONS`.

    Raises:
        CheckpointError: if one is missing, is of another generation, or if they differ in backbone or classes.
    """
    contenders: list[Contender] = []
    for key, path in paths.items():
        if path is None:
            continue
        file = find_checkpoint(path).path
        detector, expected = restore(read_checkpoint(file), str(file)), GENERATIONS[key].cls
        if not isinstance(detector, expected):
            actual = type(detector).__name__
            raise CheckpointError(f"{key} {file}: holds a {actual}; a checkpoint of {expected.__name__} is needed")
        contenders.append(Contender(key, detector.eval(), str(file)))
    for other in contenders[1:]:
        first = contenders[0]
        for what, option in (("backbone", "backbone"), ("classes", "class_names")):
            mine, theirs = (each.detector.hparams[option] for each in (first, other))
            if mine != theirs:
                raise CheckpointError(
                    f"the generations are compared with equal backbone and classes: the {what} of {first.checkpoint} "
                    f"are {mine}, those of {other.checkpoint} {theirs}"
                )
    return contenders


def build_contender(
    key: str,
    backbone: str,
    class_names: list[str],
    min_size: int = 600,
    max_size: int = 1000,
    max_proposals: int = 2000,
) -> Contender:
    """A generation with random weights and the numbers of its paper.

    Sizes are pixels of the shorter and longer side, for Fast and Faster R-CNN. ``max_proposals`` of an image are from
    selective search, for R-CNN and Fast R-CNN; the RPN gives 300.

    Raises:
        ConfigError: for an unknown backbone, or sizes that it does not take.
    """
    spec = architecture(backbone)
    options: dict[str, Any] = {
        "class_names": class_names,
        "backbone": backbone,
        "features__channels_last": True,
        "detection__max_candidates": 100,
        "detection__nms_threshold": 0.3,
    }
    if key != "rcnn":
        options |= {
            "features__fpn": False,
            "image__min_size": min_size,
            "image__max_size": max_size,
            "roi__pooling": "max",
            "roi__head": "top" if spec.has_top else "mlp",
            "roi__pool_size": POOL_SIZES.get(backbone, 7),
        }
    else:
        options |= {"crop__size": spec.crop_size, "crop__context": CONTEXTS.get(backbone, 16)}
    if key == "faster_rcnn":
        options |= {"rpn__pre_nms": (12000, 6000), "rpn__post_nms": (2000, 300), "rpn__min_size": 16.0}
    else:
        options["proposals"] = ProposalSettings(max_boxes=(max_proposals, max_proposals))
    detector = construct(GENERATIONS[key].cls, options)
    if isinstance(detector, RCNN):  # so that they compute, as they do in a trained one
        for part in (detector.roi_heads.svms, detector.roi_heads.box_regressors):
            part.trained.fill_(True)
    return Contender(key, detector.eval(), None)
