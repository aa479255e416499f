"""R-CNN's network beside torchvision's own forward pass, and boxes of an image read through it in passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from detkit.errors import ConfigError
from detkit.features import CropNetwork, FeatureSettings, backbones, build_crop_network, crop_reader, warping
from detkit.features.architectures import classification_network
from detkit.features.crop_reader import CropReader, CropSettings
from detkit.features.layers import FrozenBatchNorm
from detkit.features.weights import Loaded


def _inputs_of(layer: nn.Module) -> list[Tensor]:
    """What the layer is given from now on."""
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    return seen


def _build(monkeypatch: pytest.MonkeyPatch, name: str, crop_size: int, **options: Any) -> tuple[nn.Module, CropNetwork]:
    """torchvision's network, and ours cut out of the very same layers."""
    # VGG's own initialisation of 138 million weights takes seconds.
    quick = {"init_weights": False} if name == "vgg16" else {}
    theirs = getattr(torchvision.models, name)(weights=None, **quick).eval()
    monkeypatch.setattr(backbones, "classification_network", lambda _: theirs)
    monkeypatch.setattr(backbones, "initialize", lambda *_: None)
    return theirs, build_crop_network(name, crop_size=crop_size, **options).eval()


@pytest.mark.parametrize(("name", "crop_size", "shape"), [("alexnet", 227, (256, 6, 6)), ("vgg16", 224, (512, 7, 7))])
@torch.no_grad()
def test_pool5_and_fc7_are_what_torchvision_computes_on_its_way(
    monkeypatch: pytest.MonkeyPatch, name: str, crop_size: int, shape: tuple[int, ...]
) -> None:
    theirs, ours = _build(monkeypatch, name, crop_size)
    crops = torch.randn(1, 3, crop_size, crop_size)
    pool5, fc7 = _inputs_of(theirs.classifier), _inputs_of(theirs.classifier[-1])
    theirs(crops)
    found = ours(crops)
    assert found.pool5.shape == (1, shape[0] * shape[1] * shape[2]) and found.fc7.shape == (1, 4096)
    assert (ours.pool5_features, ours.fc7_features) == (found.pool5.shape[1], 4096)
    assert found.fc7.std() > 0
    torch.testing.assert_close(found.pool5, pool5[0])
    torch.testing.assert_close(found.fc7, fc7[0])


@pytest.mark.parametrize(
    ("name", "last", "channels", "map_layer", "map_channels"),
    [
        ("resnet18", "fc", 512, "layer4", 512),
        ("mobilenet_v2", "classifier", 1280, "features.17", 320),
        ("mobilenet_v3_large", "classifier", 960, "features.16", 960),
        ("efficientnet_b0", "classifier", 1280, "features.7", 320),
        ("regnet_y_400mf", "fc", 440, "trunk_output.block4", 440),
        ("convnext_tiny", "classifier.2", 768, "features.7", 768),
        ("swin_t", "head", 768, "features.7", 768),
    ],
)
@torch.no_grad()
def test_without_fully_connected_layers_fc7_is_the_global_average(
    monkeypatch: pytest.MonkeyPatch, name: str, last: str, channels: int, map_layer: str, map_channels: int
) -> None:
    theirs, ours = _build(monkeypatch, name, 160)
    crops = torch.randn(2, 3, 160, 160)
    average = _inputs_of(theirs.get_submodule(last))
    maps: list[Tensor] = []
    theirs.get_submodule(map_layer).register_forward_hook(lambda module, given, output: maps.append(output.clone()))
    theirs(crops)
    found = ours(crops)
    if name == "swin_t":
        maps = [maps[0].permute(0, 3, 1, 2)]
    assert found.fc7.shape == (2, channels) and found.fc7.std() > 0
    torch.testing.assert_close(found.fc7, average[0].flatten(1))
    # 5 x 5 cells to 3 x 3: rows 0-1, 1-3 and 3-4 each.
    parts = [slice(0, 2), slice(1, 4), slice(3, 5)]
    grid = torch.stack([torch.stack([maps[0][:, :, y, x].mean((2, 3)) for x in parts], -1) for y in parts], -2)
    assert found.pool5.shape == (2, map_channels * 9)
    torch.testing.assert_close(found.pool5, grid.flatten(1))


@torch.no_grad()
def test_lenet5_and_the_least_of_grids() -> None:
    lenet = build_crop_network("lenet5", crop_size=32).eval()
    assert (lenet.pool5_features, lenet.fc7_features) == (16 * 8 * 8, 84)
    crops = torch.randn(2, 3, 32, 32)
    maps = lenet.backbone(crops)[-1]
    assert torch.equal(lenet(crops).pool5, maps.flatten(1))
    tiny = build_crop_network("tiny", crop_size=32)  # two cells a side: no grid of three
    assert (tiny.pool5_features, tiny.fc7_features) == (192 * 4, 192)


def test_it_is_ready_to_learn_and_gives_gradients_to_every_weight() -> None:
    network = build_crop_network("tiny", crop_size=48)
    assert all(module.training for module in network.modules())
    sum(part.sum() for part in network(torch.randn(4, 3, 48, 48))).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_frozen_batch_norms_in_every_part() -> None:
    network = build_crop_network("mobilenet_v2", 64, settings=FeatureSettings(freeze_batch_norm=True))
    kinds = [type(module) for module in network.modules()]
    assert nn.BatchNorm2d not in kinds
    assert FrozenBatchNorm in {type(module) for module in network.top.modules()}


@pytest.mark.parametrize(
    ("name", "crop_size", "message"),
    [("resnet999", 64, "'resnet999'"), ("alexnet", 32, "crop.size 32 is too small for alexnet.* its own is 227")],
)
def test_networks_that_cannot_be(name: str, crop_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_crop_network(name, crop_size=crop_size)


@pytest.fixture(scope="module")
def network() -> CropNetwork:
    torch.manual_seed(0)
    return build_crop_network("lenet5", crop_size=32).eval()


def _boxes(count: int) -> Tensor:
    corner = torch.rand(count, 2) * 40
    return torch.cat((corner, corner + 4 + torch.rand(count, 2) * 40), dim=1)


def make_reader(network: CropNetwork, channels_last: bool = False, **options: Any) -> CropReader:
    return CropReader(network, CropSettings(**({"size": 32, "context": 4} | options)), channels_last)


PASS = 4 * (3 * 32 * 32 + 2 * 6 * 32 * 32)  # bytes of a crop, and of ReLU's input and output on C1's maps


@pytest.mark.parametrize("mode", warping.MODES)
@pytest.mark.parametrize("channels_last", [False, True])
@torch.no_grad()
def test_any_number_of_passes_equals_one(network: CropNetwork, mode: str, channels_last: bool) -> None:
    image, boxes = torch.randn(3, 60, 90), _boxes(23)
    one = network(warping.warp(image, boxes, 32, 4, mode))
    passes: list[int] = []
    hook = network.register_forward_hook(lambda module, given, output: passes.append(len(given[0])))
    for count, expected in ((7, [7, 7, 7, 2]), (23, [23]), (1, [1] * 23)):
        options = {"memory": (count + 0.5) * PASS / 1e9, "bf16": False, "channels_last": channels_last}
        reader = make_reader(network, mode=mode, **options)
        passes.clear()  # the reader has measured
        found = reader.read(image, boxes)
        assert passes == expected
        torch.testing.assert_close(found.pool5, one.pool5, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.fc7, one.fc7, rtol=1e-4, atol=1e-5)
    hook.remove()


@torch.no_grad()
def test_no_boxes_at_all(network: CropNetwork) -> None:
    found = make_reader(network).read(torch.randn(3, 60, 90), torch.zeros(0, 4))
    assert found.pool5.shape == (0, 1024) and found.fc7.shape == (0, 84)
    assert found.fc7.dtype == found.pool5.dtype == torch.float32


def test_the_memory_says_how_many_crops_a_pass_has(network: CropNetwork) -> None:
    def crops(memory: float) -> int:
        return make_reader(network, memory=memory).crops_per_pass(torch.device("cpu"))

    assert [crops(n * PASS / 1e9) for n in (0.5, 1.5, 10.5, 100.5)] == [1, 1, 10, 100]
    assert crops(1000.0) == 256


def test_measuring_leaves_the_mode_and_the_network_as_they_are(network: CropNetwork) -> None:
    network.train()
    make_reader(network)
    assert network.training and not any(m._forward_hooks for m in network.modules())
    network.eval()
    make_reader(network)
    assert not any(m.training for m in network.modules())


@torch.no_grad()
def test_bfloat16_where_it_is_asked_for_and_float32_comes_out(network: CropNetwork) -> None:
    image, boxes, types = torch.randn(3, 60, 90), _boxes(5), set()
    hook = network.register_forward_hook(lambda module, given, output: types.add(output.fc7.dtype))
    exact, rough = (make_reader(network, bf16=bf16).read(image, boxes) for bf16 in (False, True))
    hook.remove()
    assert types == {torch.float32, torch.bfloat16}
    assert rough.fc7.dtype == torch.float32 and not torch.equal(rough.fc7, exact.fc7)
    torch.testing.assert_close(rough.fc7, exact.fc7, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("bf16", "has_it", "expected"),
    [
        (False, True, torch.float32),
        (None, False, torch.float16),
        (None, True, torch.bfloat16),
        (True, False, torch.bfloat16),
    ],
)
@torch.no_grad()
def test_the_reader_s_precision_holds_within_that_of_a_trainer(
    network: CropNetwork, monkeypatch: pytest.MonkeyPatch, bf16: bool | None, has_it: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(crop_reader, "has_bf16", lambda device: has_it)
    types: list[torch.dtype] = []
    hook = network.register_forward_hook(lambda module, given, output: types.append(output.fc7.dtype))
    with torch.autocast("cpu", torch.float16):  # as `precision: 16-mixed`
        make_reader(network, bf16=bf16).read(torch.randn(3, 60, 90), _boxes(5))
    hook.remove()
    assert types[-1] == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_crops_have_the_type_of_the_weights_and_the_features_are_float32(dtype: torch.dtype) -> None:
    network, boxes = build_crop_network("lenet5", crop_size=32).eval(), _boxes(5)
    image, reader = torch.randn(3, 60, 90).to(dtype), make_reader(network, bf16=False)
    exact = reader.read(image.float(), boxes)
    network.to(dtype)
    expected = warping.warp(image.float(), boxes, 32, 4).to(dtype)
    assert reader.crops(image, boxes).dtype == dtype and torch.equal(reader.crops(image, boxes), expected)
    found = reader.read(image, boxes)
    assert found.fc7.dtype == reader.read(image, boxes[:0]).fc7.dtype == torch.float32
    torch.testing.assert_close(found.fc7, exact.fc7, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tight"}, "crop.mode: there is no 'tight'; the choices are warp, square, square_masked"),
        ({"context": 16}, "crop.context: twice 16 must be at least 0 and below crop.size 32"),
        ({"context": -1}, "crop.context: twice -1"),
        ({"memory": 0}, "crop.memory: 0 must be above 0"),
        ({"size": 10**7}, "crop.size: 10000000 must be at least 1 and at most 4096"),
    ],
)
def test_readers_that_cannot_be(network: CropNetwork, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reader(network, **options)


@pytest.mark.parametrize(
    ("name", "crop_size", "own_size", "cells"),
    [
        ("alexnet", 227, 227, None),
        ("alexnet", 160, 227, None),  # 4 x 4, which are not far from it
        ("alexnet", 128, 227, (3, 6)),
        ("lenet5", 24, 32, None),
        ("lenet5", 16, 32, (4, 8)),
        ("lenet5", 64, 32, None),
        ("lenet5", 96, 32, (24, 8)),
        ("resnet18", 64, 224, None),  # a global average takes any size
    ],
)
def test_a_size_that_pre_trained_layers_are_not_used_to_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, crop_size: int, own_size: int, cells: tuple[int, int] | None
) -> None:
    monkeypatch.setattr(backbones, "initialize", lambda *_: None)
    network = build_crop_network(name, crop_size=crop_size)
    assert network.size_line() is None  # from scratch
    network.backbone.loaded = Loaded("a file", 1, "", own_size)
    line = network.size_line()
    if cells is None:
        assert line is None
    else:
        here, own = cells
        assert line is not None and line.startswith(f"warning: crop.size {crop_size} gives a map of {here} x {here} ")
        assert f"{own} x {own}: " in line and line.endswith(f"crop.size: {own_size}")


def test_the_size_that_a_classifier_learnt_with_counts(tmp_path: Path) -> None:
    state = {f"network.{name}": value for name, value in classification_network("lenet5", 5).state_dict().items()}
    arguments = {"backbone": "lenet5", "crop_size": 48}
    content = {"state_dict": state, "hyper_parameters": arguments, "detkit": {"class": "ImageClassifier"}}
    torch.save(content, tmp_path / "best.ckpt")
    lines = {
        size: build_crop_network("lenet5", crop_size=size, weights=str(tmp_path / "best.ckpt")).size_line()
        for size in (24, 48)
    }
    assert lines[48] is None and lines[24].endswith("from 12 x 12: they will be of less use than with crop.size: 48")
