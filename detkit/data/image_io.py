"""Reading an image file into the one form the project knows: uint8 RGB, upright."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from detkit.errors import DataError, ImageTypeError

if TYPE_CHECKING:
    from torch import Tensor

    ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


def read_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image of any kind Pillow knows.

    Grayscale, palette and CMYK become RGB; 16-bit values are divided by 257, so that white
    stays white; transparent pixels are laid on white. The EXIF orientation is applied,
    except where `size` says that the annotation was made on the image as it is stored.

    Args:
        path: the file.
        size: (width, height) that the annotation gives, if it gives one.

    Returns:
        uint8 (H, W, 3) RGB; a copy that may be changed.

    Raises:
        DataError: missing, unreadable or cut short.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about odd metadata
            with Image.open(path) as image:
                image.load()
                image = upright(image, size)
                return np.array(to_rgb(image))
    except FileNotFoundError:
        raise DataError(f"{path}: image file does not exist") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: image is too large to be read safely ({error}); cut it into parts") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: image cannot be read or is cut short ({error}); replace or remove it") from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of the image once upright, from the header alone; DataError if it is missing or unreadable."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: image cannot be read ({error}); replace or remove it") from error
    return (height, width) if turned else (width, height)


def upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Turned as EXIF says, unless the annotation's (width, height) fits the image only as it is stored."""
    if image.getexif().get(0x0112, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    if size is not None and turned.size != size and image.size == size:
        return image
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 16 bits scaled to 8, transparency laid on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion cuts values at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        scaled = np.clip((values + 128) // 257, 0, 255).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
        return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def as_image(image: ImageLike) -> Tensor:
    """A uint8 tensor (3, H, W) of a path, a PIL image, an RGB array (H, W, 3) uint8 or such a tensor.

    Raises:
        ImageTypeError: for anything else.
        DataError: for a file that cannot be read.
    """
    import torch

    from detkit.features.preprocessing import check_image

    if isinstance(image, str | os.PathLike):
        image = read_image(image)
    elif isinstance(image, Image.Image):
        image = np.array(to_rgb(upright(image, None)))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageTypeError(
                f"image is a {image.dtype} array of shape {image.shape}; wanted is uint8 of shape (H, W, 3), RGB"
            )
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    check_image(image)
    return image
