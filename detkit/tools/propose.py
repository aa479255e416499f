"""`detkit propose`: compute the proposals of a split and keep them in one file, for Fast R-CNN and R-CNN."""

from __future__ import annotations

import hashlib
import json
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from detkit.cli.arguments import Arguments, read_arguments, read_config
from detkit.cli.messages import own_cause, shorten
from detkit.errors import ConfigError

METHODS = ("selective_search", "sliding_window", "rpn")


def placement(
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: int | str | None = None,
) -> None:
    """Where to compute, as Lightning's Trainer means it.

    Args:
        accelerator: cpu, gpu, ...; auto takes the GPU for rpn, and the CPU for what gains nothing from a GPU.
        devices: processes on each machine; auto is all GPUs for rpn, and one process, with a thread a core, otherwise.
        num_nodes: machines; each is started with the same command, by torchrun or SLURM.
        strategy: ddp for several processes.
        precision: of the network, such as bf16-mixed.
    """


def rpn(max_boxes: int | None = None) -> None:
    """Proposals of a trained Faster R-CNN.

    Args:
        max_boxes: at most so many an image; null for as many as the detector uses itself (its rpn_post_nms).
    """


def main(args: Sequence[str]) -> int:
    """Compute, keep, and say how good they are.

    Args:
        args: the arguments after ``propose``; see ``detkit propose --help``.

    Raises:
        DetkitError: whatever the user can mend.
    """
    arguments = read_arguments(args)
    from detkit.cli.lightning_cli import base_classes
    from detkit.data import DetectionDataModule as base

    base_classes()  # makes the short names known
    parser = make_parser(base)
    try:
        config = parser.parse_args([*_data_of(arguments), *_wishes_of(arguments), *arguments.options])
    except ArgumentError as error:
        known = [*base.__subclasses__(), base]
        names = [cls.__name__ for cls in known] + [action.dest for action in parser._actions]
        raise ConfigError(shorten(str(error), "propose", arguments, names)) from error
    if config.get("data") is None:
        raise ConfigError("No data set given: add --data (VOC, COCO, Shapes) and --data.path, or --config.")
    try:
        data = parser.instantiate_classes(config).data
    except (ValueError, TypeError) as error:
        own = own_cause(error)
        if own is None:
            raise
        raise own from None
    return _run(data, config, arguments)


def make_parser(data: type) -> Any:
    """The options of the command; `data` is the base class of the data sets."""
    from lightning.pytorch.cli import LightningArgumentParser

    from detkit.data.proposal_methods import FUNCTIONS, function_of

    parser = LightningArgumentParser(
        prog="detkit propose", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    add = parser.add_argument
    add("--method", type=Literal[METHODS], default=METHODS[0], help="How proposals are made.")
    add("--split", type=Literal["train", "val", "test"], default="train", help="Of which images.")
    add("--ckpt_path", type=str | None, default=None, help="rpn: the run (runs/NAME) or checkpoint of a Faster R-CNN.")
    add(
        "--output",
        type=str | None,
        default=None,
        help="The file, or a folder for it; `proposals/` in the data set's folder by default.",
    )
    add("--workers", type=int | None, default=None, help="Threads of a process; one a core by default. Not for rpn.")
    add("--config", type=str | None, default=None, help="A fit's config: its data, and the proposals of its model.")
    parser.add_function_arguments(placement, "trainer")
    for method in FUNCTIONS:
        parser.add_function_arguments(function_of(method), method, skip={1})
    parser.add_function_arguments(rpn, "rpn")
    parser.add_lightning_class_args(data, "data", subclass_mode=True, required=False)
    return parser


def _data_of(arguments: Arguments) -> list[str]:
    """The data sections of the config files, else of the checkpoint's run, as options."""
    sections = [content["data"] for content in arguments.sections if content.get("data")]
    checkpoint = arguments.option("ckpt_path")
    if not sections and checkpoint and arguments.option("data", "data.class_path") is None:
        from detkit.engine.checkpoints import find_checkpoint, run_folder

        own = run_folder(find_checkpoint(checkpoint).path) / "config.yaml"
        section = read_config(own).get("data") if own.is_file() else None
        sections = [section] if section else []
    return [f"--data={section if isinstance(section, str) else json.dumps(section)}" for section in sections]


def _wishes_of(arguments: Arguments) -> list[str]:
    """What the config files' model says of its proposals (`FastRCNN`'s arguments), as options of this command."""
    from detkit.data.proposals import SUFFIX

    wishes: dict[str, Any] = {}
    for content in arguments.sections:
        model = content.get("model")
        own = model.get("init_args") if isinstance(model, dict) else None
        wishes |= {k: v for k, v in (own or {}).items() if k.startswith("proposal") and v is not None}
    method = wishes.get("proposal_method", METHODS[0])
    options = dict(wishes.get("proposal_options") or {})
    if method == "selective_search" and "proposal_mode" in wishes:
        options = {"mode": wishes["proposal_mode"]} | options
    result = [f"--method={method}"] if "proposal_method" in wishes else []
    result += [f"--{method}.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in options.items()]
    if place := wishes.get("proposals"):
        file = Path(place).is_file() or (place.endswith(SUFFIX) and not Path(place).is_dir())
        result.append(f"--output={place if file else f'{place}/'}")
    return result


def _run(data: Any, config: Any, arguments: Arguments) -> int:
    from lightning import Trainer

    from detkit.data.proposal_methods import resolve_options
    from detkit.data.proposals import default_store_path
    from detkit.tools.proposal_numbers import print_numbers

    _check(config, arguments)
    method = config.method
    detector = None
    if method == "rpn":
        detector, parameters = _load(config.ckpt_path, config.rpn.max_boxes, config.trainer.precision)
    else:
        parameters = resolve_options(method, config[method].as_dict())

    def place(annotations: Any) -> Path:
        output, folder = config.output, None
        if output is not None:
            if not Path(output).is_dir() and not output.endswith("/"):
                return Path(output)
            folder = output
        return default_store_path(annotations, split, method, parameters, folder)

    split = data.test_split if config.split == "test" else config.split
    trainer_options = config.trainer.as_dict()
    if method != "rpn":
        auto = {"accelerator": "cpu", "devices": 1}
        trainer_options |= {name: value for name, value in auto.items() if trainer_options[name] == "auto"}
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    trainer = Trainer(**trainer_options, **dict.fromkeys(quiet, False))

    from detkit.tools.proposing import ByNetwork, ByThreads

    common = (data, split, method, parameters, place)
    module = ByNetwork(*common, detector=detector) if method == "rpn" else ByThreads(*common, workers=config.workers)
    try:
        trainer.predict(module, return_predictions=False)
        store = module.finish()
    except SystemExit:
        # What Lightning makes of Ctrl-C; `detkit.cli.main` ends with 130.
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt("What is computed is kept: the same command goes on from there.") from None
    finally:
        module.close()
    if store is not None:
        print_numbers(store, module.annotations, len(data.class_names), module.seconds)
    return 0


def _check(config: Any, arguments: Arguments) -> None:
    """Refuse options of one method that are given for another."""
    for method in METHODS:
        given = arguments.given_for(method)
        if given and method != config.method:
            raise ConfigError(f"--{method}.{min(given)} is for --method {method}, but the method is {config.method}")
    if any(way in config.trainer.strategy for way in ("spawn", "fork", "notebook")):
        raise ConfigError(f"--trainer.strategy {config.trainer.strategy} is not for commands; take ddp")
    if config.method == "rpn" and config.ckpt_path is None:
        raise ConfigError("--method rpn needs --ckpt_path: the run (runs/NAME) or checkpoint of a Faster R-CNN")
    if config.method != "rpn" and config.ckpt_path is not None:
        raise ConfigError(f"--ckpt_path is for --method rpn, but the method is {config.method}")
    if config.method == "rpn" and config.workers is not None:
        raise ConfigError("--workers is not for rpn: --data.num_workers says how many processes read its images")


def _load(ckpt_path: str, max_boxes: int | None, precision: Any) -> tuple[Any, dict[str, Any]]:
    """The detector, and what tells its proposals from others."""
    from detkit.detectors import load
    from detkit.engine.checkpoints import find_checkpoint

    path = find_checkpoint(ckpt_path).path
    detector = load(path)
    if not hasattr(detector, "rpn"):
        raise ConfigError(
            f"{path}: a {type(detector).__name__} has no region proposal network; --ckpt_path must be of a Faster R-CNN"
        )
    if max_boxes is not None:
        if max_boxes < 1:
            raise ConfigError(f"--rpn.max_boxes must be at least 1, got {max_boxes}")
        settings = detector.rpn.settings
        settings.post_nms = (settings.post_nms[0], max_boxes)
        settings.pre_nms = (settings.pre_nms[0], max(settings.pre_nms[1], max_boxes))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    most = detector.rpn.settings.post_nms[1]
    return detector, {"checkpoint": digest, "max_boxes": most, "precision": str(precision or "32-true")}
