"""Batch norms multiplied into convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detkit.features import MapSettings, build_backbone
from detkit.features.folding import folded

NORMS = nn.BatchNorm2d | FrozenBatchNorm2d


def with_statistics(network: nn.Module) -> nn.Module:
    """Batch norms as after training."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, NORMS):
            layer.running_mean.normal_(0, 0.5, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(0, 0.5, generator=generator)
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> int:
    return sum(isinstance(layer, NORMS) for layer in network.modules())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_large", "timm/resnet10t.c3_in1k"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_backbone_without_batch_norms_gives_the_same_maps(name: str, frozen: bool) -> None:
    settings = MapSettings(fpn=True, fpn_norm=True, fpn_channels=16, freeze_batch_norm=frozen)
    backbone = with_statistics(build_backbone(name, None, settings)[0])
    before = norms(backbone)
    result = folded(backbone, torch.randn(1, 3, 64, 64))
    assert norms(result) == 0 and norms(backbone) == before > 0
    image = torch.randn(2, 3, 96, 64)
    for found, expected in zip(result(image), backbone(image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


class UsedTwice(nn.Module):
    """The convolution's output is also read beside its batch norm; or it is applied twice, with two batch norms."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + (self.other(self.conv(y)) if self.twice else y)


@pytest.mark.parametrize("twice", [False, True])
def test_a_network_that_cannot_be_folded_is_left_as_it_is(twice: bool) -> None:
    network = with_statistics(UsedTwice(twice))
    assert folded(network, torch.randn(1, 3, 8, 8)) is network
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    assert folded(plain, torch.randn(1, 3, 8, 8)) is plain


class Unusual(nn.Module):
    """What a user's own backbone may have."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4, affine=kind != "no weight", track_running_stats=kind != "no statistics")
        if kind == "weight norm":
            nn.utils.parametrizations.weight_norm(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(input=x) if self.kind == "by keyword" else self.conv(x)
        y = self.bn(input=y) if self.kind == "by keyword" else self.bn(y)
        return y * self.bn.num_features if self.kind == "reads the norm" else y


@pytest.mark.parametrize("kind", ["no weight", "no statistics", "weight norm", "by keyword", "reads the norm"])
def test_an_unusual_network_is_left_as_it_is(kind: str) -> None:
    network = Unusual(kind).eval().requires_grad_(False)
    assert folded(network, torch.randn(1, 3, 8, 8)) is network


def test_the_bias_of_a_convolution_is_scaled() -> None:
    network = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 1, bias=True), nn.BatchNorm2d(4)))
    image = torch.randn(2, 3, 8, 8)
    result = folded(network, image)
    assert norms(result) == 0
    torch.testing.assert_close(result(image), network(image), rtol=1e-5, atol=1e-6)


def test_a_norm_with_an_activation_in_it_does_not_keep_the_others() -> None:
    """timm's BatchNormAct2d is a BatchNorm2d."""
    from timm.layers import BatchNormAct2d

    first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network = with_statistics(nn.Sequential(first, nn.Conv2d(4, 4, 1), BatchNormAct2d(4)))
    result = folded(network, torch.randn(1, 3, 8, 8))
    assert norms(result) == 1 and isinstance(result[2], BatchNormAct2d)
