"""A detector as one function of tensors, and its trace by `torch.export`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detkit.__about__ import __version__
from detkit.deploy.description import Description
from detkit.detectors.base import RegionDetector
from detkit.detectors.fast_rcnn import FastRCNN
from detkit.errors import ConfigError

#: Limits of the graph's shapes.
MOST_IMAGES, LONGEST_SIDE = 64, 32768


class DetectionGraph(nn.Module):
    """From images to detections, by the very functions that Python calls.

    Args:
        detector: a Fast or Faster R-CNN.

    Raises:
        ConfigError: R-CNN, whose proposals are warped one by one, or a setting that works only in Python.
    """

    def __init__(self, detector: RegionDetector) -> None:
        super().__init__()
        if not isinstance(detector, RegionDetector):
            raise ConfigError(f"{type(detector).__name__} cannot be exported; Fast R-CNN and Faster R-CNN can")
        if isinstance(detector, FastRCNN) and (detector.dedup_stride is not None or len(detector.test_scales)):
            raise ConfigError("with dedup_stride or test_sizes a Fast R-CNN cannot be exported; set both to null")
        if detector.roi_heads.detection.max_candidates is not None and not isinstance(detector, FastRCNN):
            raise ConfigError("with detection.max_candidates a Faster R-CNN cannot be exported; set it to null")
        self.detector = detector

    def forward(self, images: Tensor, proposals: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detections of all images, one image after the other, best first in each.

        Args:
            images: uint8 (N, 3, H, W), RGB.
            proposals: float32 (P, 4), of Fast R-CNN, for one image, in its pixels.

        Returns:
            boxes float32 (D, 4) in the images' pixels, scores (D,), labels int64 (D,) from 1, and the number of the
            image, int64 (D,).
        """
        encoded = self.detector.encode_images(self.detector.preprocessing(images))
        batch = [] if proposals is None else [{"proposals": proposals}]
        return self.detector.find(batch, encoded).limited()


def describe(detector: RegionDetector, source: str) -> Description:
    """What the file of a detector says of it; ``source`` is the name of the checkpoint."""
    detection = detector.roi_heads.detection
    return Description(
        type(detector).__name__,
        list(detector.class_names),
        list(detector.category_ids or range(1, detector.num_classes + 1)),
        detection.score_threshold,
        detection.max_detections,
        detector.given.settings.max_boxes[1] or 0 if isinstance(detector, FastRCNN) else 0,
        source,
        __version__,
    )


@torch.no_grad()
def trace(graph: DetectionGraph) -> ExportedProgram:
    """The graph's operations, for any height, width and number of images (of Fast R-CNN: one image).

    Raises:
        ConfigError: a part of the detector, such as a user's own backbone, cannot be traced.
    """
    sides = {2: Dim("height", min=1, max=LONGEST_SIDE), 3: Dim("width", min=1, max=LONGEST_SIDE)}
    if isinstance(graph.detector, FastRCNN):
        images = torch.zeros(1, 3, 200, 300, dtype=torch.uint8)
        example: tuple[Tensor, ...] = images, torch.tensor([[0.0, 0, 100, 100], [50, 50, 200, 150]])
        # With more of them a branch of Python's would cut them off; `ExportedModel` does.
        limit = graph.detector.given.settings.max_boxes[1]
        shapes: tuple[dict[int, Dim], ...] = (
            sides,
            {0: Dim("proposals", min=2) if limit is None else Dim("proposals", min=2, max=max(limit - 1, 2))},
        )
    else:
        example = (torch.zeros(2, 3, 200, 300, dtype=torch.uint8),)
        shapes = ({0: Dim("batch", min=1, max=MOST_IMAGES), **sides},)
    try:
        return torch.export.export(graph.eval(), example, dynamic_shapes=shapes, strict=False)
    except RuntimeError as error:  # of the tracer's own classes
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"the detector cannot be traced for images of any size by torch.export: {reason}; PyTorch is "
            f"{torch.__version__}, a newer one may do it"
        ) from error
