"""Predicting from Python: paths, PIL images, arrays or tensors in, detections in their own pixels out."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detkit.errors import ImageTypeError
from detkit.features.preprocessing import check_image

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike = str | PathLike[str] | Image | np.ndarray | Tensor


def as_image(image: ImageLike) -> Tensor:
    """A uint8 tensor (3, H, W) of a path, a PIL image, an RGB array (H, W, 3) uint8 or such a tensor.

    Raises:
        ImageTypeError: for anything else.
        DataError: for a file that cannot be read.
    """
    if isinstance(image, str | PathLike):
        from detkit.data.image_io import read_image

        image = read_image(image)
    elif hasattr(image, "convert"):  # a PIL image, without importing PIL
        from detkit.data.image_io import to_rgb, upright

        image = np.array(to_rgb(upright(image, None)))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageTypeError(
                f"image is a {image.dtype} array of shape {image.shape}; wanted is uint8 of shape (H, W, 3), RGB"
            )
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    check_image(image)
    return image


class Detections(dict[str, Tensor]):
    """``boxes``, ``scores`` and ``labels`` of one image, and what the labels are called.

    Attributes:
        class_names: the name of label k is ``class_names[k - 1]``.
    """

    def __init__(self, fields: dict[str, Tensor], class_names: list[str]) -> None:
        super().__init__(fields)
        self.class_names = class_names


class PredictionMixin:
    """`predict`, for every detector."""

    class_names: list[str]

    @torch.no_grad()
    def predict(
        self, images: ImageLike | list[ImageLike], score_threshold: float = 0.0, batch_size: int = 1
    ) -> Detections | list[Detections]:
        """Detect objects.

        Args:
            images: a path, PIL image, uint8 RGB array (H, W, 3) or uint8 tensor (3, H, W), or a list of them.
            score_threshold: leave out detections with a lower score (0-1); the model's own threshold holds besides.
            batch_size: images that go through the network together; more gains nothing on a CPU.

        Returns:
            Detections (``boxes`` (N, 4) in the image's own pixels, ``scores`` (N,), ``labels`` (N,) from 1, best first,
            on the CPU), or a list of them for a list of images.
        """
        many = isinstance(images, list | tuple)
        todo = list(images) if many else [images]
        modes, results = [(module, module.training) for module in self.modules()], []
        self.eval()
        try:
            for start in range(0, len(todo), batch_size):
                batch: list[dict[str, Any]] = [{"image": as_image(i)} for i in todo[start : start + batch_size]]
                for found in self.detect(batch):
                    keep = found["scores"] >= score_threshold
                    results.append(Detections({k: v[keep].cpu() for k, v in found.items()}, self.class_names))
        finally:
            for module, training in modes:  # one by one: parts may be fixed while others learn
                module.training = training
        return results if many else results[0]
