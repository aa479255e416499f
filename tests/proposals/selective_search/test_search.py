"""Selective search as users call it: what comes out for any image, in which order, and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detkit.errors import ConfigError, ImageTypeError
from detkit.proposals import selective_search
from detkit.proposals.selective_search import SearchParameters, parameters_of
from tests.proposals.selective_search.generated import blobs, noise

REPOSITORY = Path(__file__).parents[3]


def check(boxes: torch.Tensor, height: int, width: int) -> None:
    """Boxes in the image, none empty, none twice."""
    assert boxes.dtype == torch.float32 and boxes.ndim == 2 and boxes.shape[1] == 4
    assert len(boxes) > 0
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(boxes.unique(dim=0)) == len(boxes)


def images() -> st.SearchStrategy[np.ndarray]:
    """Any: constant, a pixel wide, noise, with an empty channel."""
    sizes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))
    constant = st.builds(lambda size, value: np.full(size, value, np.uint8), sizes, st.integers(0, 255))
    noisy = st.builds(lambda size, seed: noise(*size, seed=seed), sizes, st.integers(0, 99))
    wavy = st.builds(lambda size, levels: blobs(*size, levels=levels), sizes, st.sampled_from([2, 3, 256]))
    empty_channel = st.builds(lambda image, c: image * (np.arange(3) != c).astype(np.uint8), noisy, st.integers(0, 2))
    small = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
    return st.one_of(constant, noisy, wavy, empty_channel, small)


@given(
    image=images(),
    mode=st.sampled_from(["single", "fast", "quality"]),
    parameters=st.sampled_from(["opencv", "paper"]),
    resize_width=st.sampled_from([None, 1, 7, 500]),
)
@settings(deadline=None, max_examples=80)
def test_any_image_gives_boxes_within_it(image, mode, parameters, resize_width) -> None:
    boxes = selective_search(image, mode, parameters=parameters, resize_width=resize_width, min_side=0)
    check(boxes, *image.shape[:2])


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_boxes_are_opencvs(mode: str) -> None:
    expected = np.load(Path(__file__).with_name("opencv_partitions.npz"))[f"{mode}_boxes"]
    boxes = selective_search(blobs(150, 190, seed=3), mode).numpy().astype(np.uint8)
    assert np.array_equal(boxes[np.lexsort(boxes.T)], expected)


@pytest.mark.parametrize("parameters", ["opencv", "paper"])
def test_a_large_even_object_is_found(parameters: str) -> None:
    image = blobs(90, 120) // 6
    image[20:70, 30:95] += np.uint8(170)
    boxes = selective_search(image, "fast", parameters=parameters)
    distance = (boxes - torch.tensor([30.0, 20.0, 95.0, 70.0])).abs().amax(1)
    assert distance.min() <= 1
    assert [0.0, 0.0, 120.0, 90.0] in boxes.tolist()


def test_an_array_and_a_tensor_are_the_same_image() -> None:
    image = blobs(40, 60)
    from_array = selective_search(image)
    assert torch.equal(from_array, selective_search(torch.from_numpy(image).permute(2, 0, 1)))
    assert torch.equal(from_array, selective_search(np.asfortranarray(image)))


def test_modes_search_ever_more_and_large_regions_tend_to_come_first() -> None:
    image = blobs(80, 90, seed=8)
    single, boxes, quality = (selective_search(image, mode) for mode in ("single", "fast", "quality"))
    assert len(single) < len(boxes) < len(quality)
    assert torch.equal(selective_search(image, max_boxes=7), boxes[:7])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    third = len(areas) // 3
    assert areas[:third].mean() > 1.5 * areas[-third:].mean()


def test_no_side_is_shorter_than_min_side() -> None:
    image = blobs(80, 90, seed=8)
    boxes = selective_search(image)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = boxes[(sides >= 30).all(1)]
    assert 0 < len(kept) < len(boxes)
    assert torch.equal(selective_search(image, min_side=30), kept)
    assert selective_search(image, min_side=1000).shape == (0, 4)
    boxes = selective_search(image, parameters="paper")
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 20


def test_a_wide_image_is_searched_smaller_and_boxes_are_mapped_back() -> None:
    image = blobs(50, 80).repeat(3, 0).repeat(3, 1)
    boxes, whole = selective_search(image, resize_width=80), [0.0, 0.0, 240.0, 150.0]
    check(boxes, 150, 240)
    assert whole in boxes.tolist()
    assert torch.equal(boxes, 3 * selective_search(blobs(50, 80)))
    # An image that is not wider is left alone.
    assert torch.equal(selective_search(image, resize_width=240), selective_search(image, resize_width=None))


def test_the_seed_changes_the_order_and_nothing_else() -> None:
    image = blobs(80, 90, seed=8)
    first, again, other = (selective_search(image, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert sorted(first.tolist()) == sorted(other.tolist())


def test_threads_give_the_same_boxes() -> None:
    batch = [blobs(40 + 7 * i, 75 - 6 * i, seed=i) for i in range(7)]
    alone = [selective_search(image) for image in batch]
    for threads in (2, 5):
        with ThreadPoolExecutor(threads) as pool:
            together = list(pool.map(selective_search, batch))
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_another_process_gives_the_same_boxes() -> None:
    program = (
        "import hashlib, sys\n"
        "sys.path.insert(0, 'tests/proposals/selective_search')\n"
        "from generated import blobs\n"
        "from detkit.proposals import selective_search\n"
        "print(hashlib.sha256(selective_search(blobs(60, 70), 'quality').numpy().tobytes()).hexdigest())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True
    )
    here = hashlib.sha256(selective_search(blobs(60, 70), "quality").numpy().tobytes()).hexdigest()
    assert result.stdout.split()[-1] == here


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.timeout(120)
def test_a_forked_loader_worker_searches_too() -> None:
    from torch.utils.data import DataLoader

    batch = [blobs(60, 70, seed=i) for i in range(3)]
    here = [selective_search(image) for image in batch]
    loader = DataLoader(
        batch, batch_size=None, num_workers=1, multiprocessing_context="fork", collate_fn=selective_search
    )
    assert all(torch.equal(a, b) for a, b in zip(here, loader, strict=True))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 array of shape \(4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), r"uint8 array of shape \(4, 4\)"),
        (np.zeros((3, 4, 4), np.uint8), r"uint8 array of shape \(3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 array of shape \(0, 4, 3\)"),
        (torch.zeros(3, 4, 4), r"float32 tensor of shape \(3, 4, 4\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"uint8 tensor of shape \(4, 4, 3\)"),
        (torch.zeros(3, 4, 0, dtype=torch.uint8), r"uint8 tensor of shape \(3, 4, 0\)"),
        ([[1, 2]], "list"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_refused_by_its_type_and_shape(image, told: str) -> None:
    with pytest.raises(ImageTypeError, match=f"wants a uint8 RGB image.*{told}"):
        selective_search(image)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "slow"}, "mode of selective search: there is no 'slow'.*single, fast, quality"),
        ({"parameters": "matlab"}, "parameters of selective search: there is no 'matlab'.*opencv, paper"),
        ({"max_boxes": 0}, "max_boxes of selective search must be 1 or more, or null.*it is 0"),
        ({"resize_width": -5}, "resize_width of selective search must be 1 or more, or null.*it is -5"),
    ],
)
def test_options_out_of_range_are_refused(options, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        selective_search(blobs(5, 5), **options)


def test_parameters_are_opencvs_and_the_papers() -> None:
    fast, quality = parameters_of("opencv", "fast"), parameters_of("opencv", "quality")
    assert fast.colour_spaces == ("hsv", "lab") and fast.ks == (150, 300, 450) and set(fast.min_sizes) == {100}
    assert quality.colour_spaces == ("hsv", "lab", "gray", "blue", "rgi") and quality.ks == (150, 300, 450, 600, 750)
    assert len(fast.strategies) == 2 and len(quality.strategies) == 4
    paper = parameters_of("paper", "fast")
    assert paper.ks == paper.min_sizes == (50, 100) and paper.min_side == 20 and paper.sigma == 0.8
    assert parameters_of("paper", "quality").ks == (50, 100, 150, 300)


def test_own_parameters_are_searched_as_given() -> None:
    own = SearchParameters(("gray",), (80.0,), (("fill",),), (30,))
    image = blobs(50, 50)
    boxes = selective_search(image, parameters=own)
    check(boxes, 50, 50)
    assert sorted(boxes.tolist()) != sorted(selective_search(image).tolist())
