"""A config that fits a data set and this machine, with the reason of each value."""

from __future__ import annotations

import os
import platform
import re
import shlex
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from detkit.boxes.anchor_fit import fit_anchors
from detkit.config_files import find_config
from detkit.data.annotations import Annotations
from detkit.data.datamodule import DetectionDataModule
from detkit.data.layouts import find_layout
from detkit.data.layouts import open as open_data
from detkit.data.sampler import classes_of_images, repeat_factors
from detkit.detectors.faster_rcnn import FasterRCNN
from detkit.engine.optimization import OptimSettings, build_optimizer
from detkit.engine.time_estimate import RECIPE_MINUTES
from detkit.errors import ConfigError, DataError
from detkit.files import check_output, write_text
from detkit.settings import check_range, construct, parameters_of
from detkit.system import available_cores, keep_freed_memory
from detkit.tools.doctor import SMALL, SMALL_SHARE, resized_sides

#: Shorter sides that a recipe for a CPU chooses from.
CPU_SIZES = (320, 384, 448, 512, 640)
#: Shorter side and limit of the longer one of the recipes for a GPU.
GPU_SIZE = (800, 1333)
#: A run is not planned with fewer steps, or with more epochs.
MIN_STEPS, MAX_EPOCHS = 200, 120
#: Validations of a run.
VALIDATIONS = 8
#: From so many classes, of which the rarest is in less than this share of the images, rare ones are read more often.
MANY_CLASSES, RARE = 20, 0.05
HALF = {"bf16": torch.bfloat16, "16": torch.float16}
#: Steps that are timed, the first of which does not count.
TIMED = 4
COMMENT_COLUMN = 34


@dataclass(frozen=True)
class RecipeResult:
    """What `recipe` returns.

    Attributes:
        path: the config.
        base: the project's config that it is made of.
        values: dotted names of the values that were chosen -> value and reason.
        minutes: how long the run will take.
        text: all of it, in words.
    """

    path: Path
    base: str
    values: dict[str, tuple[Any, str]]
    minutes: float
    text: str


def recipe(
    path: str, minutes: float = RECIPE_MINUTES, output: str | Path | None = None, replace: bool = False
) -> RecipeResult:
    """Write a config for `detkit fit` that fits a data set and this machine, and say why each value is as it is.

    It takes the project's config for this kind of machine and data, chooses sizes, anchors and counts by the objects,
    and times some steps on the data's own images to fill the time.

    Args:
        path: The data set, a folder or file of any layout.
        minutes: How long the run may take.
        output: The file; by default the data set's name with .yaml, in the working directory.
        replace: Whether a file that is there is replaced.

    Raises:
        DetkitError: there is no data set, it has nothing to learn from, or the file cannot be written.
    """
    check_range("minutes", minutes, 0, open_low=True)
    layout = find_layout(path)
    file = Path(output) if output is not None else Path(f"{Path(os.path.abspath(path)).name.partition('.')[0]}.yaml")
    check_output(file.parent)
    if file.exists() and not replace:
        raise ConfigError(f"{file}: is there already; --replace true replaces it, --output FILE names another")
    data = open_data(path)
    train = data.annotations("train")
    if train is None or not len(train.boxes):
        raise DataError(f"{path}: the training set has no box to learn from")
    facts = Facts.of(train, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = _base(device, facts, train)
    text = find_config(f"faster_rcnn/{base}").read_text(encoding="utf-8")
    plan = Plan(
        re.sub(r"\A(#.*\n)+", f"# Made by `detkit recipe` of faster_rcnn/{base}, for {_machine(device)}.\n", text)
    )
    plan.set("data.class_path", layout.class_name, layout.why)
    plan.set(
        "data.init_args.path",
        os.path.abspath(layout.arguments.get("path", path)),
        f"{facts.images:,} images to train on",
    )
    defaults = parameters_of(type(data))
    for name, value in layout.arguments.items():
        if name != "path" and value != defaults[name][1]:
            plan.add("data.init_args", name, value, "of this layout")
    _fit_sizes(plan, train, device)
    if facts.classes >= MANY_CLASSES and facts.rarest < RARE:
        plan.set("data.init_args.repeat_threshold", RARE, f"the rarest class is in {facts.rarest:.1%} of the images")
    if facts.most > 0.9 * plan["model.init_args.detection.max_detections"]:
        limit = int(np.ceil(facts.most * 1.5 / 100) * 100)
        plan.set("model.init_args.detection.max_detections", limit, f"an image has up to {facts.most} objects")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        plan.set("trainer.precision", "16-mixed", "this GPU has no bf16")
    total = _fit_time(plan, data, train, facts, minutes, device)
    write_text(file, plan.text)
    return RecipeResult(file, base, plan.values, total, _describe(file, base, plan, facts, minutes, total, device))


@dataclass(frozen=True)
class Facts:
    """What a recipe needs to know of a data set.

    Attributes:
        images: of the training set.
        validated: images of the validation set.
        classes: number of classes.
        rarest: share (0-1) of the images that have the rarest class; classes without any box do not count.
        most: objects of the image that has most.
    """

    images: int
    validated: int
    classes: int
    rarest: float
    most: int

    @classmethod
    def of(cls, train: Annotations, data: DetectionDataModule) -> Facts:
        """Count."""
        counts = np.bincount(classes_of_images(train.labels, train.offsets)[:, 1])
        val = data.annotations("val")
        rarest = float(counts[counts > 0].min() / len(train))
        return cls(len(train), 0 if val is None else len(val), data.num_classes, rarest, int(train.counts.max()))


@dataclass
class Plan:
    """A config's text, in which values are replaced and the reason is the comment.

    Attributes:
        text: of a config with one value in a line.
        values: what was replaced: dotted name -> value and reason.
    """

    text: str
    values: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """The value of a dotted name."""
        content = yaml.safe_load(self.text)
        for part in name.split("."):
            content = content[part]
        return content

    def set(self, name: str, value: Any, why: str) -> None:
        """Replace the value of a dotted name that is there."""
        lines = self.text.splitlines()
        number = self._line(name)
        key = re.match(r"\s*[\w.]+:", lines[number])[0]
        lines[number] = _with_comment(key, value, why)
        self.text = "\n".join(lines) + "\n"
        self.values[name] = (value, why)

    def add(self, section: str, name: str, value: Any, why: str) -> None:
        """Put a value at the beginning of a section."""
        lines = self.text.splitlines()
        number = self._line(section)
        indent = " " * (len(section.split(".")) * 2)
        lines.insert(number + 1, _with_comment(f"{indent}{name}:", value, why))
        self.text = "\n".join(lines) + "\n"
        self.values[f"{section}.{name}"] = (value, why)

    def _line(self, name: str) -> int:
        """The number of the line in which a dotted name is."""
        path: list[str] = []
        for number, line in enumerate(self.text.splitlines()):
            if match := re.match(r"( *)(\w+):", line):
                path = [*path[: len(match[1]) // 2], match[2]]
                if ".".join(path) == name:
                    return number
        raise KeyError(name)


def _with_comment(key: str, value: Any, why: str) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    return f"{f'{key} {text}  ':<{COMMENT_COLUMN}}# {why}"


def _base(device: torch.device, facts: Facts, train: Annotations) -> str:
    """The config of the project that is nearest."""
    if device.type == "cpu":
        return "laptop"
    sides = resized_sides(train, *GPU_SIZE)
    if len(sides) and np.quantile(np.sqrt(sides.prod(1)), SMALL_SHARE) < SMALL:
        return "small_objects"
    return "many_classes" if facts.classes >= MANY_CLASSES and facts.rarest < RARE else "gpu"


def _machine(device: torch.device) -> str:
    if device.type != "cpu":
        return torch.cuda.get_device_name(0)
    cores = available_cores()
    return f"a CPU, {cores} core{'s' if cores > 1 else ''} ({platform.machine()})"


def _fit_sizes(plan: Plan, train: Annotations, device: torch.device) -> None:
    """Choose the images' size by the small objects, and the anchors by all of them."""
    size, limit = "model.init_args.image.min_size", "model.init_args.image.max_size"
    ratio = plan[limit] / plan[size]
    sizes = CPU_SIZES if device.type == "cpu" else (plan[size],)
    for side in sizes:
        sides = resized_sides(train, side, round(side * ratio))
        tenth = float(np.quantile(np.sqrt(sides.prod(1)), SMALL_SHARE)) if len(sides) else SMALL
        if tenth >= SMALL:
            break
    why = f"nine of ten objects have {tenth:.0f} px or more (square root of the area)"
    plan.set(size, side, f"{why}; {SMALL:g} are wanted" if tenth < SMALL else why)
    plan.set(limit, round(side * ratio), "limit of the longer side")
    if device.type != "cpu" or not len(sides):  # other anchors would take away what the source's RPN has learnt
        return
    name = "model.init_args.anchors.sizes"
    given = plan[name]
    flat = [size for level in given for size in level]
    _, best = fit_anchors(sides, flat, plan["model.init_args.anchors.ratios"])
    levels = [list(best.sizes)] if len(given) == 1 else [[size] for size in best.sizes]
    plan.set(name, levels, f"reach {best.share:.1%} of the objects at an IoU of 0.5")
    plan.set("model.init_args.anchors.ratios", list(best.ratios), "height by width")


def _fit_time(
    plan: Plan, data: DetectionDataModule, train: Annotations, facts: Facts, minutes: float, device: torch.device
) -> float:
    """Choose the number of epochs, so that the run takes the time; how long it will take, in minutes."""
    batch = plan["data.init_args.batch_size"]
    if (threshold := plan["data.init_args.repeat_threshold"]) is None:
        count = facts.images
    else:
        count = round(repeat_factors(train.labels, train.offsets, threshold).sum())
    per_epoch = -(-count // batch)
    step, image = time_steps(plan, data, batch, device)
    budget = minutes * 60
    validations = VALIDATIONS if facts.validated else 0
    epochs = int((budget - validations * facts.validated * image) / (per_epoch * step))
    epochs = min(max(epochs, -(-MIN_STEPS // per_epoch)), MAX_EPOCHS)
    every = max(epochs // max(validations, 1), 1)
    validations = epochs // every if facts.validated else 0
    total = (epochs * per_epoch * step + validations * facts.validated * image) / 60
    steps = epochs * per_epoch
    plan.set("trainer.max_epochs", epochs, f"{steps:,} steps of {step:.2g} s, as timed here: about {total:.0f} minutes")
    plan.set("trainer.check_val_every_n_epoch", every, f"{validations} validations of {facts.validated:,} images")
    warm = min(plan["model.init_args.optim.warmup_steps"], max(steps // 20, 1))
    plan.set("model.init_args.optim.warmup_steps", warm, f"of {steps:,} steps")
    return total


def time_steps(plan: Plan, data: DetectionDataModule, batch: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a training step and of a detected image, with random weights on the data's own images."""
    keep_freed_memory()
    arguments = {**plan["model.init_args"], "weights": None, "init_from": None, "class_names": data.class_names}
    dataset, half = data.dataset("train"), plan["trainer.precision"].partition("-")[0]
    steps, images = [], []
    with torch.random.fork_rng(), torch.autocast(device.type, HALF.get(half), enabled=half in HALF):
        model = construct(FasterRCNN, arguments).train().to(device)
        optimizer = build_optimizer(model.parameter_groups(), construct(OptimSettings, plan["model.init_args.optim"]))
        for number in range(TIMED):
            began = time.perf_counter()
            samples = [dataset[(number * batch + i) % len(dataset)] for i in range(batch)]
            samples = model.transfer_batch_to_device(samples, device, 0)
            loss = torch.stack(list(model.losses(samples, model.encode(samples)).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            float(loss.detach())  # waits for the device
            steps.append(time.perf_counter() - began)
        model.eval()
        with torch.no_grad():
            for _ in range(2):
                began = time.perf_counter()
                encoded = model.encode(samples)
                model.losses(samples, encoded)
                [found["scores"].cpu() for found in model.detect(samples, encoded)]
                images.append((time.perf_counter() - began) / batch)
    return statistics.median(steps[1:]), images[-1]


def _describe(
    file: Path, base: str, plan: Plan, facts: Facts, minutes: float, total: float, device: torch.device
) -> str:
    lines = [f"machine: {_machine(device)}"]
    lines += [f"data: {facts.images:,} images to train on, {facts.validated:,} to validate, {facts.classes} classes"]
    lines += [f"recipe: faster_rcnn/{base}, with:"]
    width = max(map(len, plan.values))
    for name, (value, why) in plan.values.items():
        lines.append(f"  {name:<{width}}  {value}  # {why}")
    late = f", not {minutes:g}: fewer than {MIN_STEPS} steps teach little" if total > 1.2 * minutes else ""
    lines.append(f"it will take about {total:.0f} minutes{late}")
    lines += [f"written: {file}", f"next: detkit fit --config {shlex.quote(str(file))}"]
    return "\n".join(lines)
