"""`detkit predict RUN photos/ --classes cat`: what follows no option, and options without their group."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence

from detkit.cli.signatures import options_of
from detkit.data.inputs import VIDEO_SUFFIXES, read_list
from detkit.data.layouts import find_layout
from detkit.data.voc_files import IMAGE_SUFFIXES, find_folders
from detkit.errors import ConfigError, DataError

STDIN = "-"
#: Files that describe a data set, and are not among the inputs themselves.
ANNOTATIONS = (".json", ".json.gz", ".yaml", ".yml", ".csv", ".data")
#: Options that have no value.
ALONE = ("-h", "--help", "--print_config", "--print-config")
SWITCHES = ("agnostic_nms", "draw", "crops")


def long_form(command: str, args: Sequence[str]) -> list[str]:
    """The arguments with every value after its option.

    What follows no option is the checkpoint and, for `predict`, the inputs, for `validate` and `test` the data set. The
    options of `PredictionFiles` need not be called --predictions.NAME, and its lists may be written with commas.

    Raises:
        ConfigError: there is more without an option than the command takes.
    """
    given, options = _divide(_with_groups(args) if command == "predict" else args)
    if command == "fit":
        options = [re.sub(r"^--patience(?==|$)", "--checkpoint.patience", each) for each in options]
    if not given:
        return options
    if command == "fit":
        raise ConfigError(f"`detkit fit` takes options only, not {given[0]!r}: --data {given[0]}, or --config FILE?")
    checkpoint, *inputs = given
    if checkpoint.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)):
        raise ConfigError(f"{checkpoint} is no checkpoint; the run comes first: detkit {command} RUN {' '.join(given)}")
    found = [f"--ckpt_path={checkpoint}"]
    if command == "predict" and inputs:
        found += _inputs(inputs)
    elif len(inputs) == 1:
        found.append(f"--data={inputs[0]}")
    elif inputs:
        raise ConfigError(f"`detkit {command} {checkpoint}` takes one data set, not {len(inputs)}: {', '.join(inputs)}")
    return [*found, *options]


def _divide(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """What follows no option, and the options with their values."""
    given: list[str] = []
    options: list[str] = []
    takes_value = False
    for argument in args:
        is_option = argument.startswith("-") and argument != STDIN
        (options if is_option or takes_value else given).append(argument)
        takes_value = is_option and "=" not in argument and argument not in ALONE
    return given, options


def _inputs(inputs: Sequence[str]) -> list[str]:
    """The options of what is predicted on: a data set, or images."""
    if len(inputs) == 1 and _is_data_set(inputs[0]):
        return [f"--data={inputs[0]}"]
    paths = []
    for each in inputs:
        paths += read_list("standard input", sys.stdin.read(), os.curdir) if each == STDIN else [each]
    return ["--data=ImageFolder", f"--data.path={json.dumps(paths)}"]


def _is_data_set(path: str) -> bool:
    """Whether a path is a data set whose own images and ids are meant: annotations, COCO's folders, or VOC's."""
    if os.path.isfile(path):
        return path.lower().endswith(ANNOTATIONS)
    try:
        return os.path.isdir(path) and (bool(find_folders(path)) or find_layout(path).class_name == "COCO")
    except DataError:  # a folder of images
        return False


def _with_groups(options: Sequence[str]) -> list[str]:
    """The arguments with the names of the options' groups, and true after a switch without a value."""
    known = options_of("detkit.engine.predictions", "PredictionFiles") or {}
    result: list[str] = []
    for number, option in enumerate(options):
        name, equals, value = option.partition("=")
        name = name.removeprefix("--").replace("-", "_") if option.startswith("--") else ""
        short = name.removeprefix("predictions.")
        before = result[-1].removeprefix("--predictions.") if result else ""
        if name == "every":
            result.append(f"--data.every{equals}{value}")
        elif short in known and (short == name or name.startswith("predictions.")):
            result.append(f"--predictions.{short}{equals}{_as_list(value) if short == 'classes' else value}")
            following = options[number + 1] if number + 1 < len(options) else ""
            if short in SWITCHES and not equals and following.lower() not in ("true", "false", "yes", "no", "0", "1"):
                result.append("true")
        else:
            result.append(_as_list(option) if before == "classes" else option)
    return result


def _as_list(value: str) -> str:
    """cat,dog as a list."""
    return value if not value or value.startswith("[") else json.dumps([each.strip() for each in value.split(",")])
