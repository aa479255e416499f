"""The linear classifier and the MLP: what they compute, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from detkit.classification import ClassFolder, ImageClassifier
from detkit.errors import ConfigError
from detkit.settings import construct

OPTIONS: dict[str, Any] = {
    "class_names": ["cat", "dog", "fox"], "crop_size": 8, "optim__lr": 0.01, "optim__warmup_steps": 0
}  # fmt: skip


def classifier(backbone: str, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return construct(ImageClassifier, OPTIONS | {"backbone": backbone} | options)


def test_they_compute_sums_of_pixels() -> None:
    pixels = torch.rand(5, 3, 8, 8)
    flat = pixels.reshape(5, -1)
    linear, mlp = classifier("linear").network, classifier("mlp").network
    torch.testing.assert_close(linear(pixels), flat @ linear.output.weight.T + linear.output.bias)
    hidden = (flat @ mlp.hidden.weight.T + mlp.hidden.bias).clamp(min=0)
    torch.testing.assert_close(mlp(pixels), hidden @ mlp.output.weight.T + mlp.output.bias)
    assert sum(p.numel() for p in linear.parameters()) == 3 * 192 + 3


@pytest.mark.parametrize("backbone", ["linear", "mlp"])
def test_they_learn_and_take_images_of_any_size(backbone: str, make_folder: Callable[..., Path]) -> None:
    names = ("cat", "dog", "fox")
    root = make_folder({f"{split}/{name}": n for split, n in (("train", 8), ("val", 3)) for name in names})
    model = classifier(backbone)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, max_epochs=8,
    )  # fmt: skip
    trainer.fit(model, ClassFolder(str(root), batch_size=4, num_workers=0))
    assert model.last_metrics["accuracy"] > 0.8
    assert model([torch.zeros(3, 30, 50, dtype=torch.uint8)]).shape == (1, 3)


def test_no_weights_and_no_other_names() -> None:
    with pytest.raises(ConfigError, match="linear has no initial weights, got weights 'DEFAULT': leave them out"):
        classifier("linear", weights="DEFAULT")
    with pytest.raises(ConfigError, match="did you mean 'mlp'"):
        classifier("mlpp")
