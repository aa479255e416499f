from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from detkit.boxes.anchor_fit import RATIOS, best_iou, fit_anchors

SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)


@given(st.integers(0, 10_000))
def test_the_best_overlap_is_torchvisions_of_boxes_with_one_centre(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(1, 6, (20, 2)))
    anchors = np.array([(size / ratio**0.5, size * ratio**0.5) for size in SIZES for ratio in RATIOS[0]])
    objects, anchors = (torch.from_numpy(np.concatenate([-each / 2, each / 2], 1)) for each in (sides, anchors))
    expected = box_iou(objects, anchors).max(1).values.numpy()
    np.testing.assert_allclose(best_iou(sides, SIZES, RATIOS[0]), expected, rtol=1e-9)


def test_what_fits_stays() -> None:
    given, better = fit_anchors(np.array([[30.0, 30.0], [100.0, 140.0], [400.0, 300.0]]), SIZES, RATIOS[0])
    assert given == better and given.share == 1


def test_small_objects_get_small_anchors_and_long_ones_long_anchors() -> None:
    sides = np.random.default_rng(0).uniform(5, 10, (100, 2))
    given, better = fit_anchors(sides, SIZES, RATIOS[0])
    assert given.share == 0 and better.share > 0.95 and better.sizes[0] < 10 and better.ratios == RATIOS[0]
    long = np.stack([np.full(50, 40.0), np.full(50, 160.0)], 1)
    given, better = fit_anchors(long, SIZES, (1.0,))
    assert given.share == 0 and better.share == 1
