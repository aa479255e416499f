"""The table of what learns and what is fixed."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import pytest
from torchvision.ops import FrozenBatchNorm2d

from detkit.data import Shapes
from detkit.engine.summary import trainable_table
from tests.detectors.conftest import Small

pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`")


def rows(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()}


def test_every_part_is_counted_once(small: Small) -> None:
    model = small(transfer="partial", trainable_stages=1)
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
    model = small(transfer="frozen")
    trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=shapes())
    assert trainable_table(model) in capsys.readouterr().out
