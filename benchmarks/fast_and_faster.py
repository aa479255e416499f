"""Fast R-CNN beside Faster R-CNN on photographs: the same backbone, number of steps and schedule, and their proposals.

    python -m benchmarks.fast_and_faster --data PATH/voc-animals --weights PATH/mobilenet_v2_imagenet.pth

Both are trained by `detkit fit` with voc_animals_{fast_rcnn,mobilenet_v2}.yaml, tested by COCO's and VOC2007's
protocol, and their proposals for the validation set compared with the objects. What --work already contains is not
computed again. Writes benchmarks/results/fast_and_faster.json and the table as .md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.real_data import ENVIRONMENT, machine

HERE = Path(__file__).parent
SIDES = {"fast_rcnn": "voc_animals_fast_rcnn", "faster_rcnn": "voc_animals_mobilenet_v2"}
CLASSES = "[person,cat,dog,horse,sheep,cow]"


def detkit(*args: str) -> None:
    """Run detkit with one thread.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, "-m", "detkit", *args], check=True, env={**os.environ, **ENVIRONMENT})


def run(side: str, data: str, weights: str, steps: int, work: Path) -> dict[str, Any]:
    """Train, test and propose; the metrics by protocol, and the proposals' numbers."""
    folder, given = work / side, ["--data.path", data]
    if side == "fast_rcnn":
        given += ["--model.proposals.path", str(work / "proposals")]
        (work / "proposals").mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("version_*/checkpoints/last.ckpt")):
        length = ["--trainer.max_epochs=-1", "--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0"]
        config = ["--config", str(HERE / f"{SIDES[side]}.yaml"), "--model.weights", weights]
        detkit("fit", *config, *given, *length, "--trainer.default_root_dir", str(folder))
    found: dict[str, Any] = {}
    for protocol in ("coco", "voc07"):
        output = folder / protocol
        if not (output / "metrics.json").is_file():
            options = ["--model.protocol", protocol, "--output", str(output)]
            detkit("test", "--ckpt_path", str(folder), *given, *options)
        found[protocol] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    store = work / f"{side}_val.proposals"
    if side == "faster_rcnn":
        method = ["--method", "StoredRPN", "--ckpt_path", str(folder)]
    else:
        method = ["--method", "SelectiveSearch", "--method.max_boxes", "1000"]
    chosen = ["--data", "VOC", "--data.path", data, "--data.class_names", CLASSES, "--data.other_classes", "drop"]
    detkit("propose", *chosen, "--split", "val", *method, "--output", str(store))
    return found | {"proposals": recall(store, data)}


def recall(path: Path, data: str) -> dict[str, Any]:
    """Recall and mean average best overlap of a store's boxes, and their number."""
    from detkit.data import VOC
    from detkit.proposals import ProposalStore
    from detkit.tools.propose import recall_of

    store = ProposalStore(path)
    voc = VOC(path=data, class_names=CLASSES.strip("[]").split(","), other_classes="drop")
    annotations = voc.annotations("val")
    numbers = recall_of(store, annotations, voc.num_classes)
    return {
        "method": store.method.rpartition(".")[2],
        "boxes an image": float(store.counts.mean()),
        "recall at IoU 0.5": float(numbers.recall_50[0]),
        "recall at IoU 0.7": float(numbers.recall_70[0]),
        "MABO": float(numbers.mabo[0]),
        "objects": int((~(annotations.difficult | annotations.crowd)).sum()),
    }


def table(result: dict[str, Any]) -> str:
    """The result as markdown."""
    fast, faster = (result["sides"][side] for side in SIDES)
    lines = ["# Fast R-CNN beside Faster R-CNN: MobileNetV2 on VOC2012's animals", "", result["about"], ""]
    lines += ["|  | Fast R-CNN | Faster R-CNN |", "|---|---:|---:|"]
    first, second = fast["proposals"], faster["proposals"]
    rows = [("COCO AP", "coco", "map"), ("COCO AP50", "coco", "map_50"), ("VOC07 mAP", "voc07", "map")]
    lines += [f"| {name} | {fast[p][k]:.3f} | {faster[p][k]:.3f} |" for name, p, k in rows]
    lines += [f"| proposals by | {first['method']} | {second['method']} |"]
    lines += [f"| boxes an image | {first['boxes an image']:.0f} | {second['boxes an image']:.0f} |"]
    for name in ("recall at IoU 0.5", "recall at IoU 0.7", "MABO"):
        lines += [f"| {name} of {first['objects']} objects | {first[name]:.3f} | {second[name]:.3f} |"]
    lines += ["", f"{fast['coco']['protocol']}. {fast['voc07']['protocol']}.", "", result["machine_in_words"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Both sides, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder around VOC2012's animals")
    parser.add_argument("--weights", required=True, help="ImageNet weights of MobileNetV2")
    parser.add_argument("--steps", type=int, default=560, help="of each training, 4 images a step")
    parser.add_argument("--work", type=Path, default=Path("runs/fast_and_faster"), help="for runs and proposals")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "fast_and_faster.json")
    args = parser.parse_args()
    sides = {side: run(side, args.data, args.weights, args.steps, args.work) for side in SIDES}
    images = sides["fast_rcnn"]["coco"]["num_images"]
    about = (
        f"{args.steps} steps of 4 images each, seed 0, the rate drops at three quarters; {images} validation images."
    )
    kept = ("map", "map_50", "map_75", "map_per_class", "protocol", "num_images")
    plain = {
        side: {p: {k: v for k, v in found[p].items() if k in kept} for p in ("coco", "voc07")}
        | {"proposals": found["proposals"]}
        for side, found in sides.items()
    }
    about_machine = machine()
    m = about_machine
    words = f"{m['date']}: {m['cpu']}, {m['cores']} cores, torch {m['torch']}, torchvision {m['torchvision']}."
    result = {"about": about, "sides": plain, "machine": about_machine, "machine_in_words": words}
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    args.output.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
