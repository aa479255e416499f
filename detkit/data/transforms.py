"""Augmentation of training samples, with every per-box field kept in step.

albumentations gets the boxes with a row number as the only label, by which the other fields are picked afterwards: it
carries labels as float32, which would round them.
"""

from __future__ import annotations

import inspect
import os
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from detkit.classes import build, did_you_mean
from detkit.data.annotations import PER_BOX
from detkit.errors import ConfigError

# Its look-up of newer versions on the network must be off before anyone imports it.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

#: Augmentations by one word, as albumentations transforms; `mosaic` joins several images and is made apart.
NAMED: dict[str, list[dict[str, Any]]] = {
    "flip": [{"class_path": "HorizontalFlip"}],
    # Brightness, contrast, saturation and hue, as in SSD (Liu et al. 2016, section 2.2).
    "color": [{"class_path": "ColorJitter", "init_args": {"p": 0.5}}],
    # Large-scale jitter (Ghiasi et al. 2021): what leaves the image is cut, what is missing is grey.
    "scale_jitter": [
        {
            "class_path": "Affine",
            "init_args": {
                "scale": [0.5, 1.6],
                "translate_percent": [-0.2, 0.2],
                "keep_ratio": True,
                "fill": 114,
                "p": 0.7,
            },
        }
    ],
    # A part of the image in which every box is whole.
    "crop": [{"class_path": "BBoxSafeRandomCrop", "init_args": {"p": 0.5}}],
}
MOSAIC = "mosaic"

#: A sample while it is augmented: "image" uint8 (H, W, 3) RGB, "boxes" (N, 4), the other per-box arrays of Annotations
#: where there are any, and "proposals" float32 (P, 4) where they are given; these are transformed as the boxes are.
Item = dict[str, np.ndarray]


class HorizontalFlip:
    """Mirror left and right with the probability `p`: the default, as in all three papers."""

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
    """A list of albumentations transforms.

    Args:
        transforms: transforms, or mappings `{"class_path": ..., "init_args": {...}}`.

    Raises:
        ConfigError: a class_path that names no albumentations transform, or arguments that it does not take.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        import albumentations  # takes seconds: only where it is used

        parameters = albumentations.BboxParams(
            format="pascal_voc", label_fields=["index"], clip=True, filter_invalid_bboxes=True, min_area=1.0
        )
        self.compose = albumentations.Compose([build_transform(spec) for spec in transforms], bbox_params=parameters)

    def __call__(self, item: Item, seed: int) -> Item:
        """The augmented item; a pure function of item and seed.

        Raises:
            ConfigError: a transform cannot be applied to this image, or changes its kind.
        """
        self.compose.set_random_seed(seed % 2**32)
        count = len(item["boxes"])
        proposals = item.get("proposals", np.zeros((0, 4), np.float32))
        boxes = np.concatenate([item["boxes"], proposals]).astype(np.float32)
        try:
            result = self.compose(image=np.ascontiguousarray(item["image"]), bboxes=boxes, index=np.arange(len(boxes)))
        except Exception as error:  # albumentations, OpenCV and NumPy raise what they happen to raise
            _explain(error, item["image"])
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
        output = {**item, "image": image} | {name: item[name][kept[first]] for name in PER_BOX if name in item}
        if "area" in item:  # changed by the factor by which the box changed
            old = (output["boxes"][:, 2:] - output["boxes"][:, :2]).prod(1)
            new = (boxes[first, 2:] - boxes[first, :2]).prod(1)
            output["area"] = (output["area"] * new / np.maximum(old, 1e-6)).astype(np.float32)
        output["boxes"] = boxes[first]
        if "proposals" in item:
            output["proposals"] = boxes[~first]
        return output


def build_transform(spec: Any) -> Any:
    """The albumentations transform that a config names; one that is built already is passed through.

    The class is looked up among what is imported already and checked before it is called, and so are the transforms
    nested in its arguments (as of OneOf): a config imports and calls nothing else.

    Args:
        spec: `{"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 0.5}}`, a class's name alone, or a
            transform. The "albumentations." may be left out.

    Raises:
        ConfigError: as `AlbumentationsPipeline`.
    """
    import albumentations

    kinds = albumentations.BasicTransform, albumentations.BaseCompose
    if isinstance(spec, kinds):
        return spec
    if isinstance(spec, str):
        words = [*NAMED, MOSAIC]
        if not hasattr(albumentations, spec) and (hint := did_you_mean(spec, words)):
            raise ConfigError(f"transforms: there is no {spec!r}{hint} The words are {', '.join(words)}")
        spec = {"class_path": spec}
    if not isinstance(spec, Mapping):
        raise ConfigError(f"transforms: {spec!r} is no albumentations transform; write class_path and init_args")
    known = {
        prefix + name: cls
        for name, cls in vars(albumentations).items()
        if isinstance(cls, type) and issubclass(cls, kinds)
        for prefix in ("albumentations.", "")
    }
    arguments = spec.get("init_args") or {}
    if isinstance(arguments, Mapping):  # `build` refuses anything else
        arguments = {name: _build_nested(value) for name, value in arguments.items()}
    try:
        with warnings.catch_warnings():
            # albumentations warns about an unknown argument and goes on without it.
            warnings.filterwarnings("error", message=r".*are not valid for transform.*")
            transform = build({**spec, "init_args": arguments}, kinds[0], known)
    except ConfigError as error:
        raise ConfigError(f"transforms: {error}") from error
    except Exception as error:  # albumentations raises what its checks of arguments happen to raise
        raise ConfigError(f"transforms: {spec['class_path']} does not take {arguments}: {error}") from error
    for name, parameter in inspect.signature(type(transform).__init__).parameters.items():
        if "Callable" in str(parameter.annotation) and arguments.get(name) is not None:
            raise ConfigError(
                f"transforms: {spec['class_path']}: {name} is a function, which a config cannot give; leave it out, or "
                "give the transform as an object in Python"
            )
    return transform


def _build_nested(value: Any) -> Any:
    """An argument with the transforms in it built."""
    if isinstance(value, Mapping) and "class_path" in value:
        return build_transform(value)
    if isinstance(value, list | tuple):
        return [_build_nested(entry) for entry in value]
    return value


def _explain(error: Exception, image: np.ndarray) -> NoReturn:
    """Raise the error of an albumentations pipeline as a ConfigError that names the transform."""
    import albumentations

    # The errors seldom say which transform of the list they come from; its method is among the calls.
    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [type(each).__name__ for each in callers if isinstance(each, albumentations.BasicTransform)]
    names += [type(each).__name__ for each in reversed(callers) if isinstance(each, albumentations.BaseCompose)]
    name = names[0] if names else "a transform"
    height, width = image.shape[:2]
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ConfigError(
        f"transforms: {name} cannot be applied to {width} x {height} pixels ({reason}); "
        "change its arguments or leave it out"
    ) from error


Transform = HorizontalFlip | AlbumentationsPipeline


def make_transform(transforms: Sequence[Any] | None) -> Transform | None:
    """None: the default flip; an empty list: no augmentation; else an `AlbumentationsPipeline`.

    Words of `NAMED` stand for the transforms there; `MOSAIC` is left to the data set.
    """
    if transforms is None:
        return HorizontalFlip()
    specs: list[Any] = []
    for each in transforms:
        specs += NAMED.get(each, [each]) if isinstance(each, str) else [each]
    specs = [each for each in specs if each != MOSAIC]
    return AlbumentationsPipeline(specs) if specs else None


def augment(transform: Transform | None, item: Item, seed: int, path: str) -> Item:
    """The item after a transform, unchanged for None; a ConfigError names the image by its ``path``."""
    if transform is None:
        return item
    try:
        return transform(item, seed)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
