"""Regions, similarities and hierarchies against masks and loops."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.errors import ConfigError
from detkit.proposals.selective_search.grouping import MEASURES, group
from detkit.proposals.selective_search.regions import Regions
from detkit.proposals.selective_search.regions import describe as describe_all
from detkit.proposals.selective_search.segmentation import Segmentations, segment
from detkit.proposals.selective_search.texture import texture_bins
from tests.proposals.selective_search.generated import blobs
from tests.proposals.selective_search.plain import PlainRegions, neighbours

STRATEGIES = [MEASURES, ("texture", "size", "fill"), ("fill",), ("size",), ("colour",), ("texture",)]


def describe(image: np.ndarray, labels: np.ndarray) -> Regions:
    """The regions of one label map."""
    (regions,) = describe_all(image, Segmentations(np.ascontiguousarray(labels), np.arange(labels.max() + 1)[None]))
    return regions


@pytest.fixture(scope="module", params=[3, 1], ids=["rgb", "one channel"])
def image(request: pytest.FixtureRequest) -> np.ndarray:
    return blobs(26, 31, request.param, seed=6)


@pytest.fixture(scope="module")
def labels(image: np.ndarray) -> np.ndarray:
    return segment(image, [15], min_size=12).labels()


@pytest.fixture
def plain(image: np.ndarray, labels: np.ndarray) -> PlainRegions:
    return PlainRegions(image, texture_bins(image), labels)


def test_regions_are_measured_as_their_masks(image: np.ndarray, labels: np.ndarray, plain: PlainRegions) -> None:
    regions = describe(image, labels)
    assert len(regions.sizes) > 8
    for r, mask in plain.masks.items():
        assert regions.sizes[r] == mask.sum()
        assert tuple(regions.boxes[r]) == plain.box(r)
        np.testing.assert_allclose(regions.colour[r] / regions.colour[r].sum(), plain.colour(r))
    assert set(map(tuple, regions.neighbours.tolist())) == neighbours(labels)
    assert (regions.colour.sum(1) == regions.sizes * image.shape[2]).all()
    assert (regions.texture.sum(1) == regions.sizes * image.shape[2] * 8).all()


@pytest.mark.parametrize("measures", STRATEGIES, ids="+".join)
def test_regions_merge_in_the_order_of_a_plain_reading(measures, image, labels, plain) -> None:
    regions = describe(image, labels)
    hierarchy = group(regions, measures)
    initial = hierarchy.initial
    merges = plain.group(neighbours(labels), measures)
    assert len(hierarchy.children) == len(merges) == initial - 1
    for index, (a, b, similarity) in enumerate(merges):
        assert sorted(hierarchy.children[index]) == sorted((a, b))
        assert hierarchy.similarity[index] == pytest.approx(similarity, abs=2e-6)
        new = initial + index
        assert tuple(hierarchy.boxes[new]) == plain.box(new)
        assert hierarchy.sizes[new] == plain.masks[new].sum()
    assert hierarchy.boxes[-1].tolist() == [0, 0, 31, 26]


@pytest.mark.parametrize("measures", STRATEGIES, ids="+".join)
def test_grouping_leaves_its_regions_as_they_were(measures, image, labels) -> None:
    regions = describe(image, labels)
    before = [array.copy() for array in regions]
    first, again = group(regions, measures), group(regions, measures)
    assert all(np.array_equal(a, b) for a, b in zip(regions, before, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_of_equally_similar_pairs_the_first_goes_first() -> None:
    labels = np.repeat(np.arange(4, dtype=np.int32), 5)[None].repeat(3, 0)
    hierarchy = group(describe(np.zeros((3, 20, 3), np.uint8), labels), ("size",))
    assert hierarchy.children.tolist() == [[0, 1], [2, 3], [5, 4]]


def test_regions_that_touch_in_the_first_row_only_are_neighbours_where_there_is_no_other() -> None:
    labels = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [0, 2, 2, 1]], np.int32)
    pairs = [[0, 2], [1, 2]]
    assert describe(np.zeros((3, 4, 3), np.uint8), labels).neighbours.tolist() == pairs
    assert describe(np.zeros((1, 4, 3), np.uint8), labels[:1]).neighbours.tolist() == [[0, 1]]
    assert describe(np.zeros((4, 1, 3), np.uint8), labels[:1].T).neighbours.tolist() == [[0, 1]]


def test_the_regions_after_some_merges_are_those_of_the_hierarchy(image: np.ndarray, labels: np.ndarray) -> None:
    """Each merge makes one region of two; sizes and boxes are those of the masks, and no merge leaves `labels`."""
    hierarchy = group(describe(image, labels))
    assert (hierarchy.regions_after(0) == np.arange(hierarchy.initial)).all()
    masks = {region: labels == region for region in range(hierarchy.initial)}
    for merge, (a, b) in enumerate(hierarchy.children.tolist()):
        masks[hierarchy.initial + merge] = masks.pop(a) | masks.pop(b)
        partition = hierarchy.regions_after(merge + 1)[labels]
        assert set(np.unique(partition)) == set(masks)
        for region, mask in masks.items():
            assert ((partition == region) == mask).all()
            y, x = np.nonzero(mask)
            assert hierarchy.boxes[region].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert hierarchy.sizes[region] == mask.sum()
    with pytest.raises(ConfigError, match=rf"from 0 to that, not {len(hierarchy.children) + 1}"):
        hierarchy.regions_after(len(hierarchy.children) + 1)


def test_a_single_region_has_a_hierarchy_of_its_own() -> None:
    hierarchy = group(describe(np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.int32)))
    assert hierarchy.boxes.tolist() == [[0, 0, 3, 2]]
    assert hierarchy.children.shape == (0, 2) and hierarchy.initial == 1


def test_many_partitions_are_described_as_one_by_one(image: np.ndarray) -> None:
    segmentations = segment(image, [10, 30, 90], min_size=9)
    for index, regions in enumerate(describe_all(image, segmentations)):
        alone = describe(image, segmentations.labels(index))
        assert all(np.array_equal(a, b) for a, b in zip(regions, alone, strict=True))


@pytest.mark.parametrize("measures", [(), ("colour", "shape")], ids=str)
def test_unknown_measures_are_refused_by_name(measures) -> None:
    regions = describe(np.zeros((2, 2, 3), np.uint8), np.array([[0, 1], [0, 1]], np.int32))
    with pytest.raises(ConfigError, match="colour, texture, size, fill"):
        group(regions, measures)
