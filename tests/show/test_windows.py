"""Proposals on an image, and their recall."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torchvision.ops import box_iou

from detkit import show
from detkit.errors import ConfigError
from detkit.evaluation import ProposalRecall
from detkit.show.canvas import ORANGE
from detkit.show.windows import BEST

from .conftest import photo, rectangles, rounded, texts


def some_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator) * 40), dim=1)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 60), st.integers(0, 4), st.integers(0, 999))
def test_each_proposal_is_drawn_and_the_best_of_each_object_marked(count: int, objects: int, seed: int) -> None:
    boxes, truth = some_boxes(count, seed), some_boxes(objects, seed + 1)
    ax = show.proposals(photo(), boxes, truth, ax=Figure().subplots())
    assert rounded(rectangles(ax, ORANGE)) == rounded(boxes.flip(0).tolist())  # the best is drawn last
    assert ax.get_title() == f"{count} proposal{'s' if count != 1 else ''}"
    assert rounded(rectangles(ax, "white")) == rounded(truth.tolist())
    legend = [] if ax.get_legend() is None else [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["object", "best proposal of an object"][: (2 if count else 1) if objects else 0]
    if count and objects:
        overlap, index = box_iou(truth, boxes).max(1)
        assert rounded(rectangles(ax, BEST)) == rounded(boxes[index].tolist())
        assert texts(ax) == [f"IoU {value:.2f}" for value in overlap.tolist()]
    else:
        assert rectangles(ax, BEST) == []


def test_a_low_score_is_drawn_faint(ax: Axes) -> None:
    show.proposals(photo(), some_boxes(3, 0), scores=torch.tensor([0.9, 0.5, 0.0]), ax=ax)
    assert [patch.get_alpha() for patch in reversed(ax.patches)] == pytest.approx([0.9, 0.5, 0.15])


def test_recall_is_drawn_as_it_was_computed(ax: Axes) -> None:
    metric = ProposalRecall(counts=(1, 2, 4, 8, 100), iou_thresholds=(0.5, 0.7))
    targets = [{"boxes": some_boxes(3, i), "labels": torch.ones(3, dtype=torch.int64)} for i in range(4)]
    metric.update([torch.cat([some_boxes(5, 9 + i), t["boxes"]]) for i, t in enumerate(targets)], targets)
    result = metric.compute()
    show.recall({"one": result, "other": result}, iou=0.7, ax=ax)
    assert [line.get_label() for line in ax.lines] == ["one", "other"]
    for line in ax.lines:
        assert line.get_xdata().tolist() == [1, 2, 4, 8]  # an image has 8: 100 of them are the same
        assert line.get_ydata().tolist() == result["recall"][1, :4].tolist()
    assert ax.get_xscale() == "log" and "IoU 0.7" in ax.get_ylabel()
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    with pytest.raises(ConfigError, match=r"one: recall at the IoU 0.6 was not computed; there is \[0.5, 0.7\]"):
        show.recall({"one": result}, iou=0.6, ax=ax)
    with pytest.raises(ConfigError, match="nothing to draw"):
        show.recall({})
