"""Backbones that are not ours: a user's own module, and timm's networks by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.errors import ConfigError, WeightsError
from detkit.features import MapSettings, build_backbone, build_crop_network
from detkit.features.layers import FrozenBatchNorm

timm = pytest.importorskip("timm")


class Trunk(nn.Module):
    """What a user writes: maps, and what they are."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.strides, self.channels, self.stages = [4, 8], [width, 2 * width], [["stem"], ["deep"]]

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.stem(x)
        return [fine, self.deep(fine)]


class Named(Trunk):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(("fine", "coarse"), super().forward(x), strict=True))


class Wrong(Trunk):
    def __init__(self, drop: str = "", forward: Any = None, **told: Any) -> None:
        super().__init__()
        self.gives = forward
        for name, value in told.items():
            setattr(self, name, value)
        if drop:
            delattr(self, drop)

    def forward(self, x: Tensor) -> Any:
        if self.gives == "tensor":
            return self.deep(self.stem(x))
        if self.gives == "error":
            raise RuntimeError("only 224 x 224")
        return super().forward(x)


def own(cls: type = Trunk, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{__name__}.{cls.__name__}", "init_args": arguments}


@pytest.mark.parametrize("cls", [Trunk, Named])
def test_a_users_own_module(cls: type) -> None:
    backbone, top = build_backbone(own(cls, width=4), settings=MapSettings(fpn_channels=6))
    assert top is None
    assert (backbone.strides, backbone.channels) == ([4, 8, 16], [6, 6, 6])
    assert [tuple(x.shape[1:]) for x in backbone(torch.zeros(2, 3, 64, 96))] == [(6, 16, 24), (6, 8, 12), (6, 4, 6)]
    level = "coarse" if cls is Named else "1"
    backbone, _ = build_backbone(own(cls), settings=MapSettings(fpn=False, levels=[level]))
    assert (backbone.strides, backbone.channels, len(backbone(torch.zeros(1, 3, 64, 64)))) == ([8], [16], 1)


@pytest.mark.parametrize(("policy", "stages", "learn"), [("frozen", None, 0), ("partial", 1, 2), ("full", None, 6)])
def test_a_users_own_module_learns_in_part(policy: str, stages: int | None, learn: int) -> None:
    backbone, _ = build_backbone(own(), settings=MapSettings(policy, stages))
    assert sum(p.requires_grad for p in backbone.body.parameters()) == learn
    assert isinstance(backbone.body.stem[1], FrozenBatchNorm if policy != "full" else nn.BatchNorm2d)
    assert all(p.requires_grad for p in backbone.fpn.parameters())


def test_weights_of_a_users_own_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Trunk().state_dict(), tmp_path / "trunk.pth")
    backbone, _ = build_backbone(own(), str(tmp_path / "trunk.pth"))
    state = torch.load(tmp_path / "trunk.pth", weights_only=True)
    assert all(torch.equal(value, state[key]) for key, value in backbone.body.state_dict().items())
    assert backbone.loaded.tensors == 8
    with pytest.raises(WeightsError, match="do not fit Trunk"):
        build_backbone(own(width=4), str(tmp_path / "trunk.pth"))
    with pytest.raises(WeightsError, match="there is no such file; give the path of a local state dict"):
        build_backbone(own(), "DEFAULT")
    with pytest.raises(WeightsError, match="keys are missing"):
        build_backbone("timm/test_resnet", str(tmp_path / "trunk.pth"))


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ({"drop": "strides"}, {}, "Wrong: it needs an attribute strides, a list with one number for each of its maps"),
        ({"strides": [4]}, {}, "it gives 2 maps and says 1 strides and 2 channels"),
        ({"channels": [8, 9]}, {}, r"map 1 has the shape \(1, 16, 32, 32\).* it would be \(1, 9, 32, 32\)"),
        ({"strides": [4, 16]}, {}, r"map 1 has the shape .*it would be \(1, 16, 16, 16\)"),
        ({"forward": "tensor"}, {}, "gives a Tensor; a list or a dict of maps is needed"),
        ({"forward": "error"}, {}, r"fails on an image of 256 x 256 pixels \(only 224 x 224\)"),
        ({}, {"fpn": False}, r"its maps have \[8, 16\] channels.*set features.fpn to true"),
        ({}, {"levels": ["2"]}, r"has no maps \['2'\]; it has 0, 1"),
        ({"drop": "stages"}, {"transfer": "partial", "trainable_stages": 1}, "does not say its stages"),
        ({"stages": [["root"]]}, {"transfer": "partial", "trainable_stages": 1}, r"its stages name \['root'\]"),
        ({}, {"transfer": "partial", "trainable_stages": 3}, "must be 1 to 2 for .*Wrong, not 3"),
    ],
)
def test_modules_that_are_no_backbones(arguments: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(own(Wrong, **arguments), settings=MapSettings(**settings))


@pytest.mark.parametrize("backbone", [own(), "timm/test_resnet"], ids=["own", "timm"])
def test_crops_of_rcnn(backbone: str | dict[str, Any]) -> None:
    network = build_crop_network(backbone, crop_size=32).eval()
    maps = network.backbone(torch.ones(2, 3, 32, 32))[-1]
    with torch.no_grad():
        features = network(torch.ones(2, 3, 32, 32))
    torch.testing.assert_close(features.fc7, maps.mean((2, 3)))
    assert features.pool5.shape == (2, network.pool5_features)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_timms_networks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone, top = build_backbone(f"timm/{name}", str(tmp_path / "whole.pth"), MapSettings(fpn_channels=8))
    assert top is None and backbone.strides == [4, 8, 16, 32, 64]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = whole.forward_intermediates(image, intermediates_only=True)[-4:]
        maps = backbone.eval().body(image)
    for x, reference in zip(maps, wanted, strict=True):
        torch.testing.assert_close(x, reference)
    single, _ = build_backbone(f"timm/{name}", settings=MapSettings(fpn=False))
    assert (single.strides, single.channels) == ([16], [maps[2].shape[1]])
    assert build_backbone(f"timm/{name}", settings=MapSettings(levels=["1", "2"]))[0].levels == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "fixed", "fpn"),
    [("test_resnet", {"conv1", "layer1"}, True), ("test_efficientnet", None, True), ("test_efficientnet", None, False)],
)
def test_timms_networks_learn_in_part(name: str, fixed: set[str] | None, fpn: bool) -> None:
    backbone, _ = build_backbone(f"timm/{name}", settings=MapSettings("partial", 3, fpn=fpn))
    network = backbone.body.network
    learns = {key: p.requires_grad for key, p in network.named_parameters()}
    if fixed is not None:
        assert {key.split(".")[0] for key, value in learns.items() if not value} == fixed
    assert any(learns.values()) and not all(learns.values())
    sum(x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("timm/resnet", {}, "timm has no network 'resnet'; there are "),
        ("timm/vit_tiny_patch16_224", {}, "vit_tiny_patch16_224: it fails on an image of 256 x 256 pixels"),
        ("timm/test_resnet", {"levels": ["1", "9"]}, "the maps of timm/test_resnet are 0, 1, 2, 3, 4"),
    ],
)
def test_what_timm_does_not_have(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(name, settings=MapSettings(**settings))


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm; pip install timm"):
        build_backbone("timm/resnet18")
