"""From uint8 images of any size to one normalised batch: the only place where pixels are scaled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.errors import ConfigError, ImageTypeError
from detkit.settings import check_range

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: No side of a batch is shorter: the largest stride of the backbones, below which their last map would be empty.
SMALLEST = 32


@dataclass
class ImageBatch:
    """Resized, normalised and padded images.

    Attributes:
        tensor: float32 (N, 3, H, W); an image lies in the upper left corner, zeros pad the rest.
        sizes: (height, width) of each image in the batch, without padding; a single one stands for all images.
        original_sizes: (height, width) of each image as it came, likewise.
    """

    tensor: Tensor
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]

    def __getitem__(self, index: int) -> Tensor:
        """One image (3, h, w) without its padding."""
        height, width = self.sizes[index if len(self.sizes) > 1 else 0]
        return self.tensor[index, :, :height, :width]

    def to_batch(self, boxes: Tensor, index: int) -> Tensor:
        """Boxes (B, 4) in the original image's pixels, in those of the batch."""
        return boxes * self.scales()[index].to(boxes.device, non_blocking=True)

    def to_original(self, boxes: Tensor, index: int) -> Tensor:
        """Boxes (B, 4) in the batch's pixels, in those of the original image."""
        return boxes / self.scales()[index].to(boxes.device, non_blocking=True)

    def limits(self) -> Tensor:
        """Width, height, width, height of each image in the batch, without padding: float32 (N, 4), on the CPU."""
        return _table(self.sizes).expand(self.tensor.shape[0], 4)

    def scales(self) -> Tensor:
        """Pixels of the batch per pixel of the original image, in x, y, x, y: float32 (N, 4), on the CPU."""
        return (_table(self.sizes) / _table(self.original_sizes)).expand(self.tensor.shape[0], 4)


def _table(sizes: list[tuple[int, int]]) -> Tensor:
    """Width, height, width, height of each of (height, width)."""
    rows = [torch.stack([torch.scalar_tensor(w), torch.scalar_tensor(h)]) for h, w in sizes]
    return torch.stack(rows).repeat(1, 2)


@dataclass(frozen=True)
class ImageSettings:
    """Size and normalisation of the images.

    Args:
        min_size: pixels of an image's shorter side; several values are drawn from in training, the last serves
            otherwise; null leaves the images as they are.
        max_size: limit of its longer side; at most 32768.
        mean: per RGB channel, for values from 0 to 1; ImageNet's by default.
        std: likewise.
        divisor: height and width of a batch become multiples of it; at most 1024.
    """

    min_size: int | list[int] | None = 800
    max_size: int = 1333
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    divisor: int = 32

    def __post_init__(self) -> None:
        sizes = self.min_sizes
        if sizes is not None and (not sizes or min(sizes) < 1 or self.max_size < max(sizes)):
            raise ConfigError(
                f"image.min_size {self.min_size} must be at least 1 and at most image.max_size {self.max_size}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                f"image.mean {list(self.mean)} and image.std {list(self.std)} need three values each, std above 0"
            )
        # More would ask for terabytes. A checkpoint, which gives these numbers, may be damaged.
        check_range("image.max_size", self.max_size, 1, 32768)
        check_range("image.divisor", self.divisor, 1, 1024)

    @property
    def min_sizes(self) -> list[int] | None:
        """``min_size`` as a list."""
        if self.min_size is None:
            return None
        return [self.min_size] if isinstance(self.min_size, int) else list(self.min_size)


class Preprocessing(nn.Module):
    """Resize the shorter side to ``min_size`` (at most ``max_size`` for the longer), normalise, pad, batch.

    ``channels_last`` is the memory format of the batch, and so of the whole network's features.
    """

    def __init__(self, settings: ImageSettings, channels_last: bool = False) -> None:
        super().__init__()
        self.settings = settings
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("mean", torch.tensor(settings.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).view(3, 1, 1), persistent=False)

    def at(self, min_size: int, max_size: int) -> Preprocessing:
        """The same with another size."""
        settings = replace(self.settings, min_size=min_size, max_size=max_size)
        return Preprocessing(settings, self.memory_format == torch.channels_last)

    def forward(self, images: list[Tensor] | Tensor) -> ImageBatch:
        """Batch uint8 images (3, H_i, W_i), or images of one size (N, 3, H, W).

        Raises:
            ImageTypeError: for anything else; it says what came and what is wanted.
        """
        if not isinstance(images, Tensor):
            for image in images:
                check_image(image)
        elif images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            shape = tuple(images.shape)
            raise ImageTypeError(f"images are a {images.dtype} tensor of shape {shape}; wanted is uint8 (N, 3, H, W)")
        groups = [images] if isinstance(images, Tensor) else [image[None] for image in images]
        originals = [(group.shape[2], group.shape[3]) for group in groups]
        sizes = [self.size_of(h, w) for h, w in originals]
        height, width = (self._padded(max(sides)) for sides in zip(*sizes, strict=True))
        padded = []
        for group, (h, w) in zip(groups, sizes, strict=True):
            pixels = group.to(self.mean.device, non_blocking=True).to(self.mean.dtype)
            # In torchvision's order, so that its weights give the same bits.
            pixels.div_(255).sub_(self.mean).div_(self.std)
            if self.settings.min_size is not None:
                pixels = F.interpolate(pixels, size=(h, w), mode="bilinear", align_corners=False)
            padded.append(F.pad(pixels, (0, width - w, 0, height - h)))
        return ImageBatch(torch.cat(padded).contiguous(memory_format=self.memory_format), sizes, originals)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image of that size is resized to; drawn among ``min_sizes`` in training mode.

        In whole numbers. torchvision multiplies by a rounded scale, by which one image size in twenty loses a pixel:
        of 335 x 500 its shorter side becomes 799 instead of 800.
        """
        sides = self.settings.min_sizes
        if sides is None:
            return height, width
        side, most = sides[-1], self.settings.max_size
        if self.training and len(sides) > 1:
            side = sides[int(torch.randint(len(sides), (1,)))]
        short, long = torch.sym_min(height, width), torch.sym_max(height, width)
        resized = (torch.sym_min(each * side // short, each * most // long) for each in (height, width))
        new_height, new_width = (torch.sym_max(each, 1) for each in resized)
        return cast(int, new_height), cast(int, new_width)  # or symbols of a tracer

    def _padded(self, side: int) -> int:
        divisor = self.settings.divisor
        return _as_symbol(torch.sym_max((side + divisor - 1) // divisor, -(-SMALLEST // divisor))) * divisor


@torch.library.custom_op("detkit::as_symbol", mutates_args=())
def _as_symbol(size: int) -> int:
    """The same number; for a tracer a symbol of its own, whose terms are much shorter than those of its origin."""
    return size


@_as_symbol.register_fake
def _(size: int) -> int:
    symbol: Any = torch.library.get_ctx().new_dynamic_size(min=1)
    return symbol


def check_image(image: object) -> None:
    """Refuse, with an ImageTypeError, anything but a uint8 tensor (3, H, W) with at least one pixel."""
    wanted = "a uint8 tensor of shape (3, H, W), RGB, values 0-255"
    if not isinstance(image, Tensor):
        raise ImageTypeError(f"image is a {type(image).__name__}; wanted is {wanted}")
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ImageTypeError(f"image is a {image.dtype} tensor of shape {tuple(image.shape)}; wanted is {wanted}")
