"""The three generations on one backbone: loaded from checkpoints, or built with random weights to be timed only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from detkit.detectors import RCNN, Detector, FasterRCNN, FastRCNN
from detkit.detectors.loading import restore
from detkit.engine.checkpoints import find_checkpoint, read_checkpoint
from detkit.errors import CheckpointError
from detkit.features.architectures import architecture

BACKBONE = "mobilenet_v2"
#: Where they are not the usual 16 pixels of context in R-CNN's crops, and 7 x 7 pooled cells.
CONTEXTS = {"lenet5": 4}
POOL_SIZES = {"alexnet": 6, "lenet5": 8}


class Known(NamedTuple):
    """A generation: what it is called, its class, and the seconds an image of the course's table.

    The table (50, 2 and 0.2 s: 1x, 25x, 250x) counts the proposals. The papers agree with it, for VGG16 on a K40: R-CNN
    47 s and Fast R-CNN 0.32 s without proposals (Fast R-CNN, table 4), Faster R-CNN 0.198 s with them.
    """

    name: str
    cls: type[Detector]
    seconds_2015: float


#: By the option that its checkpoint is given by.
GENERATIONS = {
    "rcnn": Known("R-CNN", RCNN, 50.0),
    "fast_rcnn": Known("Fast R-CNN", FastRCNN, 2.0),
    "faster_rcnn": Known("Faster R-CNN", FasterRCNN, 0.2),
}


class Contender(NamedTuple):
    """A detector to be measured, in eval mode; ``checkpoint`` is None if its weights are random."""

    key: str
    detector: Detector
    checkpoint: str | None

    @property
    def name(self) -> str:
        """The generation's."""
        return GENERATIONS[self.key].name

    @property
    def inputs(self) -> str:
        """What its network sees, in pixels."""
        if isinstance(self.detector, RCNN):
            return f"crops of {self.detector.network.crop_size}"
        scales = getattr(self.detector, "test_scales", ()) or (self.detector.preprocessing,)
        return ", ".join(f"{scale.min_sizes[-1]} to {scale.max_size}" for scale in scales)


def load_contenders(paths: Mapping[str, str | None]) -> list[Contender]:
    """The detectors of the checkpoints or run folders that are given, by the keys of `GENERATIONS`.

    Raises:
        CheckpointError: if one is missing, is of another generation, or if they differ in backbone or classes.
    """
    found = []
    for key, path in paths.items():
        if path is None:
            continue
        file = find_checkpoint(path).path
        content, wanted = read_checkpoint(file), GENERATIONS[key].cls.__name__
        given = content["detkit"]["class"]
        if given != wanted:
            raise CheckpointError(f"--{key} {file}: holds a {given}; wanted is a checkpoint of {wanted}")
        found.append(Contender(key, restore(content, str(file)).eval(), str(file)))
    for each in found[1:]:
        for what, first, other in (
            ("backbone", found[0].detector.hparams["backbone"], each.detector.hparams["backbone"]),
            ("classes", found[0].detector.class_names, each.detector.class_names),
        ):
            if first != other:
                raise CheckpointError(
                    f"the generations are compared with equal backbone and classes: the {what} of {found[0].checkpoint}"
                    f" are {first}, those of {each.checkpoint} {other}"
                )
    return found


def build_contender(
    key: str,
    backbone: str,
    class_names: list[str],
    min_size: int = 600,
    max_size: int = 1000,
    max_proposals: int = 2000,
) -> Contender:
    """A generation with random weights and the numbers of its paper.

    Args:
        key: of `GENERATIONS`.
        backbone: one of `detkit.features.architectures.ARCHITECTURES`.
        class_names: the classes.
        min_size: Fast and Faster R-CNN: pixels of the shorter side. R-CNN crops from the image as it is.
        max_size: limit of the longer side.
        max_proposals: R-CNN and Fast R-CNN: of an image, from selective search. The RPN gives 300.

    Raises:
        ConfigError: for an unknown backbone, or sizes that it does not take.
    """
    spec = architecture(backbone)
    options: dict[str, Any] = {
        "class_names": class_names,
        "backbone": backbone,
        "channels_last": True,
        "max_candidates": 100,
        "nms_threshold": 0.3,
    }
    if key != "rcnn":
        has_top = spec.top_is_fully_connected or spec.top
        options |= {"fpn": False, "min_size": min_size, "max_size": max_size, "pooling": "max"}
        options |= {"box_head": "top" if has_top else "mlp", "pool_size": POOL_SIZES.get(backbone, 7)}
    else:
        options |= {"crop_size": spec.crop_size, "context": CONTEXTS.get(backbone, 16)}
    if key == "faster_rcnn":
        options |= {"rpn_pre_nms": (12000, 6000), "rpn_post_nms": (2000, 300), "rpn_min_size": 16.0}
    else:
        options["max_proposals"] = (max_proposals, max_proposals)
    detector = GENERATIONS[key].cls(**options)
    if isinstance(detector, RCNN):  # so that they compute, as they do in a trained one
        for part in (detector.roi_heads.svms, detector.roi_heads.box_regressors):
            part.trained.fill_(True)
    return Contender(key, detector.eval(), None)


def place(contender: Contender, device: torch.device) -> None:
    """Put a detector onto the device, where all of them compute in float32."""
    contender.detector.to(device)
    if isinstance(contender.detector, RCNN):
        contender.detector.reader.bf16 = False
