"""A synthetic detection set of COCO val2017's size and structure, the same for every seed and machine.

Objects: areas spread as COCO's (some 41 % small, 34 % medium, 24 % large), classes as unequally frequent, one in a
hundred a crowd. Detections: most images have the full hundred; they lie around objects, several to an object, and
score by how well they lie, some in the wrong class; the rest is noise with low scores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEIGHT = 640, 480
OBJECTS_PER_IMAGE = 7.32
"""36,600 objects in 5,000 images."""

Arrays = dict[str, np.ndarray]


def make(num_images: int, num_classes: int = 80, per_image: int = 100, seed: int = 0) -> Arrays:
    """The set as flat arrays.

    Returns:
        image_ids (I,), category_ids (K,) int64; of G objects and D detections, image by image: images and
        detected_images (position in image_ids), categories and detected_categories (position in category_ids), boxes
        and detected_boxes (N, 4) x, y, width, height, to hundredths of a pixel as in COCO's files; area, crowd, scores.
    """
    rng = np.random.default_rng(seed)
    objects = _objects(rng, num_images, num_classes)
    return {
        "image_ids": np.sort(rng.choice(600_000, num_images, replace=False)),
        "category_ids": np.sort(rng.choice(np.arange(1, num_classes * 9 // 8 + 1), num_classes, replace=False)),
        **objects,
        **_detections(rng, objects, num_images, num_classes, per_image),
    }


def _objects(rng: np.random.Generator, num_images: int, num_classes: int) -> Arrays:
    # A few images have dozens of objects, one in a hundred none.
    weights = rng.gamma(1.6, size=num_images) * (rng.random(num_images) > 0.01)
    counts = rng.multinomial(round(OBJECTS_PER_IMAGE * num_images), weights / weights.sum())
    images = np.repeat(np.arange(num_images), counts)
    count = len(images)
    frequency = 1 / np.arange(1, num_classes + 1) ** 0.9
    side = np.exp(rng.normal(np.log(50), 1.1, count))
    crowd = rng.random(count) < 0.01
    side[crowd] *= 2.5
    ratio = np.exp(rng.normal(0, 0.5, count))
    sides = np.minimum(np.stack((side * ratio, side / ratio), axis=1), (WIDTH, HEIGHT))
    corner = rng.random((count, 2)) * ((WIDTH, HEIGHT) - sides)
    boxes = np.round(np.concatenate((corner, sides), axis=1), 2)
    # The area of COCO's annotations is that of the outline, not of the box.
    area = np.round(boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 0.9, count), 2)
    return {
        "images": images,
        "categories": rng.choice(num_classes, count, p=frequency / frequency.sum()),
        "boxes": boxes,
        "area": area,
        "crowd": crowd,
    }


def _detections(rng: np.random.Generator, objects: Arrays, num_images: int, num_classes: int, per_image: int) -> Arrays:
    images = np.repeat(np.arange(num_images), per_image)
    count = len(images)
    starts = np.searchsorted(objects["images"], np.arange(num_images))
    objects_there = np.bincount(objects["images"], minlength=num_images)[images]
    meant = starts[images] + (rng.random(count) * objects_there).astype(np.int64)
    near = (objects_there > 0) & (rng.random(count) < np.minimum(0.6, 0.08 * objects_there))
    meant[~near] = 0
    # How far off a detection is, as a part of the object's sides.
    off = rng.gamma(1.0, 0.12, count)[:, None]
    sides = objects["boxes"][meant, 2:]
    corner = objects["boxes"][meant, :2] + rng.normal(size=(count, 2)) * off * sides
    sides = sides * np.exp(rng.normal(size=(count, 2)) * off)
    noise = np.exp(rng.normal(np.log(60), 0.9, (count, 2)))
    anywhere = rng.random((count, 2)) * (WIDTH, HEIGHT) * 0.9
    boxes = np.where(near[:, None], np.concatenate((corner, sides), 1), np.concatenate((anywhere, noise), 1))
    categories = objects["categories"][meant]
    wrong = ~near | (rng.random(count) < 0.3)
    categories = np.where(wrong, rng.integers(num_classes, size=count), categories)
    quality = np.where(near, np.exp(-4 * off[:, 0]) * np.where(wrong, 0.5, 1.0), 0.1)
    scores = 1 / (1 + np.exp(-(6 * quality - 4 + rng.normal(0, 1, count))))
    order = np.lexsort((-scores, images))  # as detectors write them
    return {
        "detected_images": images[order],
        "detected_categories": categories[order],
        "detected_boxes": np.round(boxes, 2)[order],
        "scores": np.float64([str(value) for value in scores[order].astype(np.float32)]),
    }


def annotations(arrays: Arrays, outlines: bool = False) -> dict[str, Any]:
    """COCO's annotations; with `outlines` of twenty points for each object, as files have them."""
    ids, categories = arrays["image_ids"].tolist(), arrays["category_ids"].tolist()
    rows = zip(*(arrays[name].tolist() for name in ("images", "categories", "boxes", "area", "crowd")), strict=True)
    content = [
        {
            "id": number,
            "image_id": ids[image],
            "category_id": categories[category],
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        for number, (image, category, box, area, crowd) in enumerate(rows, 1)
    ]
    if outlines:
        turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        circle = np.stack((np.cos(turn), np.sin(turn)), axis=1)
        centre = arrays["boxes"][:, None, :2] + arrays["boxes"][:, None, 2:] / 2
        points = np.round(centre + circle * arrays["boxes"][:, None, 2:] / 2, 2)
        for row, outline in zip(content, points.reshape(len(content), -1).tolist(), strict=True):
            row["segmentation"] = [outline]
    return {
        "info": {"description": "made up"},
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in ids],
        "annotations": content,
        "categories": [{"id": c, "name": f"class {c}", "supercategory": "thing"} for c in categories],
    }


def results(arrays: Arrays) -> list[dict[str, Any]]:
    """COCO's results."""
    ids, categories = arrays["image_ids"].tolist(), arrays["category_ids"].tolist()
    names = ("detected_images", "detected_categories", "detected_boxes", "scores")
    return [
        {"image_id": ids[image], "category_id": categories[category], "bbox": box, "score": score}
        for image, category, box, score in zip(*(arrays[name].tolist() for name in names), strict=True)
    ]


def save(arrays: Arrays, folder: Path) -> None:
    """set.npz, and COCO's files: annotations.json and detections.json."""
    np.savez(folder / "set.npz", **arrays)
    (folder / "annotations.json").write_text(json.dumps(annotations(arrays, outlines=True)), encoding="utf-8")
    (folder / "detections.json").write_text(json.dumps(results(arrays)), encoding="utf-8")


def load(folder: Path) -> Arrays:
    """The arrays that `save` has written."""
    with np.load(folder / "set.npz") as content:
        return dict(content)


def main() -> None:
    """Make a set and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--images", type=int, default=5000, help="how many images (default: %(default)s)")
    options = parser.parse_args()
    save(make(options.images), options.folder)


if __name__ == "__main__":
    main()
