"""Proposal methods: which options there are, what they become in checkpoints and stores, and a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from detkit.classes import build
from detkit.errors import ConfigError
from detkit.proposals import (
    ProposalMethod,
    SelectiveSearch,
    SlidingWindows,
    StoredRPN,
    selective_search,
)
from detkit.proposals.methods import describe, image_seed
from detkit.proposals.selective_search import SearchParameters
from detkit.settings import to_plain

#: Selective search's parameters, those that must be given.
OWN: dict[str, Any] = {"colour_spaces": ["lab"], "ks": [50], "strategies": [["fill"]], "min_sizes": [20]}


@dataclass(frozen=True)
class Grid(ProposalMethod):
    """A user's own."""

    step: int = 16

    def __call__(self, image: np.ndarray, image_id: str | int | None = None) -> np.ndarray:
        corners = np.mgrid[0 : image.shape[1] : self.step, 0 : image.shape[0] : self.step].reshape(2, -1).T
        return np.concatenate([corners, corners + self.step], axis=1)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (SelectiveSearch, {"mode": "slow"}, "mode of selective search: there is no 'slow'.*single, fast, quality"),
        (SelectiveSearch, {"parameters": "matlab"}, "parameters of selective search: there is no 'matlab'"),
        (SelectiveSearch, {"parameters": {"ks": [1]}}, "colour_spaces, ks, strategies, min_sizes are needed"),
        (SelectiveSearch, {"parameters": {"hue": 1}}, "parameters of selective search are colour_spaces.* are hue"),
        (SelectiveSearch, {"parameters": OWN | {"ks": [0]}}, "ks of selective search: 0.0 must be above 0"),
        (SelectiveSearch, {"parameters": OWN | {"ks": [1, 2]}}, "as many min_sizes as ks"),
        (SelectiveSearch, {"seed": None}, "seed of selective search must be a whole number, not None"),
        (SelectiveSearch, {"seed": 1.5}, "seed of selective search must be a whole number, not 1.5"),
        (SelectiveSearch, {"seed": -1}, "seed of selective search: -1 must be at least 0"),
        (
            SelectiveSearch,
            {"resize_width": 10**7},
            "resize_width of selective search: 10000000 must be",
        ),
        (SelectiveSearch, {"max_boxes": 0}, "max_boxes of selective search: 0 must be at least 1"),
        (SelectiveSearch, {"min_side": -2}, "min_side of selective search: -2 must be at least 0"),
        (SlidingWindows, {"stride": 1e-9}, "stride of sliding windows: 1e-09 must be at least 1"),
        (SlidingWindows, {"scales": []}, "scales of sliding windows must be a list of numbers above 0"),
        (SlidingWindows, {"ratios": [1, -1]}, "ratios of sliding windows must be a list"),
        (SlidingWindows, {"scales": 32}, "scales of sliding windows must be a list of numbers above 0, not 32"),
        (StoredRPN, {"max_boxes": 0}, "max_boxes of StoredRPN: 0 must be at least 1"),
    ],
)
def test_values_that_make_no_sense(method: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        method(**options)


@pytest.mark.parametrize(
    "method",
    [
        SelectiveSearch(min_side=20, seed=3),
        SelectiveSearch(parameters=SearchParameters(("lab",), (50,), (("fill",), ("size",)), (20,))),
        SlidingWindows(scales=[16, 32], stride=8),
        StoredRPN(max_boxes=4),
        Grid(step=9),
    ],
)
def test_to_plain_values_and_back(method: ProposalMethod) -> None:
    plain = to_plain(method)
    assert plain["class_path"].endswith(f".{type(method).__name__}")
    again = build(plain, ProposalMethod)
    assert again == method and hash(again) == hash(method) and to_plain(again) == plain


def test_one_value_is_written_in_one_way() -> None:
    assert SelectiveSearch(min_side=20) == SelectiveSearch(min_side=20.0)
    assert SlidingWindows(scales=[16, 32]) == SlidingWindows(scales=(16.0, 32.0))
    own = SearchParameters(("lab",), (50.0,), (("fill",),), (20,), sigma=0.8)
    assert SelectiveSearch(parameters=OWN) == SelectiveSearch(parameters=own)
    assert repr(to_plain(SelectiveSearch(min_side=20))) == repr(to_plain(SelectiveSearch(min_side=20.0)))


def test_they_give_what_their_functions_give() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    method = SelectiveSearch(mode="single", max_boxes=20, seed=5)
    for image_id in ("cat", 7, None):
        seed = 5 if image_id is None else image_seed(5, image_id)
        expected = selective_search(image, mode="single", max_boxes=20, seed=seed)
        assert torch.equal(method(image, image_id), expected)
    assert not torch.equal(method(image, "cat"), method(image, "dog"))
    assert image_seed(5, "cat") != image_seed(6, "cat")
    with pytest.raises(ConfigError, match="StoredRPN makes none from pixels; make a store with `detkit propose`"):
        StoredRPN()(image)


def test_in_words() -> None:
    assert describe(**to_plain(SelectiveSearch(max_boxes=9))) == (
        "SelectiveSearch (max_boxes 9, mode fast, parameters opencv, resize_width 500, seed 0)"
    )
    assert describe(**to_plain(StoredRPN())) == "StoredRPN"
