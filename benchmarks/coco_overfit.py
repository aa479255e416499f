"""COCO from end to end: overfit six images, predict, and evaluate the predictions with pycocotools.

python -m benchmarks.coco_overfit --data ../shared/data/coco128 --output benchmarks/results/coco_overfit.json

`detkit fit`, `test` and `predict` run as a user types them. The images are the first ones with one to six objects, none
of them a crowd and none with a side below 32 pixels; the results show that boxes, labels and category ids are
handled correctly from file to file, not how well the detector generalises.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_name("coco_overfit.yaml")


def subset(content: dict[str, Any], count: int) -> dict[str, Any]:
    """The first `count` images with one to six plain, large enough objects, and all categories."""
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    fit = [
        image
        for image in content["images"]
        if 1 <= len(objects.get(image["id"], [])) <= 6
        and all(not o.get("iscrowd") and min(o["bbox"][2:]) >= 32 for o in objects[image["id"]])
    ][:count]
    kept = {image["id"] for image in fit}
    return {**content, "images": fit, "annotations": [a for a in content["annotations"] if a["image_id"] in kept]}


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, test, predict, read back, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data/coco128", help="folder of coco128")
    parser.add_argument("--images", type=int, default=6, help="how many images to learn")
    parser.add_argument("--output", required=True, help="JSON file for the results")
    options = parser.parse_args(argv)

    import torch
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from detkit.cli.main import main as detkit

    root = Path(options.data).resolve()
    (annotations,) = (root / "annotations").glob("*.json")
    with tempfile.TemporaryDirectory() as folder:
        part, run = Path(folder) / "part.json", Path(folder) / "run"
        part.write_text(json.dumps(subset(json.loads(annotations.read_text()), options.images)))
        names = ("train", "val", "test")
        data = ["--data.path", str(root)]
        for name in names:
            data += [f"--data.{name}_annotations", str(part), f"--data.{name}_images", "train2017"]
        commands = (
            ["fit", "--config", str(CONFIG), "--trainer.default_root_dir", str(run), *data],
            ["test", "--ckpt_path", str(run)],
            ["predict", "--ckpt_path", str(run)],
        )
        for command in commands:
            if detkit(command) != 0:
                raise SystemExit(f"detkit {command[0]} failed")
        metrics = json.loads(next(run.rglob("metrics.json")).read_text())
        truth = COCO(str(part))
        found = truth.loadRes(str(next(run.rglob("predictions.json"))))
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        result = {
            "images": metrics["num_images"],
            "protocol": metrics["protocol"],
            "detkit test": {"map": metrics["map"], "map_50": metrics["map_50"]},
            "pycocotools on predictions.json": {"map": float(judge.stats[0]), "map_50": float(judge.stats[1])},
            "category ids predicted": sorted({each["category_id"] for each in found.dataset["annotations"]}),
            "category ids of the objects": sorted({each["category_id"] for each in truth.dataset["annotations"]}),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
    text = json.dumps(result, indent=2)
    Path(options.output).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
