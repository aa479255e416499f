"""The commands that are functions of `detkit.tools`, with their arguments as options."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from detkit.classes import import_modules, known_classes
from detkit.cli.arguments import Arguments, lookup, read_arguments
from detkit.cli.imports import check_names, restrict_imports
from detkit.cli.messages import explain, own_cause
from detkit.cli.signatures import check_options, dotted, options_of
from detkit.config_files import read_config
from detkit.data.collecting import collect_errors
from detkit.errors import ConfigError


@dataclass(frozen=True)
class Tool:
    """A command and its function.

    Attributes:
        module: where the function is.
        function: its name.
        needs_torch: whether torch is imported; `detkit evaluate` does without, and is quick.
        runs: options that name a run, whose data set is the default of `data`.
        from_config: options -> the names in a fit's config that supply them.
        positional: the option whose value is a first argument without dashes.
        collects: whether errors in single items of the data set are collected while it is read.
    """

    module: str
    function: str
    needs_torch: bool = True
    runs: tuple[str, ...] = ()
    from_config: Mapping[str, str] = field(default_factory=dict)
    positional: str | None = None
    collects: bool = False


TOOLS = {
    "evaluate": Tool("detkit.tools.evaluate", "evaluate", needs_torch=False),
    "propose": Tool(
        "detkit.tools.propose",
        "propose",
        positional="data",
        runs=("ckpt_path",),
        from_config={"method": "model.proposals.method", "output": "model.proposals.path"},
    ),
    "convert": Tool("detkit.tools.convert", "convert", positional="data"),
    "compress": Tool("detkit.tools.compress", "compress", positional="ckpt_path"),
    "benchmark generations": Tool("detkit.tools.benchmark", "generations", runs=("rcnn", "fast_rcnn", "faster_rcnn")),
    "benchmark speed": Tool("detkit.tools.benchmark", "speed", positional="model"),
    "export": Tool("detkit.tools.export", "export", positional="ckpt_path"),
    "demo": Tool("detkit.tools.demo", "demo"),
    "doctor": Tool(
        "detkit.tools.doctor",
        "doctor",
        from_config={"min_size": "model.image.min_size", "max_size": "model.image.max_size"},
        positional="data",
        collects=True,
    ),
    "recipe": Tool("detkit.tools.recipe", "recipe", positional="path"),
    "split": Tool("detkit.tools.split", "split", positional="data"),
}


CONFIG = "--config takes a fit's config, which supplies the data set; --import MODULE imports classes of your own."


def run_tool(command: str, args: Sequence[str]) -> int:
    """Run one of `TOOLS` with the arguments after it, and print the `text` of its result.

    Returns:
        The `exit_code` of its result, 0 where it has none.
    """
    tool = TOOLS[command]
    if tool.positional and args and not args[0].startswith("-"):
        args = [f"--{tool.positional}", *args]
    arguments = read_arguments(args)
    known = options_of(tool.module, tool.function) or {}
    if known:
        # --model of a tool is a file or a name, no class.
        given = Arguments([], arguments.options, arguments.modules)
        check_options(command, known | {"help": None}, given, classes=("data", "method"))
    if arguments.files and "data" not in known:
        raise ConfigError(f"`detkit {command}` has no --config")
    if tool.needs_torch:
        from detkit.cli.noise import quiet

        quiet()
    else:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # without NumPy's threads `in_processes` makes copies
    import_modules(arguments.modules)
    print(*arguments.notes, sep="\n", end="\n" if arguments.notes else "", flush=True)
    function = getattr(importlib.import_module(tool.module), tool.function)
    values = None if "data" in known else plain_values(function, arguments)
    with collect_errors() if tool.collects else nullcontext():
        result = function(**(_parse(command, tool, function, arguments, known) if values is None else values))
    if result.text:
        print(result.text, flush=True)
    return getattr(result, "exit_code", 0)


def plain_values(function: Callable[..., Any], arguments: Arguments) -> dict[str, Any] | None:
    """The values of options that are texts, numbers, switches or choices, as jsonargparse would give them.

    jsonargparse takes longer to import and to set up than such options to read. None where it is needed: for help,
    for lists, unless of texts, and for whatever is wrong, which it explains.
    """
    signature = inspect.signature(function)
    hints = get_type_hints(vars(function)["__init__"] if isinstance(function, type) else function)
    options = (option.split("=", 1) if option.startswith("--") else [option] for option in arguments.options)
    words = [word for option in options for word in option]
    names, texts = words[::2], words[1::2]
    if len(names) != len(texts) or not all(name[2:] in hints and name.startswith("--") for name in names):
        return None
    values = {name[2:]: _plain_value(hints[name[2:]], text) for name, text in zip(names, texts, strict=True)}
    required = {name for name, each in signature.parameters.items() if each.default is each.empty}
    return values if None not in values.values() and required <= values.keys() else None


def _plain_value(hint: Any, text: str) -> Any:
    """A text of letters, digits and what paths have, as a value of the type; None where that is not plain."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    if kinds in ((str,), (str, Path)) and re.fullmatch(r"[\w./][\w./ -]*", text) and text.lower() != "null":
        return text
    if kinds == (int,) and re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    if kinds == (float,) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return float(text)
    if kinds == (bool,) and text in ("true", "false"):
        return text == "true"
    if kinds == (list[str],) and re.fullmatch(r'\["[\w./ -]+"(, ?"[\w./ -]+")*\]', text):
        return json.loads(text)
    if len(kinds) == 1 and get_origin(kinds[0]) is Literal and text in get_args(kinds[0]):
        return text
    return None


def _parse(
    command: str, tool: Tool, function: Callable[..., Any], arguments: Arguments, known: Mapping[str, Any]
) -> dict[str, Any]:
    from jsonargparse import ArgumentParser

    if "data" in known:
        import detkit.data

        for name in detkit.data.__all__:  # importing them makes their short names known
            getattr(detkit.data, name)
        restrict_imports()
    description = CONFIG if "data" in known else None
    usage = None
    if tool.positional:
        word = "FOLDER" if tool.positional == "data" else tool.positional.upper()
        usage = f"detkit {command} {word} [options]"
        description = f"{(inspect.getdoc(function) or '').partition(chr(10))[0]} {word} is --{tool.positional}."
        if tool.positional == "data":
            description = (
                f"{word} is the data set, in any layout; --data CLASS --data.NAME VALUE says more of it. {CONFIG}"
            )
    parser = ArgumentParser(prog=f"detkit {command}", usage=usage, description=description, exit_on_error=False)
    parser.add_function_arguments(function, sub_configs=True)
    options = [*_supplied(tool, arguments), *_with_values(arguments.options, function)]
    has_data = any(option.startswith("--data") for option in options)
    needed = inspect.signature(function).parameters.get("data")
    is_needed = needed is not None and needed.default is needed.empty
    if is_needed and not has_data and not arguments.ask_for_help:
        raise ConfigError("No data set given: add --data (VOC, COCO, Shapes) and --data.path, or --config.")
    try:
        config = parser.parse_args(options)
        return dict(parser.instantiate_classes(config))
    except ArgumentError as error:
        classes = [name for base in _classes(function) for name in known_classes(base)]
        raise explain(str(error), command, arguments, [*dotted(dict(known)), *classes]) from error
    except (ValueError, TypeError) as error:  # from a constructor
        own = own_cause(error)
        if own is None:
            raise
        raise own from None


def _supplied(tool: Tool, arguments: Arguments) -> list[str]:
    """What the config files, else the run of a checkpoint, supply: options that the command line then wins over."""
    options = []
    for file in arguments.files:
        for option, name in {**tool.from_config, "data": "data"}.items():
            value = lookup(file.content, name)
            if value is not None:
                options.append((option, value))
    run = next((value for name in tool.runs if (value := arguments.option(name))), None)
    has_data = any(option == "data" for option, _ in options) or arguments.option("data", "data.class_path")
    if run and not has_data:
        from detkit.engine.checkpoints import find_checkpoint, run_folder

        path = run_folder(find_checkpoint(run).path) / "config.yaml"
        section = read_config(path).get("data") if path.is_file() else None
        check_names({"class_path": section} if isinstance(section, str) else section, path)
        options += [("data", section)] if section else []
    return [f"--{option}={value if isinstance(value, str) else json.dumps(value)}" for option, value in options]


def _classes(function: Callable[..., Any]) -> list[type]:
    """The classes among the types of a function's arguments."""
    names = [str(each.annotation).partition(" |")[0] for each in inspect.signature(function).parameters.values()]
    return [each for each in map(function.__globals__.get, names) if isinstance(each, type)]


def _with_values(options: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """The options, a switch such as `--fast` followed by its value."""
    parameters = inspect.signature(function).parameters.items()
    switches = [f"--{name}" for name, parameter in parameters if parameter.annotation in (bool, "bool")]
    result = []
    for option, following in pairwise([*options, "--"]):
        result.append(option)
        if option in switches and following.startswith("--"):
            result.append("true")
    return result
