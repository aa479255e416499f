"""Transfer policies: which parts of a backbone learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detkit.errors import ConfigError
from detkit.features import Backbone, MapSettings, build_backbone

POLICIES = [("frozen", None, 0), ("partial", 1, 1), ("partial", 3, 3), ("partial", 4, 4), ("full", None, 4)]


def learning(backbone: Backbone) -> set[str]:
    return {name for name, layer in backbone.body.items() if any(p.requires_grad for p in layer.parameters())}


@pytest.mark.parametrize(("policy", "stages", "learn"), POLICIES)
def test_the_last_stages_learn(policy: str, stages: int | None, learn: int) -> None:
    backbone, _ = build_backbone("tiny", settings=MapSettings(policy, stages))
    assert learning(backbone) == {"0", "1", "2", "3"} - {str(i) for i in range(4 - learn)}
    assert all(p.requires_grad for p in backbone.fpn.parameters())
    for name, layer in backbone.body.items():
        norms = [m for m in layer.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        frozen = [isinstance(m, FrozenBatchNorm2d) for m in norms]
        assert frozen == [int(name) < 4 - learn] * (1 if name == "0" else 2)


@pytest.mark.parametrize(("policy", "stages", "learn"), POLICIES)
def test_what_is_frozen_stays_to_the_bit(policy: str, stages: int | None, learn: int) -> None:
    backbone, _ = build_backbone("tiny", settings=MapSettings(policy, stages, fpn_channels=8))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    backbone.train()
    sum(f.square().mean() for f in backbone(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    changed = {
        k.split(".")[1] for k, v in backbone.state_dict().items() if k[:4] == "body" and not torch.equal(v, before[k])
    }
    assert changed == learning(backbone)


def test_stages_of_a_resnet() -> None:
    """torchvision's "three trainable layers" are the last three stages; conv1 and its batch norm are one stage."""
    with torch.device("meta"):
        backbone, _ = build_backbone("resnet18", settings=MapSettings("partial", 3))
    assert learning(backbone) == {"layer2", "layer3", "layer4"}
    assert isinstance(backbone.body["bn1"], FrozenBatchNorm2d)
    assert list(backbone.body)[:4] == ["conv1", "bn1", "relu", "maxpool"]


def test_stages_of_vgg16_as_the_paper_trains_it() -> None:
    """Fast R-CNN, section 4.5: conv3_1 and up, which are the last three of five stages."""
    with torch.device("meta"):
        backbone, _ = build_backbone("vgg16", settings=MapSettings("partial", 3, fpn=False))
    assert learning(backbone) == {"10", "12", "14", "17", "19", "21", "24", "26", "28"}


@pytest.mark.parametrize(
    ("name", "learn"),
    [
        ("efficientnet_b0", {"4", "5", "6", "7"}),
        ("regnet_y_400mf", {"block3", "block4"}),
        ("convnext_tiny", {"4", "5", "6", "7"}),
        ("swin_t", {"4", "5", "6", "7"}),
    ],
)
def test_two_stages_of_newer_networks(name: str, learn: set[str]) -> None:
    with torch.device("cpu" if name == "regnet_y_400mf" else "meta"):
        backbone, _ = build_backbone(name, settings=MapSettings("partial", 2))
    assert learning(backbone) == learn
    new = [p for name, p in backbone.named_parameters() if not name.startswith("body")]
    assert new and all(p.requires_grad for p in new)


def test_only_stages_of_the_trunk_count() -> None:
    """Without a pyramid conv5 is not in the body but is the head of each region."""
    with torch.device("meta"):
        with pytest.raises(ConfigError, match="trainable_stages must be 1 to 4 for resnet18, not 5"):
            build_backbone("resnet18", settings=MapSettings("partial", 5, fpn=False))
        backbone, top = build_backbone("resnet18", settings=MapSettings("frozen", fpn=False))
    assert not learning(backbone)
    assert all(p.requires_grad for p in top.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer": "freeze"}, "features.transfer: there is no 'freeze'.* The choices are frozen, partial, full"),
        ({"transfer": "partial"}, "features.trainable_stages of at least 1, not None"),
        ({"transfer": "partial", "trainable_stages": 0}, "features.trainable_stages of at least 1, not 0"),
        ({"transfer": "full", "trainable_stages": 2}, "goes with features.transfer partial, not with full"),
        ({"transfer": "frozen", "trainable_stages": 2}, "goes with features.transfer partial, not with frozen"),
        ({"initialization": "kaiming"}, "features.initialization: there is no 'kaiming'; the choices are he, xavier"),
        ({"fpn_channels": 0}, "features.fpn_channels: 0 must be at least 1"),
        ({"fpn_channels": 10**9}, "features.fpn_channels: 1000000000 must be at least 1 and at most 65536"),
        ({"levels": []}, "features.levels is empty"),
        ({"batch_norm_eps": -0.1}, "features.batch_norm_eps: -0.1 must be at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MapSettings(**options)
