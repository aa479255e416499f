"""RoIAlign by weighted sums, held to torchvision's kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align

from detkit.features.roi_align import multiscale_roi_align


def some_rois(count: int, images: int, seed: int) -> Tensor:
    """Boxes within and around maps of some hundred pixels, some of them without extent or turned over."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randn(count, 2, generator=generator) * 150
    extent = torch.rand(count, 2, generator=generator) * 300 - 20
    image = torch.randint(images, (count, 1), generator=generator)
    return torch.cat([image.float(), corner, corner + extent], dim=1)


def by_torchvision(
    maps: list[Tensor], rois: Tensor, level: Tensor, scales: list[float], size: int, samples: int
) -> Tensor:
    """`multiscale_roi_align` by torchvision's kernel."""
    every = torch.stack([roi_align(each, rois, size, s, samples) for each, s in zip(maps, scales, strict=True)])
    return every[level, torch.arange(len(rois))]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sides=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
    size=st.integers(1, 7),
    samples=st.integers(1, 3),
    count=st.integers(0, 30),
)
def test_values_and_gradients_equal_torchvisions(
    seed: int, sides: list[tuple[int, int]], size: int, samples: int, count: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, 3, *side, generator=generator).requires_grad_() for side in sides]
    rois = some_rois(count, 2, seed)
    level = torch.randint(len(maps), (count,), generator=generator)
    scales = [1 / 2 ** (2 + i) for i in range(len(maps))]
    expected = by_torchvision(maps, rois, level, scales, size, samples)
    pooled = multiscale_roi_align(maps, rois, level, scales, size, samples)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=2e-6)
    weight = torch.randn(pooled.shape, generator=generator)
    gradients = [torch.autograd.grad((each * weight).sum(), maps) for each in (pooled, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=2e-5)
    with torch.no_grad():  # by the operator
        assert torch.equal(multiscale_roi_align(maps, rois, level, scales, size, samples), pooled)


def test_memory_format_is_channels_last() -> None:
    maps = [torch.randn(1, 8, 20, 20)]
    arguments = maps, some_rois(5, 1, 0), torch.zeros(5, dtype=torch.int64), [1 / 8], 7, 2
    assert multiscale_roi_align(*arguments).is_contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(
        torch.ops.detkit.multiscale_roi_align.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_boxes_that_are_no_numbers_read_nothing_from_elsewhere(value: float) -> None:
    maps = [torch.ones(2, 3, 9, 9)]
    rois = torch.tensor([[1.0, 0, 0, 16, 16], [1, value, 0, value, 16]])
    pooled = multiscale_roi_align(maps, rois, torch.zeros(2, dtype=torch.int64), [1 / 4], 2, 2)
    assert torch.equal(pooled[0], torch.ones(3, 2, 2))
    assert not torch.nan_to_num(pooled[1]).any()
