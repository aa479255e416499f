"""The table of what learns and what is fixed."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from detkit import FasterRCNN, FastRCNN
from detkit.data import Shapes
from detkit.engine.summary import random_lines, trainable_table
from detkit.settings import construct
from tests.detectors.conftest import Small

pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`")


def rows(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()}


def test_every_part_is_counted_once(small: Small) -> None:
    model = small(features__transfer="partial", features__trainable_stages=1)
    table = rows(trainable_table(model))
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    frozen = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    fixed += sum(2 * len(m.weight) for m in frozen)  # scale and shift, which are no parameters any more
    assert len(frozen) == 3
    assert table["total"] == [f"{learns:,}", f"{fixed:,}"]
    first, last = (model.backbone.body[name] for name in ("0", "2"))
    assert table["backbone.body.0"] == ["0", f"{first[0].weight.numel() + 2 * len(first[0].weight):,}", "1", "frozen"]
    assert table["backbone.body.2"] == [f"{sum(p.numel() for p in last.parameters()):,}", "0", "2", "learning"]
    assert table["rpn.head"][1] == table["roi_heads.box_head"][1] == "0"
    counted = [int(row[0].replace(",", "")) for name, row in table.items() if name not in ("part", "total")]
    assert sum(counted) == learns


def test_it_is_printed_at_the_start_of_a_fit(
    small: Small, shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    model = small(features__transfer="frozen")
    trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=shapes())
    assert "\n".join([trainable_table(model, detailed=False), *random_lines(model)]) in capsys.readouterr().out


def test_random_layers_that_are_frozen_are_told(small: Small) -> None:
    for settings, layers in (
        ({"features__transfer": "partial", "features__trainable_stages": 1}, "0, 1"),
        ({"features__freeze_batch_norm": True}, "0, 1, 2"),
    ):
        model = small(**settings)
        (line,) = random_lines(model)
        assert line.startswith(f"warning: {layers} of tiny are fixed at random values") and "--model.weights" in line
        other = small(**settings)
        other.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})
        assert random_lines(other) == []  # weights came later, as in `detkit.load`
    assert random_lines(small()) == []


def test_the_papers_numbers() -> None:
    with torch.device("meta"):
        detector = construct(
            FasterRCNN,
            {"class_names": ["cat"], "backbone": "vgg16", "features__fpn": False, "anchors__sizes": [[128, 256, 512]]},
        )
    assert detector.feature_lines() == ["map 29: stride 16 px, receptive field 228 px, anchors 128, 256, 512 px"]
    detector = construct(FastRCNN, {"class_names": ["cat"], "backbone": "tiny", "features__fpn": False})
    assert detector.feature_lines() == ["map 2: stride 8 px, receptive field 39 px"]


def test_a_pyramid_has_a_line_for_each_map() -> None:
    sizes = [[8.0, 11.5], [16.0, 23.0], [32.0, 45.0], [64.0, 90.0]]
    settings = {"features__fpn_channels": 8, "anchors__sizes": sizes, "rpn__convolutions": 2}
    detector = construct(FasterRCNN, {"class_names": ["cat"], "backbone": "tiny", **settings})
    assert detector.feature_lines() == [
        "map 1: stride 4 px, receptive field 39 px without the top-down path, anchors 8, 11.5 px",
        "map 2: stride 8 px, receptive field 87 px without the top-down path, anchors 16, 23 px",
        "map 3: stride 16 px, receptive field 183 px without the top-down path, anchors 32, 45 px",
        "map pool: stride 32 px, receptive field 247 px without the top-down path, anchors 64, 90 px",
    ]
