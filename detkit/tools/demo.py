"""`detkit demo`: the main job from end to end, on pictures that it draws itself."""

from __future__ import annotations

import argparse
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from detkit.errors import ConfigError

CONFIG = Path("configs/shapes/faster_rcnn.yaml")


def main(args: Sequence[str]) -> int:
    """Draw Shapes, train Faster R-CNN on it, test, predict, and say where everything is.

    Args:
        args: the arguments after ``demo``; see ``detkit demo --help``.

    Raises:
        ConfigError: if the demo's config is not there.
    """
    parser = argparse.ArgumentParser("detkit demo", description=__doc__)
    parser.add_argument("--output", default="runs/demo", help="folder of the run (default: %(default)s)")
    parser.add_argument("--data", default="data/shapes", help="folder of the drawn pictures (default: %(default)s)")
    parser.add_argument(
        "--fast_dev_run", action="store_true", help="one batch of everything, to see that it works; finds nothing"
    )
    options = parser.parse_args(list(args))
    config = find_config()

    from detkit.cli.lightning_cli import run
    from detkit.engine.checkpoints import find_checkpoint

    began = time.monotonic()
    data = ["--data.path", options.data]
    quick = ["max_epochs", "limit_train_batches", "limit_val_batches", "check_val_every_n_epoch", "log_every_n_steps"]
    once = [word for name in quick for word in (f"--trainer.{name}", "1")]
    _say(1, f"draw pictures into {options.data} and train Faster R-CNN on them ({config})")
    root = ["--trainer.default_root_dir", options.output]
    run("fit", ["--config", str(config), *root, *data, *(once if options.fast_dev_run else [])])
    checkpoint = find_checkpoint(options.output).path
    folder = checkpoint.parent.parent
    limit = {c: ["--trainer.limit_" + c + "_batches", "1"] if options.fast_dev_run else [] for c in ("test", "predict")}
    _say(2, "test the best checkpoint on pictures it has not seen")
    run("test", ["--ckpt_path", str(folder), "--data", "Shapes", *data, *limit["test"]])
    _say(3, "predict, and draw what was found")
    drawn = ["--predictions.draw", "true"]
    run("predict", ["--ckpt_path", str(folder), "--data", "Shapes", *data, *drawn, *limit["predict"]])
    picture = overview(folder, options.data)
    print(f"\nDone in {time.monotonic() - began:.0f} s. In {folder}:")
    for name, what in (
        (picture.name, "12 test pictures: ground truth white, detections in colour"),
        ("predictions/", "each test picture with its detections"),
        ("predictions.json", "all detections, in COCO's format"),
        ("report/index.html", "mAP, curves, errors and what to do about them (a page for the browser)"),
        ("report/metrics.json", "the same numbers, with their protocol"),
        ("metrics.csv", "losses and mAP over the run (events.*: the same for TensorBoard)"),
        ("checkpoints/", "best.ckpt and last.ckpt"),
    ):
        print(f"  {name:<20} {what}")
    print(f'Next: detkit.load("{folder}").predict("picture.jpg"), or notebooks/01_inference.ipynb')
    return 0


def find_config() -> Path:
    """The demo's config: the repository's, or the one installed with the package.

    Raises:
        ConfigError: if there is neither.
    """
    places = [
        Path(__file__).resolve().parents[2] / CONFIG,
        Path(sysconfig.get_path("data")) / "share" / "detkit" / CONFIG,
    ]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(f"the demo's config was not found; looked for {', '.join(map(str, places))}")


def overview(folder: Path, data: str, count: int = 12, columns: int = 4) -> Path:
    """Draw test pictures with ground truth and detections on one sheet, ``overview.png`` in the run's folder."""
    from PIL import Image

    import detkit

    module = detkit.data.Shapes(path=data)
    samples = [module.dataset("test")[i] for i in range(count)]
    model = detkit.load(folder)
    pictures = [
        detkit.draw(sample["image"], found, targets=sample, class_names=model.class_names)
        for sample, found in zip(samples, model.predict([s["image"] for s in samples]), strict=True)
    ]
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 8) - 8, rows * (height + 8) - 8), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, ((i % columns) * (width + 8), (i // columns) * (height + 8)))
    path = folder / "overview.png"
    sheet.save(path)
    return path


def _say(step: int, text: str) -> None:
    print(f"\n[{step}/3] {text}", file=sys.stdout, flush=True)
