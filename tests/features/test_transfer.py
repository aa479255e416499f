"""Transfer policies: which parts of a backbone learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detkit.errors import ConfigError
from detkit.features import Backbone, apply_transfer, build_backbone

POLICIES = [("frozen", None, 0), ("partial", 1, 1), ("partial", 3, 3), ("partial", 4, 4), ("full", None, 4)]


def learning(backbone: Backbone) -> set[str]:
    return {name for name, layer in backbone.body.items() if any(p.requires_grad for p in layer.parameters())}


@pytest.mark.parametrize(("policy", "stages", "learn"), POLICIES)
def test_the_last_stages_learn(policy: str, stages: int | None, learn: int) -> None:
    backbone, _ = build_backbone("tiny", fpn=True)
    apply_transfer(backbone, "tiny", policy, stages)
    assert learning(backbone) == {"0", "1", "2", "3"} - {str(i) for i in range(4 - learn)}
    assert all(p.requires_grad for p in backbone.fpn.parameters())
    for name, layer in backbone.body.items():
        norms = [m for m in layer.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        frozen = [isinstance(m, FrozenBatchNorm2d) for m in norms]
        assert frozen == [int(name) < 4 - learn] * (1 if name == "0" else 2)


@pytest.mark.parametrize(("policy", "stages", "learn"), POLICIES)
def test_what_is_frozen_stays_to_the_bit(policy: str, stages: int | None, learn: int) -> None:
    backbone, _ = build_backbone("tiny", fpn=True, fpn_channels=8)
    apply_transfer(backbone, "tiny", policy, stages)
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
        backbone, _ = build_backbone("resnet18", fpn=True)
        apply_transfer(backbone, "resnet18", "partial", 3)
    assert learning(backbone) == {"layer2", "layer3", "layer4"}
    assert isinstance(backbone.body["bn1"], FrozenBatchNorm2d)
    assert list(backbone.body)[:4] == ["conv1", "bn1", "relu", "maxpool"]


def test_stages_of_vgg16_as_the_paper_trains_it() -> None:
    """Fast R-CNN, section 4.5: conv3_1 and up, which are the last three of five stages."""
    with torch.device("meta"):
        backbone, _ = build_backbone("vgg16")
        apply_transfer(backbone, "vgg16", "partial", 3)
    assert learning(backbone) == {"10", "12", "14", "17", "19", "21", "24", "26", "28"}


def test_only_stages_of_the_trunk_count() -> None:
    """Without a pyramid conv5 is not in the body but is the head of each region."""
    with torch.device("meta"):
        backbone, top = build_backbone("resnet18")
        with pytest.raises(ConfigError, match="between 1 and 4 for resnet18, not 5"):
            apply_transfer(backbone, "resnet18", "partial", 5)
        apply_transfer(backbone, "resnet18", "frozen")
    assert not learning(backbone)
    assert all(p.requires_grad for p in top.parameters())


@pytest.mark.parametrize(
    ("policy", "stages", "message"),
    [
        ("freeze", None, "'freeze'; the known ones are frozen, partial, full"),
        ("partial", None, "between 1 and 3 for tiny, not None"),
        ("partial", 0, "between 1 and 3 for tiny, not 0"),
        (
            "full",
            2,
            "trainable_stages goes with transfer: partial, not with transfer: full; set trainable_stages: null",
        ),
        ("frozen", 2, "goes with transfer: partial, not with transfer: frozen"),
    ],
)
def test_what_does_not_fit_is_refused(policy: str, stages: int | None, message: str) -> None:
    backbone, _ = build_backbone("tiny")
    with pytest.raises(ConfigError, match=message):
        apply_transfer(backbone, "tiny", policy, stages)
