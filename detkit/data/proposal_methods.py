"""The ways to make proposals that need no network, by name, and their options."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np

from detkit.data.annotations import Annotations
from detkit.data.image_io import read_image
from detkit.data.proposal_options import check_option
from detkit.errors import ConfigError
from detkit.files import to_json

#: What needs no network; the method "rpn" is the command line's.
FUNCTIONS = {"selective_search": "selective_search", "sliding_window": "sliding_windows"}


def propose(
    annotations: Annotations, index: int, method: str, options: Mapping[str, Any]
) -> tuple[np.ndarray, tuple[int, int]]:
    """The boxes (P, 4) of an image, best first, and its own (width, height).

    Args:
        annotations: the split.
        index: of the image.
        method: as in `load_or_compute`.
        options: all of the method's. Chance, where the method has any, is drawn for `seed` and the image's id.

    Raises:
        DataError: the image cannot be read.
    """
    size = (int(annotations.widths[index]), int(annotations.heights[index]))
    if method == "sliding_window":
        return np.asarray(function_of(method)(size[::-1], **options)), size
    image = read_image(annotations.path(index), size)
    boxes = propose_for_pixels(image, method, options, annotations.image_id(index))
    return boxes, (image.shape[1], image.shape[0])


def propose_for_pixels(
    image: np.ndarray, method: str, options: Mapping[str, Any], image_id: str | int | None = None
) -> np.ndarray:
    """The boxes (P, 4) of an image, best first.

    Args:
        image: uint8 RGB (H, W, 3).
        method: as in `load_or_compute`.
        options: all of the method's; see `resolve_options`.
        image_id: chance, where the method has any, is drawn for `seed` and this; None: for `seed` alone.
    """
    function, options = function_of(method), dict(options)
    if method == "sliding_window":
        return np.asarray(function(image.shape[:2], **options))
    if isinstance(options.get("parameters"), Mapping):  # numbers of one's own
        from detkit.proposals.selective_search import SearchParameters

        options["parameters"] = SearchParameters(**options["parameters"])
    if image_id is not None and options.get("seed") is not None:
        options["seed"] = image_seed(options["seed"], image_id)
    return np.asarray(function(image, **options))


def function_of(method: str) -> Callable[..., np.ndarray]:
    """The function behind a method.

    Raises:
        ConfigError: there is no such method.
    """
    if method not in FUNCTIONS:
        raise ConfigError(f"there is no method {method!r} of proposals; there are {', '.join(FUNCTIONS)}")
    from detkit import proposals

    return getattr(proposals, FUNCTIONS[method])


def resolve_options(method: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All options of a method: those given, else the function's defaults, each value written in one way.

    Raises:
        ConfigError: an option that the function does not have, or a value that it does not take.
    """
    parameters = list(inspect.signature(function_of(method), eval_str=True).parameters.values())[1:]
    defaults = {each.name: each.default for each in parameters}
    unknown = sorted(set(given or {}) - set(defaults))
    if unknown:
        raise ConfigError(f"{method} has no option {', '.join(unknown)}; it has {', '.join(defaults)}")
    options = {name: asdict(v) if is_dataclass(v) else v for name, v in (defaults | dict(given or {})).items()}
    absent = [name for name, value in options.items() if value is inspect.Parameter.empty]
    if absent:
        raise ConfigError(f"{method} needs {', '.join(absent)}")
    options = to_json(options)
    return {each.name: check_option(method, each.name, options[each.name], each.annotation) for each in parameters}


def image_seed(seed: int, image_id: str | int) -> int:
    """The seed of one image, 0..2**32 - 1: a function of the data set's seed and the image's id."""
    word = zlib.crc32(str(image_id).encode("utf-8", "surrogatepass"))
    return int(np.random.SeedSequence((seed, word)).generate_state(1)[0])


def describe(method: str, parameters: Mapping[str, Any]) -> str:
    """A method and its options in words; those that are null ask for nothing, and are left out."""
    words = [f"{name} {value}" for name, value in sorted(parameters.items()) if value is not None]
    return f"{method} ({', '.join(words)})" if words else method
