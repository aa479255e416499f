"""What a command reads from a checkpoint, and what the user's options change in it.

The command line beats the checkpoint, the checkpoint beats config files, and these beat defaults. Where one of the
first three contradicts another, the user is told. `find_start` needs no torch; `read_start` reads the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detkit.classes import find_class, full_name, known_classes
from detkit.cli.arguments import Arguments, ConfigFile, flatten, lookup, read_arguments
from detkit.cli.imports import check_names, kinds
from detkit.cli.short_form import long_form
from detkit.cli.signatures import check_options, options_of
from detkit.config_files import check_values, read_config
from detkit.engine.checkpoints import INITIAL_WEIGHTS, FoundCheckpoint, find_checkpoint, hyper_parameters
from detkit.engine.torchvision_detectors import name_in
from detkit.errors import CheckpointError, ConfigError
from detkit.settings import check_groups, to_plain
from detkit.torch_files import check_form

#: They belong to a checkpoint's labels and are never contradicted.
CLASSES = ("class_names", "category_ids")
INIT_FROM = ("model.init_from", "model.init_args.init_from")
#: The commands that may cut images into tiles.
TILED = ("test", "predict")
#: Where the options of a group are defined.
OPTIONS = {
    "trainer": ("lightning.pytorch.trainer.trainer", "Trainer"),
    "checkpoint": ("detkit.engine.callbacks", "BestCheckpoint"),
    "predictions": ("detkit.engine.predictions", "PredictionFiles"),
}
#: A row of the table of differences: option, checkpoint's value, the other value, which of the two is used.
Difference = tuple[str, Any, Any, str]


@dataclass
class Start:
    """Where a command starts: from a checkpoint, or (a fit) from nothing.

    Attributes:
        root: the folder of all versions of the run.
        checkpoint: the checkpoint, if any.
        config: `config.yaml` of the checkpoint's run, if it is there.
        content: what the checkpoint holds, once it is read.
        source: initial weights of a new fit (`detkit.detectors.sources.Source`), once they are read.
    """

    root: Path
    checkpoint: FoundCheckpoint | None = None
    config: ConfigFile | None = None
    content: dict[str, Any] = field(default_factory=dict)
    source: Any = None

    @property
    def class_names(self) -> list[str]:
        """The checkpoint's classes."""
        return list(hyper_parameters(self.content)["class_names"])


def prepare(command: str, args: Sequence[str]) -> tuple[Arguments, Start]:
    """Read the arguments of fit, validate, test or predict, and find what is wrong with them before torch is imported.

    Raises:
        ConfigError: an unknown option or class, a config file that is missing or not YAML, or no checkpoint.
        CheckpointError: there is no such checkpoint.
    """
    arguments = read_arguments(long_form(command, args))
    if arguments.ask_for_help:
        return arguments, Start(Path())
    start = find_start(command, arguments)
    known = {name: options_of(*where) for name, where in OPTIONS.items()}
    known |= dict.fromkeys(("model", "data", "ckpt_path", "seed_everything", "print_config"))
    if command == "test":
        known |= dict.fromkeys(("output", "baseline", "score_threshold"))
    if command in TILED:
        known |= dict.fromkeys(("tiles", "overlap"))
    if command != "predict":
        del known["predictions"]
    if command != "fit":
        known["checkpoint"] = None
    check_options(command, known, arguments, start.config.content if start.config is not None else {})
    return arguments, start


# -- what lies on disk ------------------------------------------------------------------------------


def find_start(command: str, arguments: Arguments) -> Start:
    """Find the checkpoint that `--ckpt_path` names, and the config of its run, which a fit without a config takes.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: a checkpoint is needed and none is named, or a fit has neither config nor model and data.
    """
    root, wanted = _run_root(arguments), arguments.setting("ckpt_path")
    _check_init_from(arguments, goes_on=wanted not in (None, "null", ""))
    if wanted in (None, "null", ""):
        if command != "fit":
            raise ConfigError(
                f"`detkit {command}` needs --ckpt_path: a run's folder (runs/NAME) or a checkpoint file. "
                "Model, classes and preprocessing come from it."
            )
        missing = [f"--{section}" for section in ("model", "data") if arguments.class_of(section)[0] is None]
        if missing and not any(arguments.option(name[2:]) for name in missing):
            raise ConfigError(f"`detkit fit` needs --config FILE, or {' and '.join(missing)}")
        return Start(root)
    checkpoint = _locate(str(wanted), root, command)
    path = checkpoint.folder / "config.yaml"
    config = ConfigFile(path, read_config(path)) if path.is_file() else None
    if command == "fit" and not arguments.files and config is not None:
        arguments.files.append(config)
        if arguments.option("trainer.default_root_dir") is None and path.parent.name.startswith("version_"):
            root = path.parent.parent
    return Start(root, checkpoint, config)


def _check_init_from(arguments: Arguments, goes_on: bool) -> None:
    """Refuse a source that does not exist, and options that contradict each other."""
    nothing = (None, "null", "")
    if arguments.option(*INIT_FROM) not in nothing and goes_on:
        raise ConfigError("--model.init_from initialises a new fit, --ckpt_path continues one: give one of them")
    source = init_from(arguments)
    if source is not None and arguments.option("model.weights", "model.init_args.weights") not in nothing:
        raise ConfigError(
            "--model.init_from initialises the whole detector, --model.weights its backbone alone: give one of them, "
            "and null for one that a config has"
        )
    if source is not None and not goes_on and name_in(source) is None:
        find_checkpoint(source)


def init_from(arguments: Arguments) -> str | None:
    """The source of a new fit's initial weights, if there is one."""
    source = arguments.option(*INIT_FROM) or arguments.setting("model.init_from")
    return None if source in (None, "null", "") else str(source)


def _run_root(arguments: Arguments) -> Path:
    """The folder of all versions of a run: `trainer.default_root_dir`, else `runs/` and the name of the first config
    file or, without one, of the model."""
    given = arguments.setting("trainer.default_root_dir")
    if given is not None:
        return Path(str(given))
    if arguments.files:
        return Path("runs") / arguments.files[0].path.stem
    name, _ = arguments.class_of("model")
    return Path("runs") / (name or "detkit").rpartition(".")[2]


def _locate(wanted: str, root: Path, command: str) -> FoundCheckpoint:
    """`last` and `best` are those of this run. A fit takes the last checkpoint of a folder, other commands the best."""
    if name_in(wanted) is not None:
        if command == "fit":
            raise CheckpointError(
                f"{wanted} is no run that can be continued; start a new one: --model.init_from {wanted}"
            )
        return FoundCheckpoint(Path(wanted), "torchvision")
    if wanted not in ("last", "best"):
        return find_checkpoint(wanted, ("last", "best") if command == "fit" else ("best", "last"))
    if not root.exists():
        raise CheckpointError(
            f"--ckpt_path {wanted}: the run's folder {root} does not exist, so there is nothing to go on from."
        )
    return find_checkpoint(root, (wanted,))


# -- what the checkpoint holds ----------------------------------------------------------------------


def read_start(command: str, start: Start, arguments: Arguments, model: type) -> list[str]:
    """Read the checkpoint into `start`, and put the arguments for the parser together: files, checkpoint, command line.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is of another model.
        ConfigError: options contradict the checkpoint's classes, or no data set is known.
    """
    files = [f"--config={file.path}" for file in arguments.files]
    if command == "fit":
        _refuse_linked(arguments)
    if start.checkpoint is None:
        return [*files, *_read_source(start, arguments, model), *arguments.options]
    from detkit.deploy.description import is_exported
    from detkit.detectors.torchvision_files import read_detector

    path = start.checkpoint.path
    if is_exported(path):
        if command == "fit":
            raise CheckpointError(f"{path}: is an exported detector, which does not learn; fit from its checkpoint")
        if given := [name for name, _ in arguments.pairs() if name.startswith("model")]:
            raise ConfigError(
                f"--{given[0]}: {path} keeps the settings that it was exported with; export the checkpoint again, with "
                "--score_threshold or --max_detections"
            )
        from detkit.deploy.module import exported_checkpoint

        start.content = exported_checkpoint(path)
    else:
        start.content = read_detector(path)
    if command == "fit" and "optimizer_states" not in start.content:
        if "torchvision" in start.content["detkit"]:
            raise CheckpointError(f"{path}: is no run that can be continued; start a new one: --model.init_from {path}")
        raise CheckpointError(
            f"{path}: holds the weights only, as `detkit compress` writes them, and not the state of its run, "
            "which cannot go on from here. Go on from the run's own checkpoint."
        )
    class_path = _class_of(start.content, model, path)
    asked, where = arguments.class_of("model")
    if asked is not None and full_name(find_class(asked, model, known_classes(model))) != class_path:
        raise CheckpointError(f"{path} is of a {class_path.rpartition('.')[2]}, but {where} asks for a {asked}.")
    try:
        kept = json.loads(json.dumps(to_plain(hyper_parameters(start.content))))
    except (TypeError, RecursionError):
        raise CheckpointError(f"{path}: is damaged: its hyper_parameters are not plain values.") from None
    if not isinstance(kept.get("class_names"), list):
        raise CheckpointError(f"{path}: is damaged: it holds no class_names.")
    if command == "fit":  # they are linked to the data set
        kept = {name: value for name, value in kept.items() if name not in CLASSES}
    check_values(kept, path)
    check_names(kept, path)
    check_groups(find_class(class_path, model), kept, f"{path}: ")
    if start.config in arguments.files:
        check_names(start.config.content, start.config.path)
    # The checkpoint holds every weight: nothing is read or downloaded only to be overwritten.
    kept |= {name: None for name in INITIAL_WEIGHTS if name in kept}
    model_option = [f"--model={json.dumps({'class_path': class_path, 'init_args': kept})}"]
    options = [*arguments.options, f"--ckpt_path={path}"]
    if command == "fit":
        return [*files, *model_option, *options]
    _check_classes(start, arguments)
    classes = [f"--data.class_names={json.dumps(start.class_names)}"]
    return [*files, *model_option, *_data_of_run(command, start, arguments), *options, *classes]


def _read_source(start: Start, arguments: Arguments, model: type) -> list[str]:
    """Read the source of a new fit's weights into `start`; its settings, where the files have no others, as an option.

    Raises:
        CheckpointError, WeightsError, ConfigError: as `read_source` and `settings_for`, or the model is no detector.
    """
    source = init_from(arguments)
    if source is None:
        return []
    import yaml

    from detkit.detectors.base import Detector
    from detkit.detectors.sources import ARCHITECTURE, read_source, settings_for

    name, where = arguments.class_of("model")
    if name is None:
        raise ConfigError("init_from needs the class of the model by its name: --model FasterRCNN, or a --config")
    cls = find_class(name, model, known_classes(model))
    if not issubclass(cls, Detector):
        raise ConfigError(f"init_from is for detectors, and {where} asks for a {name}, which has weights instead")
    in_files: dict[str, Any] = {}
    for group in ARCHITECTURE:
        for value in (lookup(file.content.get("model"), group) for file in arguments.files):
            if isinstance(value, dict) and group != "backbone":  # null stands for the default
                in_files.setdefault(group, {}).update({k: v for k, v in value.items() if v is not None})
            elif value is not None:
                in_files[group] = value
    given = {group: dict(value) if isinstance(value, dict) else value for group, value in in_files.items()}
    if (backbone := arguments.option("model.backbone", "model.init_args.backbone")) is not None:
        given["backbone"] = yaml.safe_load(backbone)
    if (size := arguments.option("model.image.min_size", "model.init_args.image.min_size")) is not None:
        given["image"] = {**given.get("image", {}), "min_size": yaml.safe_load(size)}
    start.source = read_source(source, given)
    kept = json.loads(json.dumps(settings_for(cls, start.source, given)))
    check_values(kept, Path(start.source.name))
    check_names(kept, Path(start.source.name))
    check_groups(cls, kept, f"{start.source.name}: ")
    if (weights := arguments.setting("model.weights")) not in (None, "null"):
        arguments.notes.append(f"weights {weights} are not read: init_from initialises the whole detector")
    return [f"--model={json.dumps({'class_path': full_name(cls), 'init_args': kept})}"]


def find_differences(
    start: Start, arguments: Arguments, final: Any, parse: Callable[[list[str]], Any], args: Sequence[str]
) -> tuple[list[Difference], dict[str, Any]]:
    """The options in which the checkpoint and the user's arguments differ.

    Args:
        start: with the checkpoint's content.
        arguments: what the user gave.
        final: the model's arguments as they are used.
        parse: parses arguments as `read_start` returns them, and returns the model's.
        args: those arguments.

    Returns:
        The rows of the table, and the options of the command line that win: dotted name -> value.
    """
    kept = {k: v for k, v in hyper_parameters(start.content).items() if k not in CLASSES}
    kept = flatten(_with_full_names(to_plain(kept)))
    used = _with_full_names(to_plain(final))
    overrides = {name: lookup(used, name) for name, value in kept.items() if lookup(used, name, value) != value}
    for name in INITIAL_WEIGHTS:
        if overrides.get(name, "") is None:  # left out on purpose, see `read_start`
            del overrides[name]
    rows = [(name, kept[name], value, "command line") for name, value in overrides.items()]
    in_files = [name for name in kept if any(_in_file(file, name) for file in arguments.files)]
    in_files = [name for name in in_files if name not in overrides and name not in INITIAL_WEIGHTS]
    if in_files:
        spec = next(argument for argument in args if argument.startswith("--model={"))
        bare = json.loads(spec.removeprefix("--model="))
        bare["init_args"] = {name: bare["init_args"][name] for name in CLASSES if name in bare["init_args"]}
        asked = _with_full_names(
            to_plain(parse([f"--model={json.dumps(bare)}" if each == spec else each for each in args]))
        )
        values = {name: lookup(asked, name, kept[name]) for name in in_files}
        rows += [(name, kept[name], value, "checkpoint") for name, value in values.items() if value != kept[name]]
    return sorted(rows), overrides


def check_state(content: Mapping[str, Any], fit_loop: Mapping[str, Any], path: Path) -> None:
    """Refuse, with a CheckpointError, the state of a run that is not as Lightning's ``fit_loop`` and callbacks keep it.

    That of the optimizer is checked when there is one (`TrainableModule.configure_optimizers`).
    """
    wanted = {"epoch": 0, "global_step": 0, "loops": {"fit_loop": fit_loop}, "callbacks": {}}
    try:
        check_form(content, wanted, "")
        check_form(content["callbacks"], {key: {} for key in content["callbacks"]}, "callbacks")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def position_of(content: Mapping[str, Any], stage: str = "") -> str:
    """The position that a checkpoint's run has reached, as text; `stage` is the last one of several that has ended."""
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]
    ended, begun, steps = epochs["processed"], epochs["ready"], content["global_step"]
    where = f"after epoch {ended}, step {steps}" if ended == begun else f"within epoch {begun}, after step {steps}"
    return f"{where} and stage {stage}" if stage else where


def _class_of(content: Mapping[str, Any], model: type, path: Path) -> str:
    """The full name of a checkpoint's class."""
    try:
        return full_name(find_class(content["detkit"]["class"], model, known_classes(model)))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _with_full_names(content: Any) -> Any:
    """The content with every class by its full name: it may be known by a shorter one, of a package that imports it."""
    if isinstance(content, list):
        return [_with_full_names(value) for value in content]
    if not isinstance(content, dict):
        return content
    content = {name: _with_full_names(value) for name, value in content.items()}
    if isinstance(content.get("class_path"), str) and "." in content["class_path"]:
        content["class_path"] = full_name(find_class(content["class_path"], kinds()))
    return content


def _given_classes(arguments: Arguments) -> list[str]:
    given = [name for name, _ in arguments.pairs()]
    return [name for name in CLASSES if f"model.{name}" in given or f"model.init_args.{name}" in given]


def _refuse_linked(arguments: Arguments) -> None:
    given = [(name, f"--model.{name}") for name in _given_classes(arguments)]
    for file in arguments.files:
        given += [(name, f"{file.path}: model.{name}") for name in CLASSES if _in_file(file, name)]
    for name, where in given:
        other = "; give --data.class_names instead" if name == "class_names" else ""
        raise ConfigError(f"{where}: a model's {name} come from the data set{other}.")


def _check_classes(start: Start, arguments: Arguments) -> None:
    import yaml

    for name in _given_classes(arguments):
        raise ConfigError(f"--model.{name}: they come from the checkpoint {start.checkpoint.path}.")
    names = arguments.setting("data.class_names")
    names = yaml.safe_load(names) if isinstance(names, str) else names
    if names and list(names) != start.class_names:
        raise ConfigError(
            f"data.class_names {list(names)} contradict those of {start.checkpoint.path}: {start.class_names}. "
            "Leave them out."
        )


def _data_of_run(command: str, start: Start, arguments: Arguments) -> list[str]:
    """The data set of the checkpoint's run, as an option, where the user names none."""
    if arguments.class_of("data")[0] is not None or arguments.option("data") is not None:
        return []
    section = start.config.content.get("data") if start.config is not None else None
    if not section or not isinstance(section, str | dict):
        if command == "predict":
            raise ConfigError(
                "no input: give images, folders, patterns, a list of files or a video, as in `detkit predict RUN "
                "photos/`; or a data set by --data"
            )
        raise ConfigError(
            "No data set given: add --data (VOC, COCO, ImageFolder, Shapes) and --data.path, or --config."
        )
    section = {"class_path": section} if isinstance(section, str) else section
    check_names(section, start.config.path)
    if not isinstance(section.get("init_args") or {}, dict):
        raise ConfigError(f"{start.config.path}: data.init_args must be names with values")
    init_args = {**(section.get("init_args") or {}), "class_names": start.class_names}
    return [f"--data={json.dumps({**section, 'init_args': init_args})}"]


def _in_file(file: ConfigFile, name: str) -> bool:
    return lookup(file.content.get("model"), name) is not None
