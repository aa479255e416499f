"""The ways to make proposals: selective search, sliding windows, stores of an RPN's, and whatever a user derives."""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from detkit.errors import ConfigError
from detkit.proposals.selective_search import SearchParameters, parameters_of, selective_search
from detkit.proposals.sliding_windows import sliding_windows
from detkit.settings import Configurable, check_range

Mode = Literal["single", "fast", "quality"]
ParameterSet = Literal["opencv", "paper"]


class ProposalMethod(Configurable, ABC):
    """A way to make proposals from an image.

    A subclass is a frozen dataclass; its fields are the method's options, plain values that a config can hold. The same
    image, id and options give the same boxes, in any thread or process.
    """

    #: False for a method that looks at the image's size alone: no image is read for it then.
    needs_pixels: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, image: np.ndarray, image_id: str | int | None = None) -> np.ndarray | Tensor:
        """The boxes of an image.

        Args:
            image: uint8 RGB (H, W, 3).
            image_id: of the data set; for methods that draw random numbers, see `image_seed`. None where it has none.

        Returns:
            (P, 4) in pixels, x1 y1 x2 y2, half-open, best first.
        """


@dataclass(frozen=True)
class SelectiveSearch(ProposalMethod):
    """Selective search; see `detkit.proposals.selective_search.search.selective_search`.

    Args:
        mode: single (hundreds of boxes), fast (one to two thousand) or quality (several thousand, four times as long).
        max_boxes: at most so many, the first ones; null: all.
        min_side: boxes with a shorter side are dropped, in pixels of the image as it is searched; null: 0 with the
            opencv parameters, 20 with the paper's.
        parameters: opencv, paper, or numbers of your own, with which mode does not count.
        resize_width: a wider image is searched at this width; null: as it is.
        seed: of the random part of the boxes' order, together with the image's id.
    """

    mode: Mode = "fast"
    max_boxes: int | None = None
    min_side: float | None = None
    parameters: ParameterSet | SearchParameters = "opencv"
    resize_width: int | None = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.parameters, SearchParameters | Mapping):
            parameters_of("opencv", self.mode)  # refuses what is unknown
            object.__setattr__(self, "parameters", _checked_parameters(self.parameters))
        else:
            parameters_of(self.parameters, self.mode)
        for name, low in (("max_boxes", 1), ("resize_width", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) and (value is not None or name == "seed"):
                raise ConfigError(f"{name} of selective search must be a whole number, not {value!r}")
            check_range(f"{name} of selective search", value, low, 32768 if name == "resize_width" else math.inf)
        check_range("min_side of selective search", self.min_side, 0)
        if self.min_side is not None:
            object.__setattr__(self, "min_side", float(self.min_side))  # 20 and 20.0 are one option

    def __call__(self, image: np.ndarray, image_id: str | int | None = None) -> Tensor:
        """See `ProposalMethod`."""
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        return selective_search(image, **options | {"seed": image_seed(self.seed, image_id)})


@dataclass(frozen=True)
class SlidingWindows(ProposalMethod):
    """Windows of every scale and ratio all over the image; see `detkit.proposals.sliding_windows`.

    Args:
        scales: square root of a window's area, in pixels.
        ratios: height over width.
        stride: from one window to the next along both axes, in pixels; at least 1.
    """

    needs_pixels: ClassVar[bool] = False

    scales: tuple[float, ...] = (64.0, 128.0, 256.0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    stride: float = 32.0

    def __post_init__(self) -> None:
        for name in ("scales", "ratios"):
            values = getattr(self, name)
            if not isinstance(values, Sequence) or not values or not all(0 < value < math.inf for value in values):
                raise ConfigError(f"{name} of sliding windows must be a list of numbers above 0, not {values!r}")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        check_range("stride of sliding windows", self.stride, 1)
        object.__setattr__(self, "stride", float(self.stride))

    def __call__(self, image: np.ndarray, image_id: str | int | None = None) -> Tensor:
        """See `ProposalMethod`."""
        return sliding_windows(image.shape[:2], self.scales, self.ratios, self.stride)


@dataclass(frozen=True)
class StoredRPN(ProposalMethod):
    """Proposals of a Faster R-CNN's region proposal network, from a store that `detkit propose` has made.

    Args:
        max_boxes: at most so many an image; null: as many as the detector itself uses, its ``rpn.post_nms``.
        checkpoint: hash of the checkpoint's file; `detkit propose` fills it in. Null: any store that is there.
        precision: of the network, as Lightning's Trainer names it; `detkit propose` fills it in.
    """

    max_boxes: int | None = None
    checkpoint: str | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        check_range("max_boxes of StoredRPN", self.max_boxes, 1)

    def __call__(self, image: np.ndarray, image_id: str | int | None = None) -> Tensor:
        """Not without the network: raises ConfigError."""
        raise ConfigError(
            "an image came without proposals, and StoredRPN makes none from pixels; make a store with `detkit propose` "
            "and name it as proposals.path, or set proposals.method: SelectiveSearch"
        )


def _checked_parameters(given: SearchParameters | Mapping[str, Any]) -> SearchParameters:
    """Numbers of a user's own, from Python or as a checkpoint holds them."""
    values = asdict(given) if isinstance(given, SearchParameters) else dict(given)
    known = [each.name for each in fields(SearchParameters)]
    needed = ("colour_spaces", "ks", "strategies", "min_sizes")
    if set(values) - set(known) or set(needed) - set(values):
        raise ConfigError(
            f"parameters of selective search are {', '.join(known)}, of which {', '.join(needed)} are needed; given "
            f"are {', '.join(sorted(values)) or 'none'}"
        )
    for name in needed:
        values[name] = tuple(tuple(each) if isinstance(each, list) else each for each in values[name])
    values["ks"] = tuple(float(k) for k in values["ks"])
    own = SearchParameters(**values)
    if len(own.ks) != len(own.min_sizes) or not own.colour_spaces or not own.strategies:
        raise ConfigError(
            "parameters of selective search need a colour space and a strategy at least, and as many min_sizes as ks; "
            f"they have colour_spaces {own.colour_spaces}, strategies {own.strategies}, ks {own.ks}, min_sizes "
            f"{own.min_sizes}"
        )
    for name, number in (*(("ks", k) for k in own.ks), ("sigma", own.sigma)):
        check_range(f"{name} of selective search", number, 0, open_low=True)
    return own


def describe(class_path: str, init_args: Mapping[str, Any]) -> str:
    """A method's name and options, of what `to_plain` gives; those that are null are left out."""
    words = [f"{name} {value}" for name, value in sorted(init_args.items()) if value is not None]
    name = class_path.rpartition(".")[2]
    return f"{name} ({', '.join(words)})" if words else name


def image_seed(seed: int, image_id: str | int | None) -> int:
    """The seed of one image, 0..2**32 - 1: a function of a method's seed and the image's id; the seed without an id."""
    if image_id is None:
        return seed
    word = zlib.crc32(str(image_id).encode("utf-8", "surrogatepass"))
    return int(np.random.SeedSequence((seed, word)).generate_state(1)[0])
