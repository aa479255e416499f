"""Images of any size to one batch, as torchvision makes it, and boxes there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detkit.errors import ConfigError, ImageTypeError
from detkit.features import Preprocessing
from detkit.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ImageSettings

ImageSize = tuple[int, int]


def preprocessing(min_size: int | list[int] = 96, max_size: int = 160, **options: object) -> Preprocessing:
    channels_last = bool(options.pop("channels_last", False))
    return Preprocessing(ImageSettings(min_size, max_size, **options), channels_last).eval()


def image(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize(
    "sizes",
    [
        [(96, 96)],
        [(96, 128)],
        [(100, 133), (57, 201), (301, 40)],
        [(1, 1), (20, 400), (400, 20)],
        [(33, 47), (480, 640), (97, 96)],
    ],
)
def test_the_same_batch_as_torchvisions(sizes: list[ImageSize]) -> None:
    images = [image(*size) for size in sizes]
    boxes = [torch.rand(5, 4) * 30 for _ in images]
    ours = preprocessing()(images)
    reference = GeneralizedRCNNTransform(96, 160, list(IMAGENET_MEAN), list(IMAGENET_STD)).eval()
    theirs, targets = reference([i / 255 for i in images], [{"boxes": b} for b in boxes])
    assert torch.equal(ours.tensor, theirs.tensors)
    assert ours.sizes == [tuple(s) for s in theirs.image_sizes]
    assert ours.original_sizes == sizes
    for i, target in enumerate(targets):
        assert torch.equal(ours.to_batch(boxes[i], i), target["boxes"])
    detections = reference.postprocess([{"boxes": b} for b in boxes], theirs.image_sizes, sizes)
    for i, found in enumerate(detections):
        torch.testing.assert_close(ours.to_original(boxes[i], i), found["boxes"], rtol=1e-6, atol=0)


def test_boxes_there_and_back() -> None:
    batch = preprocessing()([image(100, 133), image(300, 40)])
    boxes = torch.tensor([[0.0, 0, 40, 100], [3.5, 7.25, 39.5, 60]])
    for i in range(2):
        torch.testing.assert_close(batch.to_original(batch.to_batch(boxes, i), i), boxes)
    # A box of the whole image is one there too, though the sides were rounded.
    assert batch.sizes[1] == (160, 21)
    for whole in (torch.tensor([[0.0, 0, 40, 300]]), torch.tensor([[0, 0, 40, 300]])):
        assert batch.to_batch(whole, 1).tolist() == [pytest.approx([0, 0, 21, 160])]
    assert batch.to_batch(torch.zeros(0, 4), 1).shape == (0, 4)
    assert batch.scales()[1].tolist() == pytest.approx([21 / 40, 160 / 300] * 2)
    assert batch.limits()[1].tolist() == [21, 160] * 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (96, 96)),
        ((20, 400), (8, 160)),
        ((400, 20), (160, 8)),
        ((1, 1000), (1, 160)),  # torchvision would make a side of 0 of it
        ((96, 160), (96, 160)),
        ((1000, 1000), (96, 96)),
    ],
)
def test_extreme_images(size: ImageSize, expected: ImageSize) -> None:
    batch = preprocessing()([image(*size)])
    assert batch.sizes == [expected]
    assert batch.tensor.shape[2] % 32 == batch.tensor.shape[3] % 32 == 0
    assert batch.tensor.isfinite().all()
    assert not batch.tensor[:, :, expected[0] :].any() and not batch.tensor[:, :, :, expected[1] :].any()


def test_pixels_are_scaled_and_normalised_once() -> None:
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    half = Preprocessing(ImageSettings(64, 64, (0.5, 0.25, 0.0), (0.5, 0.5, 2.0))).eval()
    assert half([white]).tensor.flatten(2).unique(dim=2).flatten().tolist() == [1.0, 1.5, 0.5]
    assert (white == 255).all()  # the image itself is as it was


def test_sizes_are_drawn_in_training_only() -> None:
    many = preprocessing([48, 64, 96])
    images = [image(100, 100)]
    assert {many(images).sizes[0] for _ in range(20)} == {(96, 96)}
    many.train()
    assert {many(images).sizes[0] for _ in range(60)} == {(48, 48), (64, 64), (96, 96)}
    torch.manual_seed(3)
    first = many(images * 8).sizes
    torch.manual_seed(3)
    assert many(images * 8).sizes == first  # torch's seed decides
    assert len(set(first)) > 1  # each image is drawn for by itself


def test_memory_format_and_divisor() -> None:
    images = [image(50, 70), image(90, 40)]
    last = preprocessing(channels_last=True)(images).tensor
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, preprocessing()(images).tensor)
    assert preprocessing(divisor=100)(images).tensor.shape[2:] == (200, 200)
    assert not preprocessing().state_dict()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.rand(3, 8, 8), r"torch\.float32 tensor of shape \(3, 8, 8\)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"torch\.uint8 tensor of shape \(8, 8, 3\)"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"torch\.uint8 tensor of shape \(1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"torch\.uint8 tensor of shape \(1, 3, 8, 8\)"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), r"torch\.uint8 tensor of shape \(3, 0, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"torch\.int64"),
        (np.zeros((8, 8, 3), dtype=np.uint8), "ndarray"),
        (Image.new("RGB", (8, 8)), "Image"),
        (None, "NoneType"),
    ],
)
def test_other_images_are_refused(wrong: object, message: str) -> None:
    with pytest.raises(ImageTypeError, match=rf"image is a {message}.*wanted is a uint8 tensor of shape \(3, H, W\)"):
        preprocessing()([image(8, 8), wrong])
    assert issubclass(ImageTypeError, TypeError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 100, [0.0] * 3, [1.0] * 3), "min_size 0 must be at least 1"),
        (([], 100, [0.0] * 3, [1.0] * 3), r"min_size \[\]"),
        (([50, 200], 100, [0.0] * 3, [1.0] * 3), r"at most image\.max_size 100"),
        ((50, 100, [0.0], [1.0] * 3), r"image\.mean \[0\.0\]"),
        ((50, 100, [0.0] * 3, [1.0, 0.0, 1.0]), "std above 0"),
        ((10**7, 10**7), r"image\.max_size: 10000000 must be at least 1 and at most 32768"),
        ((50, 100, [0.0] * 3, [1.0] * 3, 10**7), r"image\.divisor: 10000000 must be at least 1 and at most 1024"),
    ],
)
def test_numbers_that_cannot_work(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageSettings(*arguments)


def test_images_of_one_size_in_one_tensor() -> None:
    images = torch.randint(0, 256, (3, 3, 50, 71), dtype=torch.uint8)
    together, apart = preprocessing()(images), preprocessing()(list(images))
    assert torch.equal(together.tensor, apart.tensor)
    assert torch.equal(together[2], apart[2])
    assert torch.equal(together.limits(), apart.limits()) and torch.equal(together.scales(), apart.scales())
    for wrong in (images.float(), images[0], images[:, :2]):
        before = wrong.clone()
        with pytest.raises(ImageTypeError, match=r"wanted is uint8 \(N, 3, H, W\)"):
            preprocessing()(wrong)
        assert torch.equal(wrong, before)


def test_sizes_are_whole_numbers_and_torchvisions_at_most_a_pixel_smaller() -> None:
    resize = Preprocessing(ImageSettings(min_size=800, max_size=1333)).eval()
    assert resize.size_of(335, 500) == (800, 1194)
    for height in range(1, 1500, 7):
        for width in (1, 335, 500, 1333, 4000):
            scale = min(800 / min(height, width), 1333 / max(height, width))  # torchvision's
            for ours, side in zip(resize.size_of(height, width), (height, width), strict=True):
                assert ours - max(int(side * scale), 1) in (0, 1)
