"""Backbones by name: where each network is cut, with and without a pyramid."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from detkit.errors import ConfigError
from detkit.features import ARCHITECTURES, MapSettings, build_backbone
from detkit.features.networks import LeNet5

TRUNK = MapSettings(fpn=False)

# name: (stride and channels of the trunk, channels of the top or None, cells a side the top takes, strides with fpn)
EXPECTED = {
    "alexnet": (16, 256, 4096, 6, [8, 16, 32]),
    "vgg16": (16, 512, 4096, 7, [4, 8, 16, 32]),
    "resnet18": (16, 256, 512, 7, [4, 8, 16, 32, 64]),
    "resnet34": (16, 256, 512, 7, [4, 8, 16, 32, 64]),
    "resnet50": (16, 1024, 2048, 7, [4, 8, 16, 32, 64]),
    "resnet101": (16, 1024, 2048, 7, [4, 8, 16, 32, 64]),
    "mobilenet_v2": (16, 96, 320, 7, [4, 8, 16, 32, 64]),
    "mobilenet_v3_large": (16, 112, 960, 7, [4, 8, 16, 32, 64]),
    "lenet5": (2, 16, 84, 8, [2, 4, 8]),
    "squeezenet1_0": (16, 512, None, None, [4, 8, 16, 32]),
    "tiny": (8, 112, 192, 7, [4, 8, 16, 32]),
    "efficientnet_b0": (16, 112, 320, 7, [4, 8, 16, 32, 64]),
    "regnet_y_400mf": (16, 208, 440, 7, [4, 8, 16, 32, 64]),
    "convnext_tiny": (16, 384, None, None, [4, 8, 16, 32, 64]),
    "swin_t": (16, 384, None, None, [4, 8, 16, 32, 64]),
    "swin_v2_t": (16, 384, None, None, [4, 8, 16, 32, 64]),
}
#: Families of which one member is tested.
FAMILIES = ("efficientnet_b", "regnet_", "convnext_", "swin_")


def test_every_backbone_or_one_of_its_family_is_tested() -> None:
    rest = set(ARCHITECTURES) - set(EXPECTED)
    assert all(name.startswith(FAMILIES) for name in rest)
    assert set(ARCHITECTURES) - set(torchvision.models.list_models()) == {"lenet5", "tiny"}


def without_weights(name: str) -> AbstractContextManager[object]:
    """A device without numbers, where large networks cost nothing; torchvision builds RegNet on none but a real one."""
    return nullcontext() if name.startswith("regnet") else torch.device("meta")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_trunk_and_what_is_left_of_the_network(name: str) -> None:
    stride, channels, outputs, side, _ = EXPECTED[name]
    with without_weights(name):
        backbone, top = build_backbone(name, settings=TRUNK)
        assert (backbone.strides, backbone.channels, backbone.fpn) == ([stride], [channels], None)
        (features,) = backbone(torch.zeros(2, 3, 192, 256))
        assert features.shape[:2] == (2, channels)
        # Without padding, AlexNet and SqueezeNet lose a cell or two at the border.
        assert abs(features.shape[2] - 192 / stride) <= 1 and abs(features.shape[3] - 256 / stride) <= 1
        if outputs is None:
            assert top is None
        else:
            assert top(torch.zeros(5, channels, side, side)).shape == (5, outputs)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_pyramid(name: str) -> None:
    strides = EXPECTED[name][-1]
    with without_weights(name):
        backbone, top = build_backbone(name, settings=MapSettings(fpn_channels=48))
        assert top is None
        assert backbone.strides == strides
        assert backbone.channels == [48] * len(strides)
        features = backbone(torch.zeros(2, 3, 256, 320))
    assert len(features) == len(strides)
    for feature, stride in zip(features, strides, strict=True):
        assert feature.shape[:2] == (2, 48)
        assert abs(feature.shape[2] - 256 / stride) <= 2 and abs(feature.shape[3] - 320 / stride) <= 2


@pytest.mark.parametrize(
    ("name", "submodules"),
    [
        ("efficientnet_b0", ["features.2", "features.3", "features.5", "features.7"]),
        ("regnet_y_400mf", [f"trunk_output.block{i}" for i in (1, 2, 3, 4)]),
        ("convnext_tiny", ["features.1", "features.3", "features.5", "features.7"]),
        ("swin_t", ["features.1", "features.3", "features.5", "features.7"]),
    ],
)
@torch.no_grad()
def test_maps_are_those_of_torchvisions_own_forward(name: str, submodules: list[str], tmp_path: Path) -> None:
    network = torchvision.models.get_model(name, weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    seen: list[torch.Tensor] = []
    for path in submodules:
        network.get_submodule(path).register_forward_hook(lambda module, inputs, output: seen.append(output))
    levels = [path.split(".")[-1] for path in submodules]
    backbone, _ = build_backbone(name, str(tmp_path / "weights.pth"), MapSettings(fpn=False, levels=levels))
    image = torch.randn(1, 3, 100, 132)
    network(image)
    maps = backbone.eval()(image)
    assert (len(maps), backbone.channels) == (4, [x.shape[1] for x in maps])
    for x, reference in zip(maps, seen, strict=True):
        if name == "swin_t":
            reference = reference.permute(0, 3, 1, 2)
        if name in ("convnext_tiny", "swin_t"):  # as in the authors' detectors: a layer norm of its own for each map
            reference = torch.nn.functional.layer_norm(reference.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(x, reference)


def test_a_trunk_and_its_top_are_the_whole_network() -> None:
    torch.manual_seed(0)
    network = resnet18().eval()
    backbone, top = build_backbone("resnet18", settings=TRUNK)
    state = network.state_dict()
    backbone.body.load_state_dict({k: v for k, v in state.items() if k.split(".")[0] in backbone.body})
    top.load_state_dict({k: v for k, v in state.items() if k.startswith("layer4")})
    network.fc = nn.Identity()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        (features,) = backbone.eval()(image)
        assert torch.equal(top.eval()(features), network(image))


def test_levels_of_ones_own() -> None:
    backbone, _ = build_backbone("tiny", settings=MapSettings(levels=["0", "2"], fpn_channels=16))
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.training and m.num_batches_tracked == 0 for m in norms)  # measuring strides is no batch
    assert backbone.strides == [2, 8, 16]
    assert list(backbone.body) == ["0", "1", "2"]  # nothing is computed that is not read
    assert [f.shape[-1] for f in backbone(torch.zeros(1, 3, 64, 64))] == [32, 8, 4]


def test_batch_norm_options() -> None:
    backbone, top = build_backbone("tiny", settings=replace(TRUNK, batch_norm_eps=0.125, freeze_batch_norm=True))
    norms = [m for part in (backbone, top) for m in part.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 7 and all(m.eps == 0.125 for m in norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for part in (backbone, top) for m in part.modules())
    pyramid = build_backbone("tiny", settings=MapSettings(fpn_norm=True))[0].fpn
    assert sum(isinstance(m, nn.BatchNorm2d) for m in pyramid.modules()) == 6


def test_frozen_batch_norms_compute_what_those_did_in_eval_mode() -> None:
    from detkit.features.layers import freeze_batch_norms

    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.01)).eval()
    layer[1].running_mean.normal_()
    layer[1].running_var.uniform_(0.5, 2)
    layer[1].weight.data.normal_()
    image = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        before = layer(image)
        freeze_batch_norms(layer)
        torch.testing.assert_close(layer.train()(image), before)
    assert {name for name, _ in layer.named_parameters()} == {"0.weight", "0.bias"}


def test_frozen_batch_norms_keep_the_type() -> None:
    from detkit.features.layers import FrozenBatchNorm

    layer = FrozenBatchNorm(4)
    layer.running_mean.normal_()
    layer.weight.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 5)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x.bfloat16()).float(), layer(x), rtol=0.05, atol=0.05)
    torch.testing.assert_close(layer(x), FrozenBatchNorm2d.forward(layer, x))


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'resnet52'; did you mean 'resnet50'.*alexnet, .*lenet5.*vgg16"):
        build_backbone("resnet52", settings=TRUNK)
    with pytest.raises(ConfigError, match=r"no layers \['9'\]; it has 0, 1, 2, 3"):
        build_backbone("tiny", settings=MapSettings(levels=["1", "9"]))


def test_lenet_is_the_papers_network() -> None:
    """Sizes of LeCun et al. 1998, section II.B, with the differences that `LeNet5` names."""
    network = LeNet5(num_classes=10).eval()
    count = {n: sum(p.numel() for p in m.parameters()) for n, m in network.named_modules() if n.count(".") == 1}
    assert count["features.c1"] == (3 * 25 + 1) * 6  # 156 in the paper, with one channel
    assert count["features.c3"] == (6 * 25 + 1) * 16
    assert count["classifier.c5"] == (16 * 8 * 8 + 1) * 120
    assert count["classifier.f6"] == 10_164  # as in the paper
    assert count["classifier.output"] == 850
    with torch.no_grad():
        image = torch.rand(2, 3, 32, 32)
        assert network(image).shape == (2, 10)
        assert network(torch.rand(2, 3, 47, 60)).shape == (2, 10)
        assert torch.equal(network.avgpool(network.features(image)), network.features(image))


def test_lenets_trunk_and_top_are_the_whole_network() -> None:
    """On a crop of 32 pixels, pooling to 8 x 8 is what S4 does."""
    torch.manual_seed(0)
    network = LeNet5().eval()
    backbone, top = build_backbone("lenet5", settings=TRUNK)
    backbone.body.load_state_dict(
        {k.removeprefix("features."): v for k, v in network.state_dict().items() if k.startswith("features.")}
    )
    for mine, theirs in zip(
        (m for m in top if list(m.parameters())), (network.classifier.c5, network.classifier.f6), strict=True
    ):
        mine.load_state_dict(theirs.state_dict())
    network.classifier.output = nn.Identity()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        (features,) = backbone(image)
        assert features.shape == (2, 16, 16, 16)
        assert torch.equal(top(network.features.s4(features)), network(image))
