"""Augmentation of training samples, with every per-box field kept in step.

A pipeline is a list of albumentations transforms. They get the boxes together with a row
number as the only label: labels, difficult, crowd and area are picked by it afterwards, so
none of them can be reordered, lost or rounded (albumentations carries labels as float32).
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detkit.errors import ConfigError

# Its look-up of newer versions on the network must be off before anyone imports it.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

Item = dict[str, Any]
"""A sample on its way: "image" uint8 (H, W, 3), "boxes" float32 (N, 4), further per-box arrays
of length N, and perhaps "proposals" float32 (P, 4), which follows as the boxes do."""

PER_BOX = ("boxes", "labels", "difficult", "crowd", "area")


class HorizontalFlip:
    """Mirror left and right half of the time: the default, as in all three papers.

    Args:
        p: probability, 0..1.
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, item: Item, seed: int) -> Item:
        if np.random.default_rng(seed).random() >= self.p:
            return item
        width = item["image"].shape[1]
        item = {**item, "image": item["image"][:, ::-1]}
        for name in ("boxes", "proposals"):
            if name in item:
                x1, y1, x2, y2 = item[name].T
                item[name] = np.stack([width - x2, y1, width - x1, y2], axis=1)
        return item


class AlbumentationsPipeline:
    """A list of albumentations transforms, built when first used.

    Args:
        transforms: transforms, or mappings `{"class_path": ..., "init_args": {...}}`.
        min_area: boxes with less area than this (square pixels) after a transform are dropped.
        min_visibility: boxes that keep less than this share of their area are dropped, 0..1.
    """

    def __init__(self, transforms: Sequence[Any], min_area: float = 1.0, min_visibility: float = 0.0) -> None:
        self.transforms = list(transforms)
        self.min_area, self.min_visibility = min_area, min_visibility
        self._compose: Any = None

    def __call__(self, item: Item, seed: int) -> Item:
        """The augmented item; a pure function of item and seed."""
        compose = self.build()
        compose.set_random_seed(seed % 2**32)
        count = len(item["boxes"])
        proposals = item.get("proposals", np.zeros((0, 4), np.float32))
        boxes = np.concatenate([item["boxes"], proposals]).astype(np.float32)
        result = compose(image=np.ascontiguousarray(item["image"]), bboxes=boxes, index=np.arange(len(boxes)))
        image = result["image"]
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise ConfigError(
                f"transforms: the image came out as {type(image).__name__} {getattr(image, 'dtype', '')} instead of "
                "uint8 (H, W, 3); leave Normalize, ToFloat, ToGray(1) and ToTensorV2 out, the detector does their work"
            )
        kept = np.asarray(result["index"]).astype(np.int64).reshape(-1)
        boxes = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
        # A sliver that passes the area test can still be thinner than a pixel.
        solid = (boxes[:, 2:] - boxes[:, :2] >= 1.0).all(1)
        kept, boxes = kept[solid], boxes[solid]
        first = kept < count
        output = {**item, "image": image, "boxes": boxes[first]}
        for name in PER_BOX[1:]:
            if name in item:
                output[name] = item[name][kept[first]]
        if "area" in item:
            output["area"] = _scaled_area(item, boxes[first], kept[first])
        if "proposals" in item:
            output["proposals"] = boxes[~first]
        return output

    def build(self) -> Any:
        """The albumentations.Compose.

        Raises:
            ConfigError: an unknown class_path, or arguments that the transform does not take.
        """
        if self._compose is None:
            import albumentations  # takes seconds: only where it is used

            parameters = albumentations.BboxParams(
                format="pascal_voc",
                label_fields=["index"],
                clip=True,
                filter_invalid_bboxes=True,
                min_area=max(self.min_area, 1.0),
                min_visibility=self.min_visibility,
            )
            steps = [instantiate(transform) for transform in self.transforms]
            for step in steps:
                if not isinstance(step, albumentations.BasicTransform | albumentations.BaseCompose):
                    raise ConfigError(f"transforms: {step!r} is no albumentations transform")
            self._compose = albumentations.Compose(steps, bbox_params=parameters)
        return self._compose


def _scaled_area(item: Item, boxes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The annotation's areas, changed by the factor by which their boxes changed."""
    before = item["boxes"][rows]
    old = (before[:, 2:] - before[:, :2]).prod(1)
    new = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return (item["area"][rows] * new / np.maximum(old, 1e-6)).astype(np.float32)


def instantiate(spec: Any) -> Any:
    """A transform from `{"class_path", "init_args"}`; anything that is no mapping is passed through.

    Raises:
        ConfigError: as `AlbumentationsPipeline.build`.
    """
    if hasattr(spec, "as_dict"):  # jsonargparse's Namespace
        spec = spec.as_dict()
    if not isinstance(spec, Mapping):
        if not callable(spec):
            raise ConfigError(f"transforms: {spec!r} is no transform; write class_path and init_args")
        return spec
    path = spec.get("class_path")
    unknown = sorted(set(spec) - {"class_path", "init_args"})
    if not isinstance(path, str) or unknown:
        raise ConfigError(f"transforms: each entry needs class_path and may have init_args, got {dict(spec)}")
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module or "albumentations"), name)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(f"transforms: no class {path!r}; for example albumentations.HorizontalFlip") from None
    arguments = _resolve(spec.get("init_args") or {})
    try:
        with warnings.catch_warnings():
            # albumentations warns about an unknown argument and goes on without it.
            warnings.filterwarnings("error", message=r".*are not valid for transform.*")
            return cls(**arguments)
    except Exception as error:
        raise ConfigError(f"transforms: {path} does not take {arguments}: {error}") from error


def _resolve(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with nested transforms (as of OneOf) built."""

    def one(value: Any) -> Any:
        if isinstance(value, Mapping) and "class_path" in value:
            return instantiate(value)
        return [one(each) for each in value] if isinstance(value, list) else value

    return {name: one(value) for name, value in arguments.items()}


def make_transform(transforms: Sequence[Any] | None) -> HorizontalFlip | AlbumentationsPipeline | None:
    """None: the default flip; an empty list: no augmentation; else the pipeline."""
    if transforms is None:
        return HorizontalFlip()
    return AlbumentationsPipeline(transforms) if len(transforms) else None
