"""A detector so small that a step takes some milliseconds, data for it, and a silent trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import detkit
from detkit.data import Shapes
from detkit.data.shapes_drawing import SHAPE_CLASSES
from detkit.settings import construct
from tests.detectors.rcnn.rcnn_fits import Fit, Fitted, make_fit

Small = Callable[..., detkit.FasterRCNN]
Sample = dict[str, Any]

OPTIONS: dict[str, Any] = {
    "class_names": list(SHAPE_CLASSES),
    "backbone": "tiny",
    "features__fpn": False,
    "image__min_size": 64,
    "image__max_size": 96,
    "anchors__sizes": [[16.0, 32.0]],
    "rpn__pre_nms": [60, 40],
    "rpn__post_nms": [30, 20],
    "rpn__batch_size": 32,
    "roi__batch_size": 16,
    "roi__pool_size": 3,
    "roi__head_channels": 16,
    "detection__score_threshold": 0.01,
    "optim__warmup_steps": 2,
    "optim__lr": 0.01,
}

PYRAMID: dict[str, Any] = {
    "features__fpn": True,
    "features__fpn_channels": 16,
    "anchors__sizes": [[8.0], [16.0], [32.0], [64.0]],
}
MAX_POOLING: dict[str, Any] = {
    "roi__pooling": "max",
    "roi__head": "top",
    "anchors__convention": "paper",
    "rpn__straddle": 0.0,
}


@pytest.fixture(scope="session")
def small() -> Small:
    """`small(**options)` -> a Faster R-CNN; the same options give the same weights."""

    def build(**options: Any) -> detkit.FasterRCNN:
        torch.manual_seed(0)
        return construct(detkit.FasterRCNN, OPTIONS | options)

    return build


@pytest.fixture(scope="session")
def detecting(small: Small) -> Small:
    """As `small`, but with scores that differ from place to place, as after training."""

    def build(**options: Any) -> detkit.FasterRCNN:
        model = small(**options)
        for layer, deviation in ((model.rpn.head.cls_logits, 0.5), (model.roi_heads.box_predictor.cls_score, 0.3)):
            torch.nn.init.normal_(layer.weight, std=deviation)
        torch.nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
        return model.eval()

    return build


def sample(
    height: int, width: int, boxes: list[list[float]] | None = None, labels: list[int] | None = None, **fields: Any
) -> Sample:
    """A sample with a random image; `difficult` and `crowd` are False where they are not given."""
    boxes = boxes or []
    count = len(boxes)
    made: Sample = {
        "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
        "boxes": torch.tensor(boxes).reshape(-1, 4).float(),
        "labels": torch.tensor(labels or [1] * count, dtype=torch.int64),
        "difficult": torch.zeros(count, dtype=torch.bool),
        "crowd": torch.zeros(count, dtype=torch.bool),
        "area": torch.zeros(count),
        "image_id": f"{height}x{width}",
    }
    return made | fields


def in_the_order_of(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """The detections ``b``, each at the place of the nearest of ``a``: almost equal scores have no order."""
    far = (a["boxes"][:, None] - b["boxes"]).abs().amax(2) + 1e4 * (a["labels"][:, None] != b["labels"])
    order = torch.from_numpy(linear_sum_assignment(far.numpy())[1])
    return {name: values[order] for name, values in b.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], pixels: float = 1e-3) -> None:
    """Detections that are equal up to rounding."""
    assert torch.equal(a["labels"], b["labels"])
    torch.testing.assert_close(a["scores"], b["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(a["boxes"], b["boxes"], atol=pixels, rtol=0)


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names of tensors that are not equal to the bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes on disk: 8 images to train on, 3 to validate, 3 to test; 64 pixels a side."""
    path = tmp_path_factory.mktemp("drawn") / "shapes"
    Shapes(str(path), 8, 3, 3, 64).prepare_data()
    return path


@pytest.fixture(scope="session")
def shapes(drawn: Path) -> Callable[..., Shapes]:
    """`shapes(**options)` -> the data module of `drawn`."""

    def build(**options: Any) -> Shapes:
        return Shapes(str(drawn), 8, 3, 3, 64, **({"batch_size": 2, "num_workers": 0} | options))

    return build


@pytest.fixture(scope="session")
def trainer() -> Callable[..., L.Trainer]:
    """`trainer(**options)` -> one that prints and writes nothing unless asked."""

    def build(**options: Any) -> L.Trainer:
        silent: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": any(type(c).__name__ == "ModelCheckpoint" for c in options.get("callbacks", ())),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        return L.Trainer(**(silent | options))

    return build


@pytest.fixture(scope="session")
def fit_rcnn(shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer]) -> Fit:
    return make_fit(shapes, trainer)


@pytest.fixture(scope="session")
def whole_fit(fit_rcnn: Fit, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit_rcnn(tmp_path_factory.mktemp("whole"))
