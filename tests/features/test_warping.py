"""R-CNN's crops held to a plain reading of the authors' code (papers.md 2.1), made crop by crop, and to OpenCV."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.errors import ConfigError
from detkit.features import crop_geometry, warp
from detkit.features.warping import MODES, _resize_batched


def matlab_round(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def plain_geometry(
    box: list[float], image_size: tuple[int, int], size: int, context: int, mode: str
) -> tuple[list[int], list[int]]:
    """rcnn_im_crop.m, one box: source and target, both half-open; its own lines are in its coordinates (from 1)."""
    (height, width), nothing = image_size, ([0] * 4, [0] * 4)
    bbox = [box[0] + 1, box[1] + 1, box[2], box[3]]
    shown = [1, 1, width, height]
    if context > 0 or mode != "warp":
        scale = size / (size - context * 2)
        half_height, half_width = max(bbox[3] - bbox[1] + 1, 0) / 2, max(bbox[2] - bbox[0] + 1, 0) / 2
        center = [bbox[0] + half_width, bbox[1] + half_height]
        if mode != "warp":
            longer = max(half_width, half_height)
            if mode == "square_masked":  # not theirs: of the square, the box and `context` pixels of the crop around it
                border = longer * scale - longer
                reach = [-half_width - border, -half_height - border, half_width + border, half_height + border]
                around = [matlab_round(c + r) for c, r in zip(center + center, reach, strict=True)]
                shown = [f(a, s) for f, a, s in zip((max, max, min, min), around, shown, strict=True)]
            half_width = half_height = longer
        reach = [-half_width, -half_height, half_width, half_height]
        bbox = [matlab_round(c + r * scale) for c, r in zip(center + center, reach, strict=True)]
    else:
        bbox = [matlab_round(v) for v in bbox]
        bbox = [bbox[0], bbox[1], max(bbox[0], bbox[2]), max(bbox[1], bbox[3])]
    unclipped_height, unclipped_width = bbox[3] - bbox[1] + 1, bbox[2] - bbox[0] + 1
    pad_x1, pad_y1 = max(0, shown[0] - bbox[0]), max(0, shown[1] - bbox[1])
    bbox = [max(shown[0], bbox[0]), max(shown[1], bbox[1]), min(shown[2], bbox[2]), min(shown[3], bbox[3])]
    clipped_height, clipped_width = bbox[3] - bbox[1] + 1, bbox[2] - bbox[0] + 1
    scale_x, scale_y = size / unclipped_width, size / unclipped_height
    crop_width, crop_height = matlab_round(clipped_width * scale_x), matlab_round(clipped_height * scale_y)
    pad_x1, pad_y1 = matlab_round(pad_x1 * scale_x), matlab_round(pad_y1 * scale_y)
    crop_width, crop_height = min(crop_width, size - pad_x1), min(crop_height, size - pad_y1)
    if crop_width < 1 or crop_height < 1:
        return nothing
    return [bbox[0] - 1, bbox[1] - 1, bbox[2], bbox[3]], [pad_x1, pad_y1, pad_x1 + crop_width, pad_y1 + crop_height]


def resize_matrix(before: int, after: int) -> np.ndarray:
    """One axis of MATLAB's imresize, bilinear without antialiasing: (after, before), borders repeated."""
    scale, matrix = after / before, np.zeros((after, before))
    for i in range(after):
        u = (i + 1) / scale + 0.5 * (1 - 1 / scale)  # counted from 1
        for pixel in (math.floor(u), math.floor(u) + 1):
            matrix[i, min(max(pixel, 1), before) - 1] += max(0.0, 1 - abs(u - pixel))
    return matrix


def plain_crop(image: Tensor, box: list[float], size: int, context: int, mode: str) -> np.ndarray:
    source, target = plain_geometry(box, (image.shape[1], image.shape[2]), size, context, mode)
    crop = np.zeros((len(image), size, size))
    if target[2] > target[0]:
        window = image[:, source[1] : source[3], source[0] : source[2]].double().numpy()
        down = resize_matrix(window.shape[1], target[3] - target[1])
        across = resize_matrix(window.shape[2], target[2] - target[0])
        crop[:, target[1] : target[3], target[0] : target[2]] = down @ window @ across.T
    return crop


def batched(image: Tensor, boxes: Tensor, size: int, context: int = 16, mode: str = "warp") -> Tensor:
    """What runs on other devices, on this one."""
    crops = torch.full((len(boxes), len(image), size, size), torch.nan)
    _resize_batched(image, crop_geometry(boxes, (image.shape[1], image.shape[2]), size, context, mode), crops)
    return crops


#: Grey levels of 255: OpenCV computes positions in float32.
TOLERANCE = 1e-3
BOTH = pytest.mark.parametrize("run", [warp, batched])


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    """Grey levels from 0 to 255 with nothing smooth about them."""
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


def border_boxes(height: int, width: int) -> Tensor:
    """Every meeting of a box with an image along each axis: beyond, touching, across and covering; 0 to 1 pixel too."""

    def spans(n: int) -> list[tuple[float, float]]:
        inside = [(0, n), (0, n // 2), (n // 3, n), (3.3, n - 4.7), (5, 6), (7.2, 7.4), (9, 9), (0, 1), (n - 1, n)]
        across = [(-5, 4), (-0.4, 0.3), (n - 3, n + 8), (n - 0.5, n + 0.5), (-4, n + 9), (-10 * n, 12 * n)]
        beyond = [(-9, -3), (-4, 0), (n, n), (n, n + 5), (n + 20, n + 40), (-(10**7), -(10**6))]
        return inside + across + beyond

    return torch.tensor([[x1, y1, x2, y2] for x1, x2 in spans(width) for y1, y2 in spans(height)])


@BOTH
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "context"), [(24, 4), (21, 0), (227, 16)])
def test_crops_equal_a_plain_reading_at_every_border(run: Callable, mode: str, size: int, context: int) -> None:
    image, boxes = photo(37, 52), border_boxes(37, 52)
    if size == 227:
        boxes = boxes[::9]
    crops = run(image, boxes, size, context, mode)
    expected = np.stack([plain_crop(image, box, size, context, mode) for box in boxes.tolist()])
    np.testing.assert_allclose(crops.numpy(), expected, rtol=0, atol=TOLERANCE)


coordinate = st.one_of(
    st.floats(-30, 90, width=32), st.integers(-30, 90).map(float), st.integers(-60, 180).map(lambda v: v / 2)
)


@settings(max_examples=300, deadline=None)
@given(
    boxes=st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=6),
    size=st.integers(1, 40),
    share=st.floats(0, 0.499),
    mode=st.sampled_from(MODES),
    image_size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_any_boxes_give_the_plain_readings_rectangles_and_crops(
    boxes: list[tuple[float, ...]], size: int, share: float, mode: str, image_size: tuple[int, int]
) -> None:
    context = int(size * share)
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    geometry = crop_geometry(tensor, image_size, size, context, mode)
    expected = [plain_geometry(box, image_size, size, context, mode) for box in tensor.tolist()]
    assert [list(each) for each in zip(*(g.tolist() for g in geometry), strict=True)] == [list(e) for e in expected]
    image = photo(*image_size)
    crops = np.array([plain_crop(image, box, size, context, mode) for box in tensor.tolist()])
    for run in (warp, batched):
        np.testing.assert_allclose(run(image, tensor, size, context, mode).numpy(), crops.reshape(-1, 3, size, size),
                                   rtol=0, atol=TOLERANCE)  # fmt: skip


@pytest.mark.parametrize(
    ("box", "mode", "source", "target"),
    [
        # 195 pixels become 227 with the context, and one more: the authors' corners are inclusive.
        ((100, 100, 295, 295), "warp", (84, 84, 312, 312), (0, 0, 227, 227)),
        # 16 of 228 pixels lie before the image: round(16 * 227 / 228) = 16 of the crop's 227, the other 212 fill 211.
        ((0, 0, 195, 195), "warp", (0, 0, 212, 212), (16, 16, 227, 227)),
        # The last pixels of 500 x 375: 212 of 228 are in the image, 16 beyond.
        ((305, 180, 500, 375), "warp", (289, 164, 500, 375), (0, 0, 210, 210)),
        # 50 x 100 and its square, of the same centre.
        ((200, 100, 250, 200), "warp", (196, 92, 255, 209), (0, 0, 227, 227)),
        ((200, 100, 250, 200), "square", (167, 92, 284, 209), (0, 0, 227, 227)),
        # 67 of the square's 117 columns: the box's 50, 8 of context on each side and one more, behind the first 25.
        # round(25 * 227 / 117) = 49, round(67 * 227 / 117) = 130.
        ((200, 100, 250, 200), "square_masked", (192, 92, 259, 209), (49, 0, 49 + 130, 227)),
        ((400, 400, 450, 500), "warp", (0, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_rectangles_by_hand(box: tuple[int, ...], mode: str, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    found = crop_geometry(torch.tensor([box]), (375, 500), 227, 16, mode)
    assert (tuple(found.source[0].tolist()), tuple(found.target[0].tolist())) == (source, target)


@BOTH
def test_a_masked_square_shows_nothing_but_the_box(run: Callable) -> None:
    """A box of 20 x 100 fills a fifth of its square: 21 of 101 columns, as corners are inclusive."""
    image, box = photo(150, 150) + 1, torch.tensor([[60.0, 20, 80, 120]])
    image[:, :, 60:81] += 1000
    square, masked = (run(image, box, 101, 0, mode)[0] for mode in ("square", "square_masked"))
    assert square.all() and (square > 900).any(dim=1).sum() == 3 * 21
    inside = masked != 0
    assert inside[:, :, 40:61].all() and inside.sum() == 3 * 101 * 21
    assert torch.equal(masked[inside], square[inside]) and (masked[inside] > 1000).all()
    # With context: as many pixels of it on each of the four sides.
    rows, columns = (run(image, box, 120, 10, "square_masked")[0, 0].any(dim=d) for d in (1, 0))
    assert rows.all() and columns.sum() == 10 + 20 + 10 + 1


def test_without_context_a_box_of_whole_pixels_is_cut_out_as_it_is() -> None:
    image = photo(40, 50)
    crops = warp(image, torch.tensor([[3, 5, 23, 25], [20.0, 11, 40, 31]]), 20, context=0)
    assert torch.equal(crops, torch.stack([image[:, 5:25, 3:23], image[:, 11:31, 20:40]]))


def test_a_crop_outside_the_image_is_the_mean_and_the_others_do_not_mind() -> None:
    image = photo(40, 50) + 1
    boxes = torch.tensor([[90.0, 10, 99, 20], [10, 10, 30, 30], [10, -90, 30, -70]])
    crops = warp(image, boxes, 36, context=4)
    assert not crops[[0, 2]].any()
    assert crops[1].all()


@BOTH
def test_a_coordinate_that_is_not_finite_shows_nothing(run: Callable) -> None:
    boxes = torch.tensor([[3.0, 5, 23, 25]]).repeat(12, 1)
    for i, value in enumerate((math.nan, math.inf, -math.inf)):
        boxes[range(4 * i, 4 * i + 4), range(4)] = value
    for mode in MODES:
        assert not run(photo(40, 50), boxes, 32, 4, mode).any()


@BOTH
def test_no_boxes_give_no_crops(run: Callable) -> None:
    assert run(photo(40, 50), torch.zeros(0, 4), 36).shape == (0, 3, 36, 36)
    for size in ((0, 0), (0, 5), (5, 0)):  # an image without pixels
        assert not warp(torch.zeros(3, *size), torch.tensor([[0.0, 0, 9, 9]]), 36).any()


def test_memory_formats_and_threads_hold_the_same_values() -> None:
    image, boxes = photo(37, 52), border_boxes(37, 52)[::5]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results += [warp(image, boxes, 24, 4, channels_last=last) for last in (False, True)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, results[0]) for each in results)
    assert results[0].is_contiguous()
    assert results[1].is_contiguous(memory_format=torch.channels_last)


def test_images_that_are_views_or_of_other_types_or_learn() -> None:
    wide, boxes = photo(37, 104), border_boxes(37, 52)[::11]
    image = wide[:, :, ::2]
    before = image.clone(), boxes.clone()
    expected = warp(image.clone(), boxes, 36)
    assert torch.equal(warp(image, boxes, 36), expected)
    assert torch.equal(warp(image.clone().requires_grad_(), boxes, 36), expected)
    assert not warp(image.clone().requires_grad_(), boxes, 36).requires_grad
    assert torch.equal(warp(image.double(), boxes, 36), expected)
    assert torch.equal(warp(image, boxes.double(), 36), expected)
    assert torch.equal(image, before[0]) and torch.equal(boxes, before[1])


def test_made_in_steps_they_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image, boxes = photo(37, 52), border_boxes(37, 52)
    expected = batched(image, boxes, 24, 4)
    monkeypatch.setattr("detkit.features.warping.TOGETHER", 100_000)  # 14 crops
    assert torch.equal(batched(image, boxes, 24, 4), expected)


def test_inside_it_is_opencvs_affine_warp_to_a_grey_level() -> None:
    """In what is smooth as photographs are: warpAffine rounds positions to 1/32 of a pixel."""
    import cv2

    image = photo(120, 160)
    image = torch.from_numpy(cv2.GaussianBlur(image.permute(1, 2, 0).numpy(), (0, 0), 3)).permute(2, 0, 1)
    boxes = torch.tensor([[20.0, 30, 90, 80], [0, 0, 40, 110], [130, 100, 160, 120], [5, 5, 158, 118]])
    pixels, crops = image.permute(1, 2, 0).contiguous().numpy(), warp(image, boxes, 227)
    for crop, source, target in zip(
        crops, *(each.tolist() for each in crop_geometry(boxes, (120, 160), 227)), strict=True
    ):
        scale = [(source[i + 2] - source[i]) / (target[i + 2] - target[i]) for i in (0, 1)]
        shift = [source[i] + (0.5 - target[i]) * scale[i] - 0.5 for i in (0, 1)]
        matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
        theirs = cv2.warpAffine(pixels, matrix, (227, 227), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        rows, columns = (slice(target[i] + 12, target[i + 2] - 12) for i in (1, 0))  # beyond, theirs sees more image
        np.testing.assert_allclose(
            crop[:, rows, columns].permute(1, 2, 0).numpy(), theirs[rows, columns], rtol=0, atol=1
        )


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 40, 50, dtype=torch.uint8), torch.zeros(4, 40, 50), torch.zeros(2, 3, 40, 50)]
)
def test_what_is_no_image_of_three_channels_is_refused(image: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"a normalised float \(3, H, W\)"):
        warp(image, torch.tensor([[3.0, 5, 23, 25]]), 36)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "stretch"}, "'stretch'; the choices are warp, square, square_masked"),
        ({"context": 12}, "24 pixels has no room for 12 pixels of context"),
        ({"context": -1}, "no room for -1"),
        ({"size": 0, "context": 0}, "a crop of 0 pixels"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        warp(photo(40, 50), torch.tensor([[3.0, 5, 23, 25]]), **{"size": 24, "context": 4, **arguments})
