"""Reading an image file into the one form the project knows: uint8 RGB, upright."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from detkit.data.input_files import check_regular
from detkit.errors import ConfigError, DataError, ImageTypeError

if TYPE_CHECKING:
    from torch import Tensor

    ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


#: The kinds of images that are read. Pillow knows more, and opens some of them with other programs: PostScript starts
#: Ghostscript. MPO, which some phones write, is read as JPEG.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", *(["AVIF"] if find_spec("PIL.AvifImagePlugin") else []))
#: What the files of other kinds begin with that are met most often.
OTHER_KINDS = {b"%!PS": "PostScript", b"%PDF": "PDF", b"<svg": "SVG", b"<htm": "HTML", b"<!DO": "HTML", b"<?xm": "XML"}


def read_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None, exif: str = "auto") -> np.ndarray:
    """Decode an image of one of the kinds in `FORMATS`; of an animation the first picture.

    Grayscale, palette and CMYK become RGB; 16-bit values are divided by 257, so that white
    stays white; transparent pixels are laid on white.

    Args:
        path: the file.
        size: (width, height) that the annotation gives, if it gives one.
        exif: "apply" turns the image as its EXIF orientation says, "ignore" does not; "auto" turns it, except where
            `size` says that the annotation was made on the image as it is stored.

    Returns:
        uint8 (H, W, 3) RGB; a copy that may be changed.

    Raises:
        DataError, ConfigError: see `open_image`.
    """
    with open_image(path) as image:
        image.load()
        turned = image if exif == "ignore" else upright(image, size if exif == "auto" else None)
        return np.array(to_rgb(turned))


class ImageShape(NamedTuple):
    """(width, height) of an image as it is stored, and its EXIF orientation, 1 to 8."""

    size: tuple[int, int]
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) of the image once upright."""
        return self.size[::-1] if self.orientation >= 5 else self.size

    def size_for(self, stated: tuple[int, int], exif: str) -> tuple[int, int]:
        """(width, height) that `read_image` will give for an annotation's size, which may be wrong, or (0, 0)."""
        as_stored = exif == "ignore" or (exif == "auto" and stated == self.size)
        return self.size if as_stored else self.upright

    def is_unclear(self, stated: tuple[int, int]) -> bool:
        """Whether an annotation's size does not tell if the image is meant as it is stored or once upright."""
        return self.orientation != 1 and (self.size == self.upright or stated not in (self.size, self.upright))


def image_shape(path: str | os.PathLike[str]) -> ImageShape:
    """The shape of an image, from the header alone; raises as `open_image`."""
    with open_image(path) as image:
        orientation = image.getexif().get(0x0112, 1)
        return ImageShape(image.size, orientation if orientation in range(1, 9) else 1)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of the image once upright, from the header alone; raises as `open_image`."""
    return image_shape(path).upright


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file: the only place where detkit does.

    What Pillow raises while the block reads the image is a DataError, too.

    Raises:
        DataError: missing, no regular file, not of a kind in `FORMATS`, damaged, cut short, or of more pixels than
            Pillow takes for safe (2 * PIL.Image.MAX_IMAGE_PIXELS, 178,956,970); the environment variable
            DETKIT_MAX_PIXELS sets another limit, in worker processes too.
        ConfigError: DETKIT_MAX_PIXELS is no number.
    """
    check_regular(path, "image file")
    _set_max_pixels()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about odd metadata
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except UnidentifiedImageError:
        raise DataError(f"{path}: image cannot be read: {_describe(path)}; replace or remove it") from None
    except Image.DecompressionBombError as error:
        numbers = str(error).partition(",")[0]  # "Image size (n pixels) exceeds limit of n pixels"
        raise DataError(
            f"{path}: image is too large to be read safely ({numbers}); cut it into parts or, if you trust it, set the "
            "environment variable DETKIT_MAX_PIXELS to more"
        ) from None
    except Exception as error:  # of a damaged file each format raises errors of its own: struct, zlib, RuntimeError ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: image cannot be read or is cut short ({reason}); replace or remove it") from error


def _set_max_pixels() -> None:
    """Give Pillow the limit of DETKIT_MAX_PIXELS; it refuses an image of twice its own."""
    given = os.environ.get("DETKIT_MAX_PIXELS")
    if given:
        if not given.isdecimal() or len(given) > 18 or int(given) < 1:
            raise ConfigError(f"DETKIT_MAX_PIXELS is {given[:20]!r}; give a number of pixels, such as 500000000")
        Image.MAX_IMAGE_PIXELS = int(given) / 2  # type: ignore[assignment]


def _describe(path: str | os.PathLike[str]) -> str:
    """What is wrong with a file that is no image."""
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        return "the file is empty"
    kind = "HEIC" if start[4:11] == b"ftyphei" else OTHER_KINDS.get(start[:4])
    readable = ", ".join(FORMATS)
    return f"it is a {kind} file, not one of {readable}" if kind else f"it is damaged, or not one of {readable}"


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
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
        return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def as_array(image: ImageLike) -> np.ndarray:
    """A uint8 array (H, W, 3) of a path, a PIL image, such an array or a uint8 tensor (3, H, W).

    torch is not imported for it.

    Raises:
        ImageTypeError: for anything else, or an image without pixels.
        DataError: for a file that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.array(to_rgb(upright(image, None)))
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is not None and isinstance(image, torch.Tensor):
        from detkit.features.preprocessing import check_image

        check_image(image)
        image = image.permute(1, 2, 0).cpu().numpy()
    wanted = "wanted is an array uint8 of shape (H, W, 3), RGB, or a tensor (3, H, W)"
    if not isinstance(image, np.ndarray):
        raise ImageTypeError(f"image is a {type(image).__name__}; {wanted}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageTypeError(f"image is a {image.dtype} array of shape {image.shape}; {wanted}")
    return np.require(image, requirements=["C", "W"])  # a copy of one that is read-only: torch would warn


def as_image(image: ImageLike) -> Tensor:
    """A uint8 tensor (3, H, W) of a path, a PIL image, an RGB array (H, W, 3) uint8 or such a tensor.

    Raises:
        ImageTypeError: for anything else.
        DataError: for a file that cannot be read.
    """
    import torch

    from detkit.features.preprocessing import check_image

    if isinstance(image, str | os.PathLike | Image.Image | np.ndarray):
        image = torch.from_numpy(as_array(image)).permute(2, 0, 1)
    check_image(image)
    return image
