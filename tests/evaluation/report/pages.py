"""Small sets to report on, with image files, and the report of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from detkit.evaluation.analysis import Analysis, analyse
from detkit.evaluation.evaluation_set import EvaluationSet, ImageId
from detkit.evaluation.protocol import Protocol
from detkit.evaluation.report import write_report
from tests.evaluation.sets import Found, Image, Thing, flat

#: Names as strangers' files may have them.
NASTY = [
    '<script>console.error("a class name was run")</script>',
    'a & "b" \' </svg></title><img src=x onerror=console.error(1)>',
    "_$x^2$ {{ 7*7 }}",
    "日本語 ☃",
    "x" * 300,
    "half a character \udc80, a bell \x07\nand a new line",
]


def named(images: Sequence[tuple[ImageId, Image]]) -> EvaluationSet:
    """The set of these images by these ids."""
    return replace(flat([image for _, image in images]), image_ids=[image_id for image_id, _ in images])


def random_set(seed: int, classes: int, images: int = 12, ids: Sequence[ImageId] | None = None) -> EvaluationSet:
    """Images of 120 x 90 pixels with every kind of error, ignored objects, and an image without objects."""
    rng = np.random.default_rng(seed)

    def box() -> tuple[float, float, float, float]:
        x, y, w, h = rng.uniform((0, 0, 12, 12), (80, 60, 40, 30))
        return x, y, w, h

    result: list[Image] = []
    for index in range(images):
        count = 0 if index == 1 else rng.integers(1, 5)
        things = [
            Thing(box(), int(rng.integers(1, classes + 1)), rng.random() < 0.1, rng.random() < 0.05)
            for _ in range(count)
        ]
        found = []
        for thing in things:
            if rng.random() < 0.8:
                x, y, w, h = np.array(thing.box) + rng.normal(0, 1, 4) * rng.choice([0.5, 6.0])
                label = thing.label if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
                found.append(Found((x, y, max(w, 3.0), max(h, 3.0)), label, float(rng.uniform(0.3, 1))))
                if rng.random() < 0.2:
                    found.append(Found((x + 1, y, max(w, 3.0), max(h, 3.0)), label, float(rng.uniform(0, 0.5))))
        if rng.random() < 0.5:
            found.append(Found(box(), int(rng.integers(1, classes + 1)), float(rng.uniform(0, 0.9))))
        result.append((things, found))
    return named(list(zip(range(images) if ids is None else ids, result, strict=True)))


def write_images(folder: Path, ids: Sequence[ImageId]) -> dict[ImageId, Path]:
    """An image file for each id."""
    folder.mkdir()
    paths = {}
    for index, image_id in enumerate(ids):
        paths[image_id] = folder / f"picture {index} #é%20.png"
        PILImage.linear_gradient("L").resize((120, 90)).save(paths[image_id])
    return paths


def metrics_of(
    evaluation_set: EvaluationSet, names: Sequence[str], protocol: str = "coco", **more: Any
) -> dict[str, Any]:
    """What `detkit test` would have as metrics."""
    rule = Protocol(protocol)
    numbers = rule.evaluate(evaluation_set, len(names))
    return {
        **{key: value for key, value in numbers.items() if isinstance(value, float)},
        "map_per_class": dict(zip(names, numbers["map_per_class"].tolist(), strict=True)),
        "num_images": len(evaluation_set),
        "protocol": rule.description,
        "checkpoint": Path("runs/toy/best.ckpt"),
        "data": "Toys(toys/)",
        "split": "test",
        "detkit": "1.2.3",
        "nothing": math.nan,
        **more,
    }


def report(
    folder: Path,
    evaluation_set: EvaluationSet,
    names: Sequence[str],
    images: Any = None,
    baseline: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[str, Analysis]:
    """Writes a report; the page's text, and the analysis it is of."""
    analysis = analyse(evaluation_set, names)
    metrics = metrics_of(evaluation_set, names, **more)
    path = write_report(folder, metrics, evaluation_set, analysis, images or {}, "Test of toys", baseline)
    assert path == folder / "index.html"
    return path.read_text(encoding="utf-8"), analysis
