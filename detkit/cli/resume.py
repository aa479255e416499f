"""What comes from a checkpoint when a run goes on, is tested or predicts, and what the user's words change in it.

The command line beats the checkpoint, the checkpoint beats config files, and these beat defaults. Where one of the
first three contradicts another, the user is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detkit.cli.arguments import Arguments, read_config
from detkit.cli.run_folder import run_root
from detkit.engine.checkpoints import (
    FoundCheckpoint,
    find_checkpoint,
    hyper_parameters,
    read_checkpoint,
    run_folder,
)
from detkit.errors import CheckpointError, ConfigError

# What belongs to a checkpoint's labels and is never to be contradicted.
CLASSES = ("class_names", "category_ids")


@dataclass
class Plan:
    """What a command is to run with.

    Attributes:
        args: the arguments for the parser, with what the checkpoint adds.
        root: the folder of all versions of the run.
        checkpoint: the checkpoint used, if any.
        classes: the checkpoint's class names.
        differences: rows (option, checkpoint's value, the other value, which wins).
        overrides: options of the model given on the command line that differ from the checkpoint -> value.
    """

    args: list[str]
    root: Path
    checkpoint: FoundCheckpoint | None = None
    content: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    differences: list[tuple[str, Any, Any, str]] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)


def plan(command: str, arguments: Arguments, parse_model: Callable[[list[str]], Mapping[str, Any]]) -> Plan:
    """Works out what a command runs with.

    Args:
        command: fit, validate, test or predict.
        arguments: what the user gave.
        parse_model: parses arguments and returns the model's options (`init_args`) with their proper types.

    Raises:
        CheckpointError: no checkpoint is found, it cannot be read, or it is of another model.
        ConfigError: a checkpoint is needed and none is named, or options contradict the checkpoint's classes.
    """
    if command == "fit":
        _refuse_linked(arguments)
    root = run_root(arguments)
    wanted = arguments.setting("ckpt_path")
    if wanted in (None, "null", ""):
        if command != "fit":
            raise ConfigError(
                f"`detkit {command}` needs --ckpt_path: a run's folder (runs/NAME) or a checkpoint file. "
                "Model, classes and preprocessing come from it."
            )
        return Plan([*_files(arguments), *arguments.options], root)
    found = locate(str(wanted), root, command)
    content = read_checkpoint(found.path)
    if command == "fit" and "optimizer_states" not in content:
        raise CheckpointError(
            f"{found.path}: holds the weights only, as `detkit compress` writes them, and not the state of its run, "
            "which cannot go on from here. Go on from the run's own checkpoint."
        )
    own = _own_config(found.path)
    if command == "fit" and not arguments.configs and own is not None:
        arguments.configs.append(str(own))
        arguments.sections.append(read_config(own))
        if arguments.option("trainer.default_root_dir") is None and run_folder(found.path).name.startswith("version_"):
            root = run_folder(found.path).parent
    result = Plan([], root, found, content, content_classes(content))
    data = [] if command == "fit" else _data_of(arguments, content, own)
    _compare(result, command, arguments, parse_model, data)
    options = _without(arguments.options, "ckpt_path")
    result.args = [
        *_files(arguments),
        f"--model={json.dumps(_model_of(content, command))}",
        *data,
        *options,
        *([] if command == "fit" else [f"--data.class_names={json.dumps(content_classes(content))}"]),
        f"--ckpt_path={found.path}",
    ]
    return result


def locate(wanted: str, root: Path, command: str) -> FoundCheckpoint:
    """The checkpoint that `--ckpt_path` means: `last` and `best` of this run, else a path.

    Going on takes the last of a folder, everything else the best.
    """
    if wanted in ("last", "best"):
        if not root.exists():
            raise CheckpointError(
                f"--ckpt_path {wanted}: the run's folder {root} does not exist, so there is nothing to go on from."
            )
        return find_checkpoint(root, (wanted,))
    return find_checkpoint(wanted, ("last", "best") if command == "fit" else ("best", "last"))


def content_classes(content: dict[str, Any]) -> list[str]:
    """The class names of a checkpoint."""
    return list(hyper_parameters(content)["class_names"])


def how_far(content: dict[str, Any], stage: str = "") -> str:
    """How far a checkpoint's run came, in words.

    Args:
        content: of the checkpoint.
        stage: of a fit of several, the last one that is behind it.
    """
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]
    whole, begun, steps = epochs["processed"], epochs["ready"], content["global_step"]
    where = f"after epoch {whole}, step {steps}" if whole == begun else f"within epoch {begun}, after step {steps}"
    return f"{where} and stage {stage}" if stage else where


def _refuse_linked(arguments: Arguments) -> None:
    given = [(name, f"--model.{name}") for name in CLASSES if name in arguments.given_for("model")]
    files = arguments.in_files("model")
    given += [(name, f"{files[name]}: model.init_args.{name}") for name in CLASSES if name in files]
    for name, where in given:
        other = "; give --data.class_names instead" if name == "class_names" else ""
        raise ConfigError(f"{where}: a model's {name} come from the data set{other}.")


def _compare(
    result: Plan,
    command: str,
    arguments: Arguments,
    parse_model: Callable[[list[str]], Mapping[str, Any]],
    data: list[str],
) -> None:
    assert result.checkpoint is not None
    kept = hyper_parameters(result.content)
    theirs = result.content["detkit"]["class"].rpartition(".")[2]
    ours, where = arguments.class_of("model")
    if ours is not None and ours != theirs:
        raise CheckpointError(f"{result.checkpoint.path} is of a {theirs}, but {where} asks for a {ours}.")
    if command != "fit":
        for name in CLASSES:
            if name in arguments.given_for("model"):
                raise ConfigError(f"--model.{name}: they come from the checkpoint {result.checkpoint.path}.")
        names = arguments.setting("class_names", "data") or _init_arg(arguments, "data", "class_names")
        if isinstance(names, str):
            import yaml

            names = yaml.safe_load(names)
        if names and list(names) != content_classes(result.content):
            raise ConfigError(
                f"data.class_names {list(names)} contradict those of {result.checkpoint.path}: "
                f"{content_classes(result.content)}. Leave them out."
            )
    words, files = arguments.given_for("model"), arguments.in_files("model")
    asked = {name for name in words | set(files) if name in kept and name not in CLASSES}
    if command != "fit":
        asked -= {"weights"} - words
    if not asked:
        return
    known = {} if command == "fit" else {name: plain(kept[name]) for name in CLASSES if name in kept}
    base = f"--model={json.dumps({'class_path': theirs, 'init_args': known})}"
    model = parse_model([*_files(arguments), base, *data, *_without(arguments.options, "ckpt_path")])
    for name in sorted(asked):
        value = plain(model.get(name))
        if value != plain(kept[name]):
            won = name in words
            result.differences.append((name, kept[name], value, "command line" if won else "checkpoint"))
            if won:
                result.overrides[name] = value


def plain(value: Any) -> Any:
    """A value as a checkpoint or JSON may hold it, for comparing: tuples are lists, namespaces are dicts."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _model_of(content: dict[str, Any], command: str) -> dict[str, Any]:
    kept = {k: plain(v) for k, v in hyper_parameters(content).items()}
    if command == "fit":
        for name in CLASSES:
            kept.pop(name, None)
    if "weights" in kept:
        # The checkpoint holds every weight: nothing is to be downloaded only to be overwritten.
        kept["weights"] = None
    return {"class_path": content["detkit"]["class"], "init_args": kept}


def _data_of(arguments: Arguments, content: dict[str, Any], own: Path | None) -> list[str]:
    if arguments.class_of("data")[0] is not None or arguments.option("data") is not None:
        return []
    data = read_config(own).get("data") if own is not None else None
    if not data:
        raise ConfigError(
            "No data set given: add --data (VOC, COCO, ImageFolder, Shapes) and --data.path, or --config."
        )
    if isinstance(data, dict) and isinstance(data.get("init_args"), dict):
        data = {**data, "init_args": {**data["init_args"], "class_names": content_classes(content)}}
    return [f"--data={json.dumps(data)}"]


def _own_config(checkpoint: Path) -> Path | None:
    path = run_folder(checkpoint) / "config.yaml"
    return path if path.is_file() else None


def _init_arg(arguments: Arguments, section: str, name: str) -> Any:
    for content in reversed(arguments.sections):
        part = content.get(section)
        if isinstance(part, dict) and (part.get("init_args") or {}).get(name) is not None:
            return part["init_args"][name]
    return None


def _files(arguments: Arguments) -> list[str]:
    return [f"--config={path}" for path in arguments.configs]


def _without(options: list[str], name: str) -> list[str]:
    kept, skip = [], False
    for option in options:
        if skip:
            skip = False
            continue
        if option == f"--{name}":
            skip = True
        elif not option.startswith(f"--{name}="):
            kept.append(option)
    return kept
