"""Initialisation by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detkit.errors import ConfigError
from detkit.features import MapSettings, build_backbone
from detkit.features.layers import initialize, normal_


def layers() -> list[nn.Module]:
    return [nn.Sequential(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.ReLU()), nn.Linear(300, 200)]


def test_he() -> None:
    """He et al. 2015, equation 10 (14 for convolutions, backwards): deviation sqrt(2 / fan)."""
    convolution, linear = modules = layers()
    initialize(modules, "he")
    assert convolution[0].weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.05)
    assert linear.weight.abs().max() > 3 * linear.weight.std()  # normal, not uniform
    assert not convolution[0].bias.any() and not linear.bias.any()
    assert torch.equal(convolution[1].weight, torch.ones(64))


def test_xavier() -> None:
    """Glorot and Bengio 2010, equation 16: uniform within sqrt(6 / (fan in + fan out))."""
    convolution, linear = modules = layers()
    initialize(modules, "xavier")
    for weight, fans in ((convolution[0].weight, (16 + 64) * 9), (linear.weight, 500)):
        limit = math.sqrt(6 / fans)
        assert 0.98 * limit < weight.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
    assert not convolution[0].bias.any() and not linear.bias.any()


def test_normal_with_the_papers_deviations() -> None:
    layer = nn.Conv2d(64, 64, 3)
    normal_(layer, 0.01)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not layer.bias.any()
    normal_(nn.Conv2d(1, 1, 1, bias=False), 0.01)  # a layer without biases is fine too


def test_backbones_begin_by_the_rule_that_is_named() -> None:
    weights = {}
    for rule in ("he", "xavier"):
        backbone, top = build_backbone("tiny", settings=MapSettings(initialization=rule, fpn=False))
        weights[rule] = backbone.body["2"][1][0].weight, top[0][1][0].weight
    with pytest.raises(ConfigError, match=r"'kaiming'.*he, xavier"):
        initialize([], "kaiming")
    for he, xavier in zip(weights["he"], weights["xavier"], strict=True):
        fan = he.shape[0] * 9
        assert he.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.05)
        assert xavier.abs().max() <= math.sqrt(6 / (2 * fan)) * 1.0001
