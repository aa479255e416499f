"""`detkit benchmark`: what something costs on this machine.

`detkit benchmark generations` times R-CNN, Fast R-CNN and Faster R-CNN with one backbone on the same images.
"""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from detkit.cli.arguments import Arguments, read_arguments, read_config
from detkit.cli.messages import own_cause, shorten
from detkit.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from detkit.data.datamodule import DetectionDataModule
    from detkit.tools.benchmark.generations import Contender
    from detkit.tools.benchmark.measuring import Row

BENCHMARKS = {"generations": "R-CNN, Fast R-CNN and Faster R-CNN: seconds an image, stage by stage, and mAP"}
SHAPES_SIZE = 500  # pixels, as VOC's photographs


def generations(
    rcnn: str | None = None,
    fast_rcnn: str | None = None,
    faster_rcnn: str | None = None,
    backbone: str | None = None,
    images: int = 20,
    rounds: int = 3,
    min_size: int | None = None,
    max_proposals: int = 2000,
    protocol: Literal["coco", "voc07", "voc10"] = "voc07",
    device: str = "auto",
    output: str = "runs/benchmark_generations",
) -> None:
    """The three generations with one backbone on the same images.

    Args:
        rcnn: run (runs/NAME) or checkpoint of an R-CNN; without it one with random weights is timed.
        fast_rcnn: the same of a Fast R-CNN.
        faster_rcnn: the same of a Faster R-CNN.
        backbone: of those with random weights; by default that of the checkpoints, else mobilenet_v2.
        images: so many, spread evenly over the test split; the mAP is of these.
        rounds: each image is timed so often, and the median counts.
        min_size: pixels of the shorter side for Fast and Faster R-CNN with random weights; by default that of one
            with a checkpoint, else the papers' 600. The longer has at most 5/3 of it.
        max_proposals: of an image for R-CNN and Fast R-CNN with random weights.
        protocol: of the mAP.
        device: cpu, cuda, cuda:1, ...; auto takes the GPU if there is one.
        output: folder of generations.csv, generations.json and generations.svg.
    """


def main(args: Sequence[str]) -> int:
    """Measure, print and write.

    Args:
        args: the arguments after ``benchmark``; see ``detkit benchmark generations --help``.

    Raises:
        DetkitError: whatever the user can mend.
    """
    there = "\n".join(f"  {name}  {what}" for name, what in BENCHMARKS.items())
    if not args or args[0] in ("--help", "-h"):
        print(f"{__doc__}\nusage: detkit benchmark NAME [options]\n\n{there}")
        return 0
    if args[0] not in BENCHMARKS:
        raise ConfigError(f"there is no benchmark {args[0]!r}; there are:\n{there}")
    arguments = read_arguments(args[1:])
    from detkit.tools.benchmark.generations import GENERATIONS, load_contenders

    given = load_contenders({key: arguments.option(key) for key in GENERATIONS})
    parser, base = make_parser()
    try:
        config = parser.parse_args([*_data_of(arguments, given), *arguments.options])
    except ArgumentError as error:
        names = [cls.__name__ for cls in base.__subclasses__()] + [action.dest for action in parser._actions]
        raise ConfigError(shorten(str(error), "benchmark generations", arguments, names)) from error
    try:
        data = parser.instantiate_classes(config).data
    except (ValueError, TypeError) as error:
        own_error = own_cause(error)
        if own_error is None:
            raise
        raise own_error from None
    _check(config)
    with TemporaryDirectory() as folder:
        if data is None:
            from detkit.data import Shapes

            data = Shapes(folder, num_train=1, num_val=1, num_test=config.images, image_size=SHAPES_SIZE)
        return _run(data, given, config)


def make_parser() -> tuple[Any, type[DetectionDataModule]]:
    """The options of the command, and the base class of the data sets."""
    from lightning.pytorch.cli import LightningArgumentParser

    from detkit import data
    from detkit.data.datamodule import DetectionDataModule

    for name in data.__all__:  # importing them makes their short names known
        getattr(data, name)
    parser = LightningArgumentParser(
        prog="detkit benchmark generations", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", type=str | None, default=None, help="A fit's config, for its data.")
    parser.add_function_arguments(generations)
    parser.add_lightning_class_args(DetectionDataModule, "data", subclass_mode=True, required=False)
    return parser, DetectionDataModule


def _check(config: Any) -> None:
    import torch

    for name in ("images", "rounds", "min_size", "max_proposals"):
        if config[name] is not None and config[name] < 1:
            raise ConfigError(f"--{name} must be at least 1, got {config[name]}")
    if config.device == "auto":
        config.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {config.device}: cannot be used ({str(error).splitlines()[0]})") from None
    try:
        Path(config.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {config.output}: cannot be made ({error})") from None


def _data_of(arguments: Arguments, given: Sequence[Contender]) -> list[str]:
    """The data section of the config files, else of the first checkpoint's run, as options."""
    from detkit.engine.checkpoints import run_folder

    sections = [content["data"] for content in arguments.sections if content.get("data")]
    if not sections and given and arguments.option("data", "data.class_path") is None:
        own = run_folder(given[0].checkpoint) / "config.yaml"
        section = read_config(own).get("data") if own.is_file() else None
        sections = [section] if section else []
    return [f"--data={section if isinstance(section, str) else json.dumps(section)}" for section in sections]


def _run(data: DetectionDataModule, given: list[Contender], config: Any) -> int:
    import torch

    from detkit.data.shapes_drawing import SHAPE_CLASSES
    from detkit.progress import Progress
    from detkit.tools.benchmark.generations import BACKBONE, GENERATIONS, build_contender, place
    from detkit.tools.benchmark.machine import machine
    from detkit.tools.benchmark.measuring import measure

    if given and data.class_names and list(data.class_names) != given[0].detector.class_names:
        raise CheckpointError(
            f"{given[0].checkpoint} knows the classes {given[0].detector.class_names}, the data set has "
            f"{list(data.class_names)}; choose them by --data.class_names"
        )
    backbone = given[0].detector.hparams["backbone"] if given else config.backbone or BACKBONE
    if config.backbone not in (None, backbone):
        raise ConfigError(f"--backbone {config.backbone}: {given[0].checkpoint} has {backbone}, and all must be equal")
    names = given[0].detector.class_names if given else list(data.class_names) or list(SHAPE_CLASSES)
    torch.manual_seed(0)
    sizes = _sizes(given, config.min_size)
    loaded = {each.key: each for each in given}
    contenders = [
        loaded.get(key) or build_contender(key, backbone, names, *sizes, config.max_proposals) for key in GENERATIONS
    ]
    samples, of = _samples(data, config.images)
    for each in contenders:
        place(each, torch.device(config.device))
    about = {
        "machine": machine(torch.device(config.device)),
        "data": f"{type(data).__name__}({data.path})" if config.data is not None else "Shapes, drawn for this",
        "images": len(samples),
        "of_images": of,
        "rounds": config.rounds,
        "backbone": backbone,
        "settings": {each.key: _settings(each) for each in contenders},
    }
    print(f"timing on {len(samples)} images of {about['data']}, backbone {backbone}", flush=True)
    with Progress("timing", config.rounds * len(samples)) as progress:
        rows = measure(contenders, samples, config.rounds, config.protocol, progress.step, progress.start_clock)
    _tell(rows, about, Path(config.output))
    return 0


def _sizes(given: Sequence[Contender], min_size: int | None) -> tuple[int, int]:
    """Shorter and longer side for what has no checkpoint: equal to those of the Fast or Faster R-CNN that has one."""
    scales = [each.detector.preprocessing for each in given if each.key != "rcnn"]
    if min_size is None and scales:
        return scales[0].min_sizes[-1], scales[0].max_size
    min_size = min_size or 600
    return min_size, min_size * 5 // 3


def _settings(contender: Contender) -> dict[str, Any]:
    return {name: value for name, value in contender.detector.hparams.items() if not name.startswith("_")}


def _samples(data: DetectionDataModule, count: int) -> tuple[list[dict[str, Any]], int]:
    """So many samples, evenly spread, held in memory; and how many there are in all."""
    data.prepare_data()
    dataset = data.predict_dataloader().dataset
    if not len(dataset):
        raise DataError(f"{type(data).__name__}: its test split has no images")
    count = min(count, len(dataset))
    return [dataset[i * len(dataset) // count] for i in range(count)], len(dataset)


def _tell(rows: Sequence[Row], about: dict[str, Any], folder: Path) -> None:
    """The table and what it means on the terminal, and the files."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from detkit.tools.benchmark.machine import in_words
    from detkit.tools.benchmark.picture import draw
    from detkit.tools.benchmark.report import cells, why_so_close, write

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
    Console().print(table)
    if note := why_so_close(rows, about["backbone"], about["settings"]["rcnn"]["crop_size"]):
        print(note)
    what = f"{about['images']} of {about['of_images']} images of {about['data']}; backbone {about['backbone']}, float32"
    rounds = "one round" if about["rounds"] == 1 else f"medians of {about['rounds']} rounds"
    where = in_words(about["machine"])
    print(f"{what}; {rounds}\n{where}")
    print("in 2015: the course's table, proposals counted; VGG16 on the GPU of the time")
    random = [row.name for row in rows if row.checkpoint is None]
    if random:
        print(f"random weights: {', '.join(random)}; only timed, and what the heads find in post-processing is chance")
    for protocol in dict.fromkeys(row.protocol for row in rows if row.protocol):
        print(f"mAP: {protocol}; of {about['images']} images")
    try:
        paths = write(rows, about, folder)
        draw(rows, f"{what}\n{where}", folder / "generations.svg")
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot be written ({error})") from None
    for path in (*paths, folder / "generations.svg"):
        print(f"written: {path}", flush=True)
