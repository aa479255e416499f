"""What holds for every picture: it goes where it is told, and leaves nothing else behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from PIL import Image

from detkit import show
from detkit.boxes import AnchorGenerator
from detkit.evaluation.curves import ClassCurve
from detkit.features.receptive_field import ReceptiveField
from detkit.proposals.selective_search import grouping, regions, segmentation

from .conftest import photo

BOXES = torch.tensor([[5.0, 5, 40, 30], [50, 20, 90, 55]])
SEGMENTS = segmentation.segment(photo(), ks=[50.0], min_size=40)
HIERARCHY = grouping.group(regions.describe(photo(), SEGMENTS)[0])
(ANCHORS,) = AnchorGenerator([[16.0, 32.0]], [1.0], strides=[20])([(3, 5)], (60, 100))
CURVE = ClassCurve(1, np.array([0.9, 0.5]), np.array([1.0, 0.5]), np.array([0.5, 0.5]), 2)
RECALL = {"counts": [1, 10], "num_proposals": [1.0, 8.0], "iou_thresholds": [0.5], "recall": [[0.25, 0.75]]}

#: What each function is given, but for `ax`.
CALLS: dict[str, tuple[Any, ...]] = {
    "anchors": (photo(), ANCHORS, (3, 5)),
    "curves": ({"a": [1.0, 2.0], "b": [3.0, 1.0]}, "step", "loss", "losses"),
    "descent": (lambda weights: weights.square().sum(1), {"a": torch.tensor([[2.0, 1.0], [1.0, 0.5]])}),
    "grouping": (SEGMENTS.labels(), HIERARCHY, 1),
    "iou": (BOXES[0], BOXES[1], photo()),
    "margins": (torch.tensor([1.0]), torch.tensor([-2.0, -0.5])),
    "precision_recall": (CURVE, "voc10"),
    "proposals": (photo(), BOXES, BOXES[:1]),
    "receptive_field": (photo(), [ReceptiveField("c1", 1, 5, 0.5), ReceptiveField("s2", 2, 6, 1.0)]),
    "recall": ({"a": RECALL},),
    "regression": (photo(), BOXES, BOXES + 5),
    "segmentation": (SEGMENTS.labels(),),
}
FIGURES: dict[str, tuple[Any, ...]] = {
    "convolution": (torch.rand(5, 6), torch.rand(3, 3)),
    "crops": (torch.zeros(9, 3, 8, 8), [str(i) for i in range(9)]),
    "distributions": ({"a": [torch.rand(9), torch.rand(9)], "b": [torch.rand(9), torch.rand(9)]},),
    "feature_maps": (torch.rand(6, 3, 5), photo()),
    "filters": (torch.randn(9, 1, 5, 5), [str(i) for i in range(9)]),
    "max_pooling": (torch.rand(4, 6),),
    "nms": (photo(), BOXES, torch.tensor([0.5, 0.6]), 0.5),
    "objectness": (photo(), torch.rand(2, 3, 5)),
    "pooling": (torch.rand(8, 8), torch.tensor([0.0, 3, 7, 8]), 1, 2),
    "probabilities": (photo(), torch.randn(4), list("abcd"), 2),
    "warped_crops": (photo(), BOXES[0], 64),
}
#: They are drawn in tests of their own: they need a run, an analysis, or return an animation.
OTHERS = {"errors", "losses", "grouping_animation"}


def test_every_picture_is_drawn_here() -> None:
    assert set(show.__all__) == CALLS.keys() | FIGURES.keys() | OTHERS
    assert all(callable(getattr(show, name)) and getattr(show, name).__doc__ for name in show.__all__)


def settings() -> dict[str, Any]:
    return dict(matplotlib.rcParams)


@pytest.mark.parametrize("name", CALLS)
def test_a_picture_goes_on_the_axes_it_is_given(name: str, ax: Axes) -> None:
    before = settings()
    assert getattr(show, name)(*CALLS[name], ax=ax) is ax
    assert (ax.get_title() and ax.get_xlabel() and ax.get_ylabel()) or name == "iou"
    assert pyplot.get_fignums() == [] and settings() == before


@pytest.mark.parametrize("name", [*CALLS, *FIGURES])
def test_without_axes_there_is_one_new_figure(name: str) -> None:
    before = settings()
    drawn = getattr(show, name)(*(CALLS | FIGURES)[name])
    figure = drawn if name in FIGURES else drawn.figure
    assert [pyplot.figure(number) for number in pyplot.get_fignums()] == [figure]
    assert figure.get_size_inches()[0] == 7 and settings() == before
    figure.canvas.draw()  # texts and layout hold


@pytest.mark.parametrize("kind", [str, Image.fromarray, np.asarray, lambda a: torch.from_numpy(a).permute(2, 0, 1)])
def test_an_image_of_any_kind_lies_under_boxes_in_its_pixels(
    kind: Callable[[Any], Any], ax: Axes, tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(photo()).save(path)
    show.proposals(kind(path) if kind is str else kind(photo()), BOXES, ax=ax)
    (image,) = ax.images
    assert np.array_equal(image.get_array(), photo())
    assert list(image.get_extent()) == [0, 100, 60, 0]
    assert ax.get_xlim() == (0, 100) and ax.get_ylim() == (60, 0)
