"""Small images by formula, the same everywhere: smooth, noisy, flat, striped, with many equal differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def noise(height: int, width: int, channels: int = 3, seed: int = 1) -> np.ndarray:
    """uint8 (H, W, C): numbers without a pattern (splitmix64 of their places)."""
    mixed = np.arange(1, height * width * channels + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15 + 2 * seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed >> np.uint64(56)).astype(np.uint8).reshape(height, width, channels)


def blobs(height: int, width: int, channels: int = 3, levels: int = 256, seed: int = 1) -> np.ndarray:
    """uint8 (H, W, C): waves of each channel with some noise, in so many levels."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    out = np.empty((height, width, channels), np.int64)
    for c in range(channels):
        a, b = 3 + (seed + c) % 5, 2 + (seed + 2 * c) % 7
        out[..., c] = ((x * a) // 4 % 64) * ((y * b) // 5 % 48) // 13 + 40 * c
    out = (out + noise(height, width, channels, seed) // 8) % 256
    return (out * levels // 256 * (255 // max(levels - 1, 1))).astype(np.uint8)


def examples() -> dict[str, np.ndarray]:
    """RGB images (H, W, 3) by name."""
    rows = np.arange(24, dtype=np.uint8)[:, None, None]
    return {
        "blobs": blobs(40, 52),
        "three_levels": blobs(45, 31, levels=3, seed=4),
        "noise": noise(24, 33, seed=7),
        "flat": np.full((17, 23, 3), 90, np.uint8),
        "gradient": np.broadcast_to(rows * 10, (24, 36, 3)).copy(),
        "stripe": blobs(1, 60, seed=2),
        "pixel": np.array([[[3, 200, 80]]], np.uint8),
    }


def cases() -> Iterator[tuple[str, np.ndarray, float, float, int]]:
    """Names, images (H, W, C) of three channels and of one, k, sigma and min_size of a segmentation."""
    for name, image in examples().items():
        for kind, channels in (("rgb", image), ("red", np.ascontiguousarray(image[..., :1]))):
            for k in (20.0, 150.0):
                for sigma in (0.001, 0.8):  # the first does not smooth: equal differences in plenty
                    for least in (4, 30):
                        yield f"{name}-{kind}-{k:g}-{sigma:g}-{least}", channels, k, sigma, least
