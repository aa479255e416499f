"""The entry point `detkit`: says what there is without importing torch, then hands over to the command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from detkit.__about__ import __version__
from detkit.errors import ConfigError, DetkitError

if TYPE_CHECKING:
    from detkit.cli.arguments import Arguments

COMMANDS = {
    "fit": "train a detector, with a checkpoint and an mAP after every epoch",
    "validate": "the mAP of a checkpoint on the validation split",
    "test": "the mAP of a checkpoint on the test split, and a report on it",
    "predict": "the detections of a checkpoint on images, as COCO JSON and drawn",
    "evaluate": "the mAP and a report of detections in files, COCO's or VOC's, without a model",
    "propose": "boxes that may hold objects, computed once and kept in a file, and how many objects they cover",
    "compress": "a checkpoint's fully connected layers by truncated SVD: quicker, no training",
    "benchmark": "the three generations on this machine: seconds an image, stage by stage, and mAP",
    "demo": "draw a small data set, train on it, test, and show what is found",
}

HELP = """detkit {version}: R-CNN, Fast R-CNN and Faster R-CNN

usage: detkit COMMAND [options]

{commands}

options:
  --version   the version
  --help      this text; `detkit COMMAND --help` shows all options of a command,
              `detkit fit --model.help FasterRCNN` those of a class

examples:
  detkit fit --config configs/shapes/faster_rcnn.yaml
  detkit fit --config my.yaml --model.lr 0.005 --trainer.max_epochs 24
  detkit fit --config my.yaml --ckpt_path last            go on where it stopped
  detkit test --ckpt_path runs/my
  detkit predict --ckpt_path runs/my --data ImageFolder --data.path photos/ --predictions.draw true
  detkit propose --config my.yaml --split train --method selective_search
  detkit compress --ckpt_path runs/my --rank fc6=1024,fc7=256
  detkit evaluate --detections predictions.json --annotations instances_val2017.json
  detkit benchmark generations --data VOC --data.path data/my_voc
"""

LIGHTNING = ("fit", "validate", "test", "predict")


def help_text() -> str:
    """What `detkit --help` prints."""
    commands = "\n".join(f"  {name:<10}  {line}" for name, line in COMMANDS.items())
    return HELP.format(version=__version__, commands=commands)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        args: the arguments after the program's name; `sys.argv[1:]` by default.

    Returns:
        The exit code: 0, 2 for what the user can mend (one message, no traceback), 130 after an interrupt.
    """
    args = list(sys.argv[1:] if args is None else args)
    command = args[0] if args else "--help"
    if command in ("--help", "-h", "help"):
        print(help_text(), end="")
        return 0
    if command in ("--version", "-V", "version"):
        print(f"detkit {__version__}")
        return 0
    if command not in COMMANDS:
        return _fail(_unknown(command))
    try:
        return _run(command, args[1:])
    except DetkitError as error:
        return _fail(str(error))
    except KeyboardInterrupt as interrupt:
        hint = str(interrupt)
        print(f"\nStopped.{' ' + hint if hint else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`detkit test ... | head`): nothing is left to say.
        sys.stderr.close()
        return 1


def _run(command: str, args: list[str]) -> int:
    if command == "evaluate":  # imports neither torch nor lightning, whose warnings `quiet` filters
        from detkit.tools.evaluate import evaluate

        return run_function(command, evaluate, args)
    from detkit.cli.noise import quiet

    quiet()
    if command in LIGHTNING:
        from detkit.cli.lightning_cli import run

        run(command, args)
        return 0
    if command == "propose":
        from detkit.tools import propose

        return propose.main(args)
    if command == "compress":
        from detkit.tools.compress import compress

        return run_function(command, compress, args)
    if command == "benchmark":
        if not args or args[0] in ("--help", "-h"):
            print("usage: detkit benchmark generations [options]")
            return 0
        if args[0] != "generations":
            raise ConfigError(f"there is no benchmark {args[0]!r}; there is: generations")
        from detkit.tools.benchmark import generations

        return run_function(
            "benchmark generations", generations, args[1:], data_of=("rcnn", "fast_rcnn", "faster_rcnn")
        )
    from detkit.tools.demo import demo

    return run_function(command, demo, args)


def run_function(command: str, function: Callable[..., Any], args: Sequence[str], data_of: Sequence[str] = ()) -> int:
    """Run a tool: its options are the arguments of its function.

    Args:
        command: the name on the command line.
        function: of `detkit.tools`; its result has a `text`, which is printed.
        args: the arguments after the command.
        data_of: options that name a run, whose data set is the default.

    Raises:
        ConfigError: an option that the function does not have, or a value that it does not take.
    """
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    from detkit.cli.arguments import read_arguments
    from detkit.cli.messages import own_cause, shorten

    parser = ArgumentParser(f"detkit {command}", exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(function)
    options = [_underscores(argument) for argument in args]
    switches = [f"--{name}" for name, hint in get_type_hints(function).items() if hint is bool]
    for i in reversed(range(len(options))):
        if options[i] in switches and (i + 1 == len(options) or options[i + 1].startswith("--")):
            options.insert(i + 1, "true")  # `--fast` alone
    arguments = read_arguments(options)
    data = _data_options(arguments, data_of) if "data" in get_type_hints(function) else []
    try:
        config = parser.parse_args([*data, *arguments.options])
    except ArgumentError as error:
        names = [action.dest for action in parser._actions]
        raise ConfigError(shorten(str(error), command, arguments, names)) from error
    try:
        config = parser.instantiate_classes(config)
    except (ValueError, TypeError) as error:
        own_error = own_cause(error)
        if own_error is None:
            raise
        raise own_error from None
    print(function(**config.as_dict()).text, flush=True)
    return 0


def _data_options(arguments: Arguments, data_of: Sequence[str]) -> list[str]:
    """The data section of the config files, else of a checkpoint's run, as options; the data sets are imported."""
    import json

    import detkit.data
    from detkit.cli.arguments import read_config
    from detkit.engine.checkpoints import find_checkpoint, run_folder

    for name in detkit.data.__all__:
        getattr(detkit.data, name)
    sections = [content["data"] for content in arguments.sections if content.get("data")]
    run = next((value for name in data_of if (value := arguments.option(name))), None)
    if not sections and run and arguments.option("data", "data.class_path") is None:
        file = run_folder(find_checkpoint(run).path) / "config.yaml"
        section = read_config(file).get("data") if file.is_file() else None
        sections = [section] if section else []
    return [f"--data={section if isinstance(section, str) else json.dumps(section)}" for section in sections]


def _underscores(argument: str) -> str:
    """--iou_thresholds for --iou-thresholds."""
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def _unknown(command: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(command, COMMANDS, n=1)
    meant = f" Did you mean `detkit {close[0]}`?" if close else ""
    what = "option before a command" if command.startswith("-") else "command"
    return f"Unknown {what} {command!r}.{meant}\nThere are: {', '.join(COMMANDS)}; `detkit --help` explains them."


def _fail(message: str) -> int:
    print(f"detkit: {message}", file=sys.stderr)
    return 2
