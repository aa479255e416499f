"""Mosaic: four images of the training set joined to one (Bochkovskiy et al. 2020, YOLOv4, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detkit.data.annotations import PER_BOX
from detkit.data.transforms import Item

#: The point at which the four images meet, as a share of each side.
CENTRE = (0.3, 0.7)
#: A box of which less than this share is seen is left out, as in YOLOv5.
LEAST_SHARE = 0.1


class Mosaic:
    """With the probability `p`, four images fill the quarters of one that is as large as the first.

    The quarters meet at a random point. Each image is made as large as its quarter needs, with its proportions kept,
    and cut at a random place. Per-box fields and proposals follow; `area` changes as the box does.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, load: Callable[[int], Item], index: int, size: int, seed: int) -> Item:
        """The item of an index, or the mosaic of it and three others; a function of index and seed.

        Args:
            load: reads the item of an index.
            size: number of items.
        """
        random = np.random.default_rng((seed, 1))  # another one than that of the flip
        first = load(index)
        if random.random() >= self.p or min(first["image"].shape[:2]) < 2:
            return first
        items = [first, *(load(int(other)) for other in random.integers(size, size=3))]
        order = random.permutation(4)
        height, width = first["image"].shape[:2]
        x, y = (max(int(side * random.uniform(*CENTRE)), 1) for side in (width, height))
        quarters = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
        image = np.empty((height, width, 3), np.uint8)
        parts = []
        for (x1, y1, x2, y2), number in zip(quarters, order, strict=True):
            part = _fill(items[number], x2 - x1, y2 - y1, random)
            image[y1:y2, x1:x2] = part["image"]
            for name in ("boxes", "proposals"):
                if name in part:
                    part[name] = part[name] + np.array([x1, y1, x1, y1], np.float32)
            parts.append(part)
        names = [name for name in first if name != "image"]
        return {"image": image} | {name: np.concatenate([part[name] for part in parts]) for name in names}


def _fill(item: Item, width: int, height: int, random: np.random.Generator) -> Item:
    """The item resized so that it covers width x height pixels, and cut to these at a random place."""
    import cv2  # takes a moment: only where it is used

    old_height, old_width = item["image"].shape[:2]
    factor = max(width / old_width, height / old_height)
    new_width, new_height = max(round(old_width * factor), width), max(round(old_height * factor), height)
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    image = cv2.resize(np.ascontiguousarray(item["image"]), (new_width, new_height), interpolation=method)
    left, top = (int(random.integers(more + 1)) for more in (new_width - width, new_height - height))
    scale = np.array([new_width / old_width, new_height / old_height] * 2, np.float32)
    result = {**item, "image": image[top : top + height, left : left + width]}
    for name in ("boxes", "proposals"):
        if name not in item:
            continue
        whole = item[name] * scale - np.array([left, top, left, top], np.float32)
        boxes = np.clip(whole, 0, np.array([width, height] * 2, np.float32))
        share = _areas(boxes) / np.maximum(_areas(whole), 1e-6)
        kept = (share >= LEAST_SHARE) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        result[name] = boxes[kept]
        if name == "boxes":
            result |= {field: item[field][kept] for field in PER_BOX if field in item and field != "boxes"}
            if "area" in item:
                result["area"] = (result["area"] * scale[0] * scale[1] * share[kept]).astype(np.float32)
    return result


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
