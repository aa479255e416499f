"""R-CNN, Fast R-CNN and Faster R-CNN with one backbone on the same images: seconds of each stage, and mAP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from rich.markup import escape
from rich.table import Table

import detkit.data
from detkit.classes import build
from detkit.config_files import read_config
from detkit.data import Shapes
from detkit.data.datamodule import DetectionDataModule
from detkit.data.shapes_drawing import SHAPE_CLASSES
from detkit.engine.checkpoints import run_folder
from detkit.errors import CheckpointError, ConfigError, DataError, DetkitError
from detkit.evaluation.tables import render
from detkit.files import check_output, staged
from detkit.progress import Progress
from detkit.tools.benchmark.contenders import BACKBONE, GENERATIONS, Contender, build_contender, load_contenders
from detkit.tools.benchmark.measuring import Row, measure
from detkit.tools.benchmark.picture import draw
from detkit.tools.benchmark.report import cells, machine, machine_text, why_so_close, write
from detkit.types import Sample

SHAPES_SIZE = 500  # pixels, as VOC's photographs


@dataclass(frozen=True)
class GenerationsResult:
    """What `generations` returns.

    Attributes:
        rows: what was measured of each generation.
        about: the machine, the data and the settings, as generations.json holds them.
        paths: generations.csv, generations.json and generations.svg.
        text: the table, and what it was measured on.
    """

    rows: list[Row]
    about: dict[str, Any]
    paths: list[Path]
    text: str


def generations(
    rcnn: str | Path | None = None,
    fast_rcnn: str | Path | None = None,
    faster_rcnn: str | Path | None = None,
    backbone: str | None = None,
    images: int = 20,
    rounds: int = 3,
    min_size: int | None = None,
    max_proposals: int = 2000,
    protocol: Literal["coco", "voc07", "voc10"] = "voc07",
    device: str = "auto",
    output: str | Path = "runs/benchmark_generations",
    data: DetectionDataModule | None = None,
) -> GenerationsResult:
    """Compare the three generations with one backbone on the same images: seconds an image, and mAP.

    Args:
        rcnn: Run (runs/NAME) or checkpoint of an R-CNN; without it one with random weights is timed.
        fast_rcnn: Run or checkpoint of a Fast R-CNN.
        faster_rcnn: Run or checkpoint of a Faster R-CNN.
        backbone: Of the detectors with random weights; by default that of the checkpoints, else mobilenet_v2.
        images: Number of images, spread evenly over the test split; the mAP is of these.
        rounds: How often each image is timed; the median counts.
        min_size: Pixels of the shorter side for Fast and Faster R-CNN with random weights; by default that of one with
            a checkpoint, else the papers' 600. The longer side has at most 5/3 of it.
        max_proposals: Of an image, for R-CNN and Fast R-CNN with random weights.
        protocol: Of the mAP.
        device: cpu, cuda, cuda:1, ...; auto is the GPU if there is one.
        output: Folder of generations.csv, generations.json and generations.svg.
        data: The data set; by default that of the first checkpoint's run, else Shapes, drawn for this.

    Raises:
        DetkitError: an argument, a checkpoint or a data set that cannot be used.
    """
    numbers = {"images": images, "rounds": rounds, "max_proposals": max_proposals, "min_size": min_size}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    given = load_contenders({"rcnn": rcnn, "fast_rcnn": fast_rcnn, "faster_rcnn": faster_rcnn})
    on = _device(device)
    folder = Path(output)
    check_output(folder)
    if data is None and given:
        data = _data_of_run(run_folder(str(given[0].checkpoint)))
    if data is not None:
        name = f"{type(data).__name__}({data.path})"
        samples, total = _samples(data, images)
    else:
        name = "Shapes, drawn for this"
        with TemporaryDirectory() as drawn:
            data = Shapes(drawn, num_train=1, num_val=1, num_test=images, image_size=SHAPES_SIZE)
            samples, total = _samples(data, images)
    torch.manual_seed(0)
    contenders = _contenders(given, data, backbone, min_size, max_proposals)
    for contender in contenders:
        contender.to(on)
    about = {
        "machine": machine(on),
        "data": name,
        "images": len(samples),
        "of_images": total,
        "rounds": rounds,
        "backbone": contenders[0].detector.hparams["backbone"],
        "settings": {
            each.key: {name: value for name, value in each.detector.hparams.items() if not name.startswith("_")}
            for each in contenders
        },
    }
    print(f"timing on {len(samples)} images of {name}, backbone {about['backbone']}", flush=True)
    with Progress("timing", rounds * len(samples)) as progress:
        rows = measure(contenders, samples, rounds, protocol, progress.step, progress.start_clock)
    turns = "one round" if rounds == 1 else f"medians of {rounds} rounds"
    caption = f"{len(samples)} of {total} images of {name}; backbone {about['backbone']}, float32; {turns}\n"
    caption += machine_text(about["machine"])
    with staged(folder) as part:  # all three or none
        names = [path.name for path in write(rows, about, part)] + ["generations.svg"]
        draw(rows, caption, part / names[-1])
    paths = [folder / name for name in names]
    crop_size = contenders[0].detector.network.crop_size
    text = [_text(rows, about, caption, crop_size), *(f"written: {path}" for path in paths)]
    return GenerationsResult(rows, about, paths, "\n".join(text))


def _device(name: str) -> torch.device:
    """The device of that name, after an allocation on it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name}: cannot be used ({str(error).splitlines()[0]})") from None


def _data_of_run(folder: Path) -> DetectionDataModule | None:
    """The data set that a run's config.yaml names; None where there is none, ConfigError for a wrong one."""
    file = folder / "config.yaml"
    section = read_config(file).get("data") if file.is_file() else None
    if section is None:
        return None
    known = {name: getattr(detkit.data, name) for name in detkit.data.__all__}
    try:
        return build(section if isinstance(section, dict) else {"class_path": section}, DetectionDataModule, known)
    except DetkitError as error:
        raise ConfigError(f"{file}: data: {error}") from error


def _samples(data: DetectionDataModule, count: int) -> tuple[list[Sample], int]:
    """Samples of the test split, evenly spread and held in memory; and the number of its images."""
    data.prepare_data()
    dataset = data.predict_dataloader().dataset
    if not len(dataset):
        raise DataError(f"{type(data).__name__}: its test split has no images")
    count = min(count, len(dataset))
    return [dataset[i * len(dataset) // count] for i in range(count)], len(dataset)


def _contenders(
    given: Sequence[Contender],
    data: DetectionDataModule,
    backbone: str | None,
    min_size: int | None,
    max_proposals: int,
) -> list[Contender]:
    """A detector of each generation: the one that is given, else one with random weights."""
    names = list(data.class_names) or list(SHAPE_CLASSES)
    if given:
        first = given[0]
        if data.class_names and names != first.detector.class_names:
            raise CheckpointError(
                f"{first.checkpoint} knows the classes {first.detector.class_names}, the data set has {names}; choose "
                "them by class_names of the data set"
            )
        names = first.detector.class_names
        shared = first.detector.hparams["backbone"]
        if backbone not in (None, shared):
            raise ConfigError(f"backbone {backbone}: {first.checkpoint} has {shared}, and all must be equal")
        backbone = shared
    sizes = (min_size or 600, (min_size or 600) * 5 // 3)
    scales = [contender.detector.preprocessing for contender in given if contender.key != "rcnn"]
    if min_size is None and scales:
        sizes = (scales[0].settings.min_sizes[-1], scales[0].settings.max_size)
    loaded = {contender.key: contender for contender in given}
    return [
        loaded.get(key) or build_contender(key, backbone or BACKBONE, names, *sizes, max_proposals)
        for key in GENERATIONS
    ]


def _text(rows: Sequence[Row], about: dict[str, Any], caption: str, crop_size: int) -> str:
    """The table, and what it means."""
    table = Table()
    table.add_column("")
    for row in rows:
        table.add_column(row.name, justify="right")
    for heading, lines in cells(rows):
        if heading:
            table.add_row(heading, style="italic")
        for line in lines:
            table.add_row(*map(escape, line))
        table.add_section()
    text = [render(table)]
    if note := why_so_close(rows, about["backbone"], crop_size):
        text.append(note)
    text += [caption, "in 2015: the course's table, proposals counted; VGG16 on the GPU of the time"]
    random = ", ".join(row.name for row in rows if row.checkpoint is None)
    if random:
        text.append(f"random weights: {random}; only timed, and what the heads find in post-processing is chance")
    protocols = dict.fromkeys(row.protocol for row in rows if row.protocol)
    text += [f"mAP: {protocol}; of {about['images']} images" for protocol in protocols]
    return "\n".join(text)
