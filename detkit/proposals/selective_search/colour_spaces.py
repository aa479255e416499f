"""The colour spaces of selective search.

"hsv", "lab", "gray", "h", "blue" and "rgi" are those of OpenCV's selective search, all in 8 bits: hue 0-179, the others
0-255; its "rgi" is red, green and gray, not normalized. OpenCV's code intends to search "h" but searches "blue": it
splits both into the same arrays, and so overwrites the hue (ximgproc, selectivesearchsegmentation.cpp). "hsv_full",
"h_full" and "normalized_rgi" are closer to the authors' (Uijlings et al. 2013, section 3.3): hue 0-255 like the other
channels, and r and g as shares of r + g + b.
"""

from __future__ import annotations

import numpy as np

from detkit.errors import ConfigError, ImageTypeError

COLOUR_SPACES = ("hsv", "lab", "gray", "h", "blue", "rgi", "hsv_full", "h_full", "normalized_rgi")


def to_colour_space(image: np.ndarray, name: str) -> np.ndarray:
    """An RGB image converted to a colour space.

    Args:
        image: uint8 (H, W, 3) RGB.
        name: one of `COLOUR_SPACES`.

    Returns:
        uint8 (H, W, C), C is 3 or 1.

    Raises:
        ConfigError: the name is unknown.
        ImageTypeError: an image of another type or shape.
    """
    import cv2

    image = as_channels(image, 3)
    if name == "lab":
        return cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    if name in ("hsv", "h", "hsv_full", "h_full"):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL if name.endswith("full") else cv2.COLOR_RGB2HSV)
        return hsv if name.startswith("hsv") else np.ascontiguousarray(hsv[..., :1])
    if name not in COLOUR_SPACES:
        raise ConfigError(f"unknown colour space {name!r}: use one of {', '.join(COLOUR_SPACES)}")
    if name == "blue":
        return np.ascontiguousarray(image[..., 2:])
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    if name == "gray":
        return gray
    if name == "rgi":
        return np.concatenate([image[..., :2], gray], axis=2)
    total = np.maximum(image.sum(axis=2, dtype=np.uint32, keepdims=True), 1)
    shares = (image[..., :2] * np.uint32(255) + total // 2) // total
    return np.concatenate([shares.astype(np.uint8), gray], axis=2)


def as_channels(image: np.ndarray, channels: int | None = None) -> np.ndarray:
    """The image, contiguous; raises ImageTypeError unless it is uint8 (H, W, C), of `channels` where that is given."""
    valid = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.size > 0
    if not valid or channels not in (None, image.shape[2]):
        is_array = isinstance(image, np.ndarray)
        shape = f"a {image.dtype} array of shape {image.shape}" if is_array else f"a {type(image).__name__}"
        raise ImageTypeError(f"a uint8 array (H, W, {channels or 'C'}) of one pixel or more is needed; this is {shape}")
    return np.ascontiguousarray(image)
