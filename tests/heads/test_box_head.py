"""The layers behind RoI pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from detkit.errors import ConfigError
from detkit.features import MapSettings, build_backbone
from detkit.heads import BoxPredictor, RoISettings, build_box_head


def test_two_fully_connected_layers() -> None:
    head, outputs = build_box_head(RoISettings(head="mlp", pool_size=3, head_channels=16), 8)
    x = torch.randn(5, 8, 3, 3)
    assert outputs == 16
    expected = (x.flatten(1) @ head.fc6.weight.T + head.fc6.bias).relu()
    expected = (expected @ head.fc7.weight.T + head.fc7.bias).relu()
    torch.testing.assert_close(head(x), expected)


def test_dropout_in_training_only() -> None:
    head, _ = build_box_head(RoISettings(head="mlp", pool_size=3, head_channels=200, dropout=0.5), 8)
    x = torch.randn(50, 8, 3, 3)
    learning, at_work = [(head.train(mode)(x) == 0).float().mean().item() for mode in (True, False)]
    assert learning == pytest.approx((at_work + 1) / 2, abs=0.1)
    assert torch.equal(head(x), head(x))


def test_four_convolutions_and_one_fully_connected_layer() -> None:
    head, outputs = build_box_head(RoISettings(head="conv", pool_size=3, head_channels=16), 8)
    assert (outputs, head(torch.randn(5, 8, 3, 3)).shape) == (16, (5, 16))
    assert [type(m).__name__ for m in head.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)] == [
        *["Conv2d", "BatchNorm2d"] * 4,
        "Linear",
    ]


def test_the_rest_of_the_backbones_own_network() -> None:
    backbone, top = build_backbone("tiny", settings=MapSettings(fpn=False))
    (inputs,) = backbone.channels
    head, outputs = build_box_head(RoISettings(head="top", pool_size=5), inputs, top)
    assert head is top and outputs == 192
    norm = next(m for m in top.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.training and norm.num_batches_tracked == 0  # measuring its outputs was no batch
    assert head(torch.randn(3, inputs, 5, 5)).shape == (3, 192)


@pytest.mark.parametrize(
    ("settings", "rest", "message"),
    [
        (
            {"head": "top", "pool_size": 6},
            {"top": nn.Sequential(nn.Flatten(), nn.Linear(392, 10))},
            "not take 6x6 feat",
        ),
        ({"head": "fpn"}, {}, r"roi.head: there is no 'fpn'.* mlp, conv, top"),
        ({"head": "top"}, {}, r"use roi\.head: mlp"),
        ({}, {"initialization": "zeros"}, "'zeros'"),
    ],
)
def test_heads_that_cannot_be_built(settings: dict[str, Any], rest: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_box_head(RoISettings(**settings), 8, **rest)


def test_new_layers_begin_by_the_rule_that_is_named() -> None:
    xavier, _ = build_box_head(RoISettings(head="mlp", pool_size=7, head_channels=300), 8, initialization="xavier")
    he, _ = build_box_head(RoISettings(head="mlp", pool_size=7, head_channels=300), 8)
    assert xavier.fc7.weight.abs().max() <= (6 / 600) ** 0.5
    assert he.fc7.weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.05)


def test_the_predictor_counts_background_and_begins_as_the_papers_did() -> None:
    predictor = BoxPredictor(300, num_classes=20)
    logits, deltas = predictor(torch.randn(4, 300))
    assert logits.shape == (4, 21) and deltas.shape == (4, 21, 4)
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not predictor.cls_score.bias.any() and not predictor.bbox_pred.bias.any()
    with torch.autocast("cpu", torch.bfloat16):
        assert {part.dtype for part in predictor(torch.randn(4, 300))} == {torch.float32}
