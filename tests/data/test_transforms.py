from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data import VOC
from detkit.data.transforms import MOSAIC, NAMED, AlbumentationsPipeline, HorizontalFlip, make_transform
from detkit.errors import ConfigError

WIDTH, HEIGHT = 40, 30


def spec(name: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"albumentations.{name}", "init_args": init_args}


def make_item(boxes: list[tuple[int, int, int, int]]) -> dict[str, Any]:
    """Each object's fields all tell its number; its box is filled with that number in the image."""
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    number = np.arange(1, len(rows) + 1)
    return {
        "image": np.full((HEIGHT, WIDTH, 3), 7, np.uint8),
        "boxes": rows,
        "labels": number.astype(np.int64) + 2**40,
        "difficult": number % 2 == 0,
        "crowd": number % 3 == 0,
        "area": (rows[:, 2:] - rows[:, :2]).prod(1),
        "proposals": rows.copy(),
    }


boxes = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 20), st.integers(1, 10), st.integers(1, 10)).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(boxes, st.integers(0, 2**32 - 1))
def test_fields_stay_in_step_under_flips_and_crops(rows: list, seed: int) -> None:
    pipeline = AlbumentationsPipeline([spec("HorizontalFlip"), spec("RandomCrop", width=25, height=20)])
    item = make_item(rows)
    output = pipeline(item, seed)
    count = len(output["boxes"])
    number = output["labels"] - 2**40
    assert output["boxes"].shape == (count, 4) and output["boxes"].dtype == np.float32
    assert all(len(output[name]) == count for name in ("labels", "difficult", "crowd", "area"))
    assert (output["labels"].dtype, output["difficult"].dtype, output["area"].dtype) == (np.int64, bool, np.float32)
    np.testing.assert_array_equal(output["difficult"], number % 2 == 0)
    np.testing.assert_array_equal(output["crowd"], number % 3 == 0)
    sides = output["boxes"][:, 2:] - output["boxes"][:, :2]
    assert (sides >= 1).all() and (output["boxes"] >= 0).all() and (output["boxes"] <= [25, 20, 25, 20]).all()
    np.testing.assert_allclose(output["area"], sides.prod(1), rtol=1e-4)
    np.testing.assert_array_equal(output["proposals"], output["boxes"])


@pytest.mark.parametrize("transform", [HorizontalFlip(1.0), AlbumentationsPipeline([spec("HorizontalFlip", p=1.0)])])
def test_flip_moves_boxes_with_their_pixels(transform: Any) -> None:
    item = make_item([(3, 4, 13, 9)])
    item["image"][4:9, 3:13] = 200
    output = transform(item, 0)
    np.testing.assert_allclose(output["boxes"], [[27, 4, 37, 9]], atol=1e-4)
    assert (output["image"][4:9, 27:37] == 200).all() and (output["image"] == 200).sum() == 5 * 10 * 3
    np.testing.assert_allclose(output["proposals"], output["boxes"])
    assert (item["boxes"] == [[3, 4, 13, 9]]).all() and (item["image"][4:9, 3:13] == 200).all()


@pytest.mark.parametrize("transform", [HorizontalFlip(), AlbumentationsPipeline([spec("HorizontalFlip")])])
def test_pure_function_of_the_seed(transform: Any) -> None:
    item = make_item([(3, 4, 13, 9)])
    item["image"][:, :5] = 99
    outcomes = [transform(item, seed)["image"][0, 0, 0] == 99 for seed in range(64)]
    assert outcomes == [transform(item, seed)["image"][0, 0, 0] == 99 for seed in range(64)]
    assert 16 < sum(outcomes) < 48


def test_no_boxes_and_all_boxes_lost() -> None:
    crop = AlbumentationsPipeline([spec("Crop", x_min=0, y_min=0, x_max=10, y_max=10)])
    for item in (make_item([]), make_item([(20, 20, 30, 28)])):
        output = crop(item, 0)
        assert output["boxes"].shape == output["proposals"].shape == (0, 4)
        assert output["labels"].shape == (0,) and output["labels"].dtype == np.int64


def test_slivers_are_dropped() -> None:
    crop = AlbumentationsPipeline([spec("Crop", x_min=0, y_min=0, x_max=20, y_max=30)])
    item = make_item([(19, 0, 30, 10)])
    item["boxes"][0, 0] = 19.5  # 0.5 x 10 px remain: more than a square pixel, but thinner than one
    assert len(crop(item, 0)["boxes"]) == 0


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (spec("HorizontlFlip"), "no BasicTransform 'albumentations.HorizontlFlip'; did you mean .*HorizontalFlip"),
        ({"class_path": "nowhere.at.All"}, "the module nowhere.at is not imported"),
        ({"class_path": "this.s"}, "the module this is not imported"),
        (spec("HorizontalFlip", q=1), "albumentations.HorizontalFlip does not take .*'q'"),
        (spec("RandomCrop", width=-3, height=4), "albumentations.RandomCrop does not take"),
        ({"class_path": "albumentations.HorizontalFlip", "args": {}}, "must hold class_path, and may hold init_args"),
        ({"class_path": "builtins.dict"}, "builtins.dict is not a BasicTransform"),
        ({"class_path": "albumentations.Compose.from_dict"}, "albumentations.Compose is not imported"),
        ({"class_path": "HorizontalFlip", "init_args": [1, 2]}, "HorizontalFlip: init_args wants names with values"),
        ({"class_path": "HorizontalFlip", "init_args": "abc"}, "HorizontalFlip: init_args wants names with values"),
        (spec("Lambda", image="os.system"), "albumentations.Lambda: image is a function, which a config cannot give"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_wrong_transform_is_named(transform: Any, message: str, nested: bool) -> None:
    with pytest.raises(ConfigError, match=message):
        AlbumentationsPipeline([spec("OneOf", transforms=[transform])] if nested else [transform])
    assert "this" not in sys.modules


@pytest.mark.parametrize("nested", [False, True])
def test_nothing_but_a_transform_is_called(tmp_path: Path, parse_data: Callable[..., Any], nested: bool) -> None:
    """From a config, through the parser of the command line."""
    file = tmp_path / "written"
    harmful: dict[str, Any] = {"class_path": "pathlib.Path.touch", "init_args": {"self": str(file)}}
    calls = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(file)]}}
    for each in (harmful, calls):
        transforms = [spec("HorizontalFlip", p=each)] if nested else [each]
        data = parse_data("detkit.data.Shapes", path=str(tmp_path), transforms=transforms)
        with pytest.raises(ConfigError, match="transforms: "):
            make_transform(data.transforms)
    assert not file.exists()


@pytest.mark.parametrize("transform", [{"class": "x"}, ["HorizontalFlip"], 7])
def test_what_is_no_class_path_is_told(transform: Any) -> None:
    with pytest.raises(ConfigError, match=r"class_path"):
        AlbumentationsPipeline([transform])


@pytest.mark.parametrize("name", [*NAMED, MOSAIC])
def test_augmentations_by_one_word(parse_data: Callable[..., Any], tmp_path: Path, name: str) -> None:
    data = parse_data("detkit.data.Shapes", path=str(tmp_path), transforms=["flip", name])
    assert data.transforms == ["flip", name]
    transform = make_transform(data.transforms)
    item = make_item([(0, 0, 10, 10), (20, 12, 30, 22)])
    changed = 0
    for seed in range(20):
        output = transform(item, seed)
        number = output["labels"] - 2**40
        np.testing.assert_array_equal(output["difficult"], number % 2 == 0)
        assert output["image"].dtype == np.uint8 and output["image"].shape[2] == 3
        changed += output["image"].shape != item["image"].shape or (output["image"] != item["image"]).any()
        if name == "crop":
            assert len(number) == 2  # both are whole
            np.testing.assert_allclose(output["area"], 100, rtol=1e-3)
    assert changed or name in ("flip", MOSAIC)  # the item's image is plain


def test_scale_jitter_keeps_boxes_on_their_pixels() -> None:
    transform = make_transform(["scale_jitter"])
    item = make_item([(10, 10, 30, 20)])
    item["image"][10:20, 10:30] = 250
    scales = []
    for seed in range(40):
        output = transform(item, seed)
        if not len(output["boxes"]):
            continue
        rows, columns = np.nonzero(output["image"][..., 0] > 200)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(output["boxes"][0], seen, atol=1.5)
        scales.append(float((output["boxes"][0, 2:] - output["boxes"][0, :2]).prod() / 200))
    assert min(scales) < 0.6 and max(scales) > 1.2


def test_a_word_that_is_misspelt_is_told() -> None:
    with pytest.raises(ConfigError, match=r"there is no 'flipp'; did you mean 'flip'.* The words are flip, color"):
        make_transform(["flipp"])


def test_images_must_stay_uint8() -> None:
    with pytest.raises(ConfigError, match="leave Normalize"):
        AlbumentationsPipeline([spec("Normalize")])(make_item([]), 0)


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (spec("RandomCrop", width=1000, height=1000), "RandomCrop"),
        (spec("Resize", width=2_000_000, height=2_000_000), "Resize"),
        (spec("OneOf", transforms=[spec("RandomCrop", width=41, height=5)], p=1.0), "RandomCrop"),
        (spec("SomeOf", transforms=[spec("HorizontalFlip")], n=-5, p=1.0), "SomeOf"),
        (spec("HistogramMatching", reference_images=["/nowhere.png"], p=1.0), "HistogramMatching"),
    ],
)
def test_a_transform_that_fails_is_named_with_the_image(two_cats: Path, transform: Any, name: str) -> None:
    data = VOC(str(two_cats), transforms=[spec("HorizontalFlip"), transform])
    with pytest.raises(ConfigError, match=rf"a\.\w+: transforms: {name} cannot be applied to 40 x 30 pixels \(.+\)"):
        data.dataset("train")[0]


def test_nested_transforms_and_objects() -> None:
    nested = spec("OneOf", transforms=[spec("HorizontalFlip", p=1.0)], p=1.0)
    output = AlbumentationsPipeline([nested])(make_item([(0, 0, 10, 10)]), 0)
    np.testing.assert_allclose(output["boxes"], [[30, 0, 40, 10]], atol=1e-4)
    import albumentations

    output = AlbumentationsPipeline([albumentations.HorizontalFlip(p=1.0)])(make_item([(0, 0, 10, 10)]), 0)
    np.testing.assert_allclose(output["boxes"], [[30, 0, 40, 10]], atol=1e-4)


def test_choice_of_pipeline() -> None:
    assert isinstance(make_transform(None), HorizontalFlip)
    assert make_transform([]) is None
    assert isinstance(make_transform([spec("HorizontalFlip")]), AlbumentationsPipeline)


def test_importing_the_package_is_light() -> None:
    code = "import sys, detkit.data; detkit.data.VOC; print([m for m in ('albumentations', 'cv2') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip().endswith("[]")
