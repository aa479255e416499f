"""Options of Faster R-CNN: what they change, and which cannot work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detkit.errors import ConfigError

from .conftest import Small, assert_same, sample

PYRAMID: dict[str, Any] = {"fpn": True, "fpn_channels": 16, "anchor_sizes": [[8.0], [16.0], [32.0], [64.0]]}
MAX_POOLING: dict[str, Any] = {"pooling": "max", "box_head": "top", "anchor_convention": "paper", "rpn_straddle": 0.0}


def test_channels_last_changes_nothing_but_the_order_in_memory(detecting: Small) -> None:
    one, other = detecting(), detecting(channels_last=True)
    other.load_state_dict(one.state_dict())
    batch = [sample(64, 96)]
    assert other.encode(batch).features[0].is_contiguous(memory_format=torch.channels_last)
    assert_same(one.detect(batch)[0], other.detect(batch)[0])


def test_frozen_batch_norms_and_a_frozen_backbone(small: Small) -> None:
    model = small(transfer="frozen", **PYRAMID)
    names = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad
    }
    assert names == {"backbone.body"}
    before = {k: v.clone() for k, v in model.backbone.body.state_dict().items()}
    model.train().losses([sample(64, 64, [[5.0, 5, 40, 50]])])
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.body.state_dict().items())


def test_paper_anchors_stand_at_the_backbones_stride(small: Small) -> None:
    assert small(**MAX_POOLING).rpn.anchor_generator.strides == [8]
    assert small().rpn.anchor_generator.strides is None


def test_anchors_that_are_not_given(small: Small) -> None:
    assert small(anchor_sizes=None).rpn.anchor_generator.num_anchors == [9]
    assert small(anchor_sizes=None, fpn=True, fpn_channels=8).rpn.anchor_generator.num_anchors == [3] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": []}, "class_names must be one or more different names"),
        ({"class_names": ["a", "b", "a"]}, "class_names must be one or more different names"),
        ({"category_ids": [1, 2]}, "2 category_ids for 5 class_names"),
        ({"backbone": "resnet999"}, "'resnet999'"),
        ({"anchor_sizes": [[16.0], [32.0]]}, "2 level"),
        ({"fpn": True, "anchor_sizes": [[16.0]]}, "1 level.* 4 levels"),
        ({"pooling": "mean"}, "'mean'"),
        ({"box_head": "head"}, "'head'"),
        ({"fpn": True, "anchor_sizes": None, "box_head": "top"}, "without fpn"),
        ({"transfer": "partial"}, "trainable_stages of at least 1"),
        ({"initialization": "random"}, "'random'"),
        ({"training_scheme": "stepwise"}, "'stepwise'"),
        ({"protocol": "pascal"}, "'pascal'"),
        ({"min_size": 200}, "min_size 200"),
        ({"anchor_convention": "detectron"}, "'detectron'"),
    ],
)
def test_options_that_cannot_work(small: Small, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)
