"""Options of Faster R-CNN: what they change, and which cannot work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detkit.errors import ConfigError

from .conftest import MAX_POOLING, PYRAMID, Small, assert_same, sample


def test_channels_last_changes_nothing_but_the_order_in_memory(detecting: Small) -> None:
    one, other = detecting(), detecting(features__channels_last=True)
    other.load_state_dict(one.state_dict())
    batch = [sample(64, 96)]
    assert other.encode(batch).features[0].is_contiguous(memory_format=torch.channels_last)
    assert_same(one.detect(batch)[0], other.detect(batch)[0])


def test_frozen_batch_norms_and_a_frozen_backbone(small: Small) -> None:
    model = small(features__transfer="frozen", **PYRAMID)
    names = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad
    }
    assert names == {"backbone.body"}
    before = {k: v.clone() for k, v in model.backbone.body.state_dict().items()}
    model.train().losses([sample(64, 64, [[5.0, 5, 40, 50]])])
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.body.state_dict().items())


def test_anchors_that_are_not_given(small: Small) -> None:
    assert small(**MAX_POOLING).rpn.anchor_generator.strides == [8]
    assert small().rpn.anchor_generator.strides is None
    assert small(anchors__sizes=None).rpn.anchor_generator.num_anchors == [9]
    assert (
        small(anchors__sizes=None, features__fpn=True, features__fpn_channels=8).rpn.anchor_generator.num_anchors
        == [3] * 4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": []}, "class_names must be one or more different names"),
        ({"class_names": ["a", "b", "a"]}, "class_names must be one or more different names"),
        ({"category_ids": [1, 2]}, "2 category_ids for 5 class_names"),
        ({"backbone": "resnet999"}, "'resnet999'"),
        ({"anchors__sizes": [[16.0], [32.0]]}, "2 level"),
        ({"features__fpn": True, "anchors__sizes": [[16.0]]}, "1 level.* 4 levels"),
        ({"roi__pooling": "mean"}, "'mean'"),
        ({"roi__head": "head"}, "'head'"),
        ({"features__fpn": True, "anchors__sizes": None, "roi__head": "top"}, "without fpn"),
        ({"features__transfer": "partial"}, "trainable_stages of at least 1"),
        ({"features__initialization": "random"}, "random"),
        ({"training_scheme": "stepwise"}, "'stepwise'"),
        ({"rpn__foreground_iou": 0.2}, r"rpn\.background_iou 0.3 must .* not above rpn\.foreground_iou 0.2"),
        ({"roi__background_iou": [0.1, 0.6]}, r"roi\.background_iou \[0.1, 0.6\] and roi\.foreground_iou 0.5"),
        ({"roi__background_iou": [0.4, 0.3]}, r"roi\.background_iou \[0.4, 0.3\]"),
        ({"roi__background_iou": [0.1]}, r"roi\.background_iou wants 2 values"),
        ({"roi__background_iou": (0.1,)}, r"roi\.background_iou wants 2 values"),
        ({"roi": 5}, "roi is a group of settings and wants names with values, not 5"),
        ({"protocol": "pascal"}, "'pascal'"),
        ({"image__min_size": 200}, "min_size 200"),
        ({"anchors__convention": "detectron"}, "'detectron'"),
    ],
)
def test_options_that_cannot_work(small: Small, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)
