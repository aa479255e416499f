"""One fit of test_ddp.py on two processes: python ddp_script.py SHAPES_FOLDER RESULT_FOLDER.

Lightning starts the second process with the same command.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch

import detkit
from detkit.data import Shapes
from detkit.evaluation import coco
from detkit.settings import construct


def main(shapes: str, results: str) -> None:
    warnings.filterwarnings("ignore")
    counted: list[list[str]] = []
    evaluate = coco.evaluate

    def note(evaluation_set: Any, *rest: Any) -> Any:
        counted.append([str(image_id) for image_id in evaluation_set.image_ids])
        return evaluate(evaluation_set, *rest)

    coco.evaluate = note
    L.seed_everything(1, verbose=False)
    data = Shapes(shapes, 7, 5, 3, 64, batch_size=2, num_workers=0)
    model = construct(
        detkit.FasterRCNN,
        {
            "class_names": data.class_names,
            "backbone": "tiny",
            "features__fpn": False,
            "image__min_size": 64,
            "image__max_size": 64,
            "anchors__sizes": [[16.0, 32.0]],
            "rpn__pre_nms": (60, 40),
            "rpn__post_nms": (30, 20),
            "roi__pool_size": 3,
            "roi__head_channels": 16,
            "detection__score_threshold": 0.01,
            "optim__lr": 0.02,
            "optim__warmup_steps": 2,
        },
    )
    seen: list[str] = []
    honest = model.losses

    def losses(batch: list[dict[str, Any]], encoded: Any = None) -> dict[str, torch.Tensor]:
        if model.training:
            seen.extend(sample["image_id"] for sample in batch)
        return honest(batch, encoded)

    model.losses = losses  # type: ignore[method-assign]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    metrics = []
    trainer.fit(model, datamodule=data)
    metrics.append({k: v.item() for k, v in trainer.callback_metrics.items()})
    for run in (trainer.validate, trainer.test):
        run(model, datamodule=data, verbose=False)
        metrics.append({k: v for k, v in model.last_metrics.items() if k.startswith("ma")})
    result = {
        "counted": counted,
        "seen": seen,
        "metrics": metrics,
        "weights": [v.double().sum().item() for v in model.state_dict().values()],
    }
    (Path(results) / f"{trainer.global_rank}.json").write_text(json.dumps(result))
    trainer.save_checkpoint(Path(results) / "end.ckpt")


if __name__ == "__main__":
    main(*sys.argv[1:])
