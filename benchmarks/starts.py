"""A start from a detector beside a start from ImageNet, at the same steps: AP50 after 25, 50 and 100 % of them.

    python -m benchmarks.starts --folder runs/starts
    python -m benchmarks.starts --folder runs/starts --table benchmarks/results/starts.md

The first command trains what is not yet in the folder (`--target`, `--start`, `--seed` for some of it); the second one
only makes the table. The source is Faster R-CNN on MobileNetV2, trained from ImageNet on the photographs of voc-animals
without a cat or a cow. The targets are BCCD, which is nothing like it, and 200 photographs with cats or cows, classes
and photographs that the source has not seen. Both starts have the same config and options, those of `RECIPE`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.side import pin
from benchmarks.what_helps import ADAMW as RECIPE
from benchmarks.what_helps import SEEDS, mean_and_deviation

ANIMALS = "benchmarks/voc_animals_mobilenet_v2.yaml"
CONFIGS = {"bccd": "benchmarks/bccd_mobilenet_v2.yaml", "cats and cows": ANIMALS}
LEARNT, NEW = ("person", "dog", "horse", "sheep"), ("cat", "cow")
#: Photographs with new classes to train on; 50 steps an epoch.
PHOTOGRAPHS = 200
#: And to validate on: all with new classes, and some without, up to so many.
VALIDATED = 200
SOURCE_EPOCHS, EPOCHS = 3, 4
#: Epochs after which the target is validated.
SHARES = {1: "25 %", 2: "50 %", 4: "100 %"}
IMAGENET, DETECTOR = "ImageNet", "detector"


class Validations(Callback):
    """AP of each validation, by the number of epochs before it."""

    def __init__(self) -> None:
        self.found: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by Lightning."""
        metrics = {name: float(trainer.callback_metrics[f"val/{name}"]) for name in ("map", "map_50", "map_75")}
        self.found[trainer.current_epoch + 1] = {"steps": trainer.global_step, **metrics}


def fit(config: str, epochs: int, seed: int, folder: Path, options: dict[str, str]) -> Any:
    """`detkit fit` with the recipe; gives its command line object."""
    from detkit.cli.lightning_cli import run
    from detkit.cli.noise import quiet

    quiet()
    words = [word for pair in (RECIPE | options).items() for word in pair]
    words += ["--seed_everything", str(seed), "--trainer.max_epochs", str(epochs)]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(folder)]
    return run("fit", ["--config", config, "--import", "benchmarks.starts", *words])


def divided(folder: Path) -> Path:
    """The photographs of voc-animals in image sets by their classes: a VOC folder of links, made once."""
    from benchmarks.side import read_config
    from detkit.data import VOC

    target = folder / "voc"
    if target.is_dir():
        return target
    data = VOC(**read_config(ANIMALS)["data"]["init_args"])
    new = {data.class_names.index(name) + 1 for name in NEW}
    names: dict[str, list[str]] = {}
    for split in ("train", "val"):
        annotations = data.annotations(split)
        for index, image in enumerate(annotations.image_ids):
            labels = set(annotations.fields(index)["labels"].tolist())
            names.setdefault(f"{split}, {'new' if labels & new else 'learnt'}", []).append(str(image))
    root = Path(data.path).resolve()
    (voc,) = (found.parent.parent for found in root.rglob("ImageSets/Main"))
    random.Random(0).shuffle(names["train, new"])
    sets = {
        "source": names["train, learnt"],
        "target": names["train, new"][:PHOTOGRAPHS],
        "val": (names["val, new"] + names["val, learnt"])[:VALIDATED],
    }
    main = target / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for name, images in sets.items():
        (main / f"{name}.txt").write_text("\n".join(images) + "\n", encoding="utf-8")
    for each in ("Annotations", "JPEGImages"):
        os.symlink(voc / each, target / each)
    return target


def source(folder: Path) -> str:
    """The weights of the detector that the others start from; trained once."""
    path = folder / "source.ckpt"
    if not path.is_file():
        data = {"--data.path": str(divided(folder)), "--data.train": "source", "--data.val": "null"}
        data |= {"--data.class_names": f"[{', '.join(LEARNT)}]", "--trainer.enable_checkpointing": "false"}
        cli = fit(ANIMALS, SOURCE_EPOCHS, 0, folder / "source", data)
        cli.trainer.save_checkpoint(path, weights_only=True)
    return str(path)


def train(target: str, start: str, seed: int, folder: Path, output: Path) -> None:
    """One run on a target, validated along the way; writes its results."""
    options = {"--trainer.check_val_every_n_epoch": "1", "--trainer.enable_checkpointing": "false"}
    if start == DETECTOR:
        options |= {"--model.init_from": source(folder), "--model.weights": "null"}
    if CONFIGS[target] == ANIMALS:
        options |= {"--data.path": str(divided(folder)), "--data.train": "target", "--data.val": "val"}
        options |= {"--data.class_names": f"[{', '.join(NEW)}]"}
    options["--trainer.callbacks+"] = "benchmarks.starts.Validations"
    cli = fit(CONFIGS[target], EPOCHS, seed, output.with_suffix(""), options)
    (validations,) = (each for each in cli.trainer.callbacks if hasattr(each, "found"))
    result = {"target": target, "start": start, "seed": seed, "epochs": validations.found}
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def table(folder: Path) -> str:
    """AP50 of each start along the way, mean and deviation over the seeds."""
    lines = [
        "# A start from a detector beside one from ImageNet, at the same steps",
        "",
        f"Faster R-CNN on MobileNetV2, AP50 in percent on the validation set. The source learnt {', '.join(LEARNT)};",
        f"{EPOCHS} epochs of AdamW with a cosine schedule on each target. `python -m benchmarks.starts` repeats it.",
        "",
        f"| target | start | AP50 after {' | '.join(SHARES.values())} | AP75 at the end | seeds |",
        f"|---|---|{'---:|' * (len(SHARES) + 2)}",
    ]
    for target in CONFIGS:
        for start in (IMAGENET, DETECTOR):
            files = [result_file(folder, target, start, seed) for seed in SEEDS]
            results = [json.loads(file.read_text())["epochs"] for file in files if file.is_file()]
            if results:
                cells = [mean_and_deviation([100 * each[str(e)]["map_50"] for each in results]) for e in SHARES]
                cells += [mean_and_deviation([100 * each[str(EPOCHS)]["map_75"] for each in results])]
                lines.append(f"| {target} | {start} | {' | '.join(cells)} | {len(results)} |")
    return "\n".join(lines) + "\n"


def result_file(folder: Path, target: str, start: str, seed: int) -> Path:
    """The file of one run's results."""
    return folder / f"{target.replace(' ', '_')}-{start}-{seed}.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, or make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path, help="of the results, a JSON file each")
    parser.add_argument("--target", choices=tuple(CONFIGS))
    parser.add_argument("--start", choices=(IMAGENET, DETECTOR))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--core", type=int, help="the CPU core this process stays on")
    parser.add_argument("--table", type=Path, help="write the table into this file")
    options = parser.parse_args(argv)
    pin(options.core)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.table:
        text = table(options.folder)
        print(text)
        options.table.write_text(text, encoding="utf-8")
        return
    for seed in SEEDS if options.seed is None else (options.seed,):
        for target in CONFIGS if options.target is None else (options.target,):
            for start in (IMAGENET, DETECTOR) if options.start is None else (options.start,):
                output = result_file(options.folder, target, start, seed)
                if not output.is_file():
                    train(target, start, seed, options.folder, output)


if __name__ == "__main__":
    main()
