"""The three generations on real photographs: each trained on the same images with one backbone, then measured.

    python -m benchmarks.generations --data PATH/voc-animals --weights PATH/mobilenet_v2_imagenet.pth

400 training and 200 validation images of VOC2012's animals, spread evenly over their sets, through
voc_animals_{rcnn,fast_rcnn,mobilenet_v2}.yaml, as many epochs for each; then `detkit benchmark generations` over the
validation images, and `detkit test` for what R-CNN's SVMs and box regressors bring. CSV, JSON and picture go to
benchmarks/results/, with both tables as markdown beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.real_data import ENVIRONMENT
from detkit.evaluation.tables import ablation_table

CONFIGS = {
    "rcnn": "voc_animals_rcnn",
    "fast_rcnn": "voc_animals_fast_rcnn",
    "faster_rcnn": "voc_animals_mobilenet_v2",
}
#: Of selective search's boxes, for those that need them: the same in training and at test, for R-CNN and Fast R-CNN.
PROPOSALS = "[500,500]"
HERE = Path(__file__).parent


def make_subset(data: Path, folder: Path, counts: dict[str, int]) -> Path:
    """A VOC folder of some images of `data`: links to its folders, and new image sets."""
    source = next(path.parent for path in sorted(data.resolve().rglob("ImageSets")))
    sets = folder / "ImageSets" / "Main"
    sets.mkdir(parents=True, exist_ok=True)
    for name in ("Annotations", "JPEGImages"):
        if not (folder / name).exists():
            (folder / name).symlink_to(source / name)
    for split, count in counts.items():
        ids = (source / "ImageSets" / "Main" / f"{split}.txt").read_text(encoding="utf-8").split()
        count = min(count, len(ids))
        chosen = [ids[i * len(ids) // count] for i in range(count)]
        (sets / f"{split}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return folder


def train(work: Path, weights: str, epochs: int, threads: int) -> dict[str, Path]:
    """Fit the three, one after the other; an existing run is used as it is."""
    runs = {}
    for key, config in CONFIGS.items():
        runs[key] = work / key
        if any(runs[key].glob("version_*/checkpoints/last.ckpt")):
            continue
        options = ["--config", str(HERE / f"{config}.yaml"), "--data.path", str(work / "subset")]
        options += ["--model.weights", weights, "--trainer.default_root_dir", str(runs[key])]
        options += ["--trainer.max_epochs", str(epochs), "--trainer.limit_val_batches=0"]
        options += ["--model.proposals.max_boxes", PROPOSALS] if key != "faster_rcnn" else []
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, "-m", "detkit", "fit", *options], check=True, env=environment)
    return runs


def ablation(run: Path, threads: int) -> str:
    """R-CNN with and without SVMs and box regressors, compared by `detkit test`."""
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
    report = run.parent / "report"
    command = [sys.executable, "-m", "detkit", "test", "--ckpt_path", str(run), "--output", str(report)]
    subprocess.run(command, check=True, env=environment)
    return ablation_table(json.loads((report / "metrics.json").read_text(encoding="utf-8"))["ablation"])


def main() -> None:
    """Subset, trainings, tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder around VOC2012's animals")
    parser.add_argument("--weights", required=True, help="ImageNet weights of MobileNetV2")
    parser.add_argument("--epochs", type=int, default=6, help="of each training; R-CNN's: of fine-tuning")
    parser.add_argument("--train_images", type=int, default=400)
    parser.add_argument("--val_images", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_generations"), help="for subset and runs")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    make_subset(args.data, args.work / "subset", {"train": args.train_images, "val": args.val_images})
    runs = train(args.work, args.weights, args.epochs, args.threads)

    os.environ.update({**ENVIRONMENT, "OMP_NUM_THREADS": str(args.threads), "COLUMNS": "150"})
    options = [f"--{key}={path}" for key, path in runs.items()]
    options += ["--images", str(args.val_images), "--rounds", "1", "--output", str(args.work / "table")]
    command = [sys.executable, "-m", "detkit", "benchmark", "generations", *options]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    printed = "\n".join(line for line in printed.splitlines() if not line.startswith(("timing:", "written:")))
    print(printed)
    args.output.mkdir(parents=True, exist_ok=True)
    for name in ("generations.csv", "generations.json", "generations.svg"):
        shutil.copyfile(args.work / "table" / name, args.output / name)
    title = "# Three generations on photographs: R-CNN, Fast and Faster R-CNN with MobileNetV2"
    about = (
        f"{args.train_images} training and {args.val_images} validation images, {args.epochs} epochs each. R-CNN and "
        "Fast R-CNN learn from, and are tested on, the 500 best boxes of selective search."
    )
    parts = "What R-CNN's SVMs and box regressors bring, by `detkit test` of the same checkpoint (AP: VOC07's):"
    compared = ablation(runs["rcnn"], args.threads)
    print(compared)
    text = f"{title}\n\n{about}\n\n```\n{printed.strip()}\n```\n\n{parts}\n\n```\n{compared}\n```\n"
    (args.output / "generations.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
