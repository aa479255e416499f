"""The pages of the commands, made of their parsers, functions and docstrings."""

from __future__ import annotations

import importlib
import inspect
from argparse import SUPPRESS
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from detkit.cli.help import BENCHMARKS, COMMANDS, EXAMPLES, HELP, NOTES
from detkit.cli.tools import CONFIG, TOOLS, Tool
from docs.generate.settings import is_group
from docs.generate.words import arguments, choices, kind, plain, summary, table, value

#: Where a command is explained, besides its list of options.
GUIDES = {
    "fit": "command-line.md#train",
    "validate": "command-line.md#test",
    "test": "command-line.md#test",
    "predict": "command-line.md#predict",
    "propose": "command-line.md#proposals",
    "evaluate": "evaluation.md",
    "convert": "data.md",
    "doctor": "data.md",
    "split": "data.md#train-val-and-test",
    "recipe": "training.md",
    "compress": "command-line.md#compress",
    "export": "export.md",
    "benchmark": "command-line.md#the-three-generations-on-your-machine",
    "demo": "start.md",
}
LIGHTNING = ("fit", "validate", "test", "predict")


def pages() -> dict[str, str]:
    """Path of a page -> its Markdown: one for each command, and their list."""
    found = {"commands/index.md": overview()}
    for command in LIGHTNING:
        found[f"commands/{command}.md"] = lightning_page(command)
    for command, tool in TOOLS.items():
        path = f"commands/{command.split()[0]}.md"  # `benchmark` has several
        found[path] = "\n".join([*([found[path]] if path in found else []), tool_page(command, tool)])
    return found


def overview() -> str:
    """The list of the commands."""
    rows = ([f"[`{name}`]({name}.md)", what] for name, what in COMMANDS.items())
    return (
        "# Every command\n\n"
        "`detkit COMMAND [options]`. These pages are made of the program's own parsers. How the commands are used "
        "together is on [The command line](../command-line.md).\n\n" + table(("command", "what it gives"), rows)
    )


def head(command: str) -> str:
    """Title, sentence, examples and guide of a command."""
    name, _, part = command.partition(" ")
    what = BENCHMARKS[part] if part else COMMANDS[name]
    lines = [
        line.strip().split("   ")[0] for line in HELP.splitlines() if line.strip().startswith(f"detkit {command} ")
    ]
    lines = [line for line in lines if "{" not in line] or [f"detkit {command}"]
    if command in EXAMPLES and not any(EXAMPLES[command] in line for line in lines):
        lines.append(f"detkit {command} {EXAMPLES[command]}")
    examples = "\n".join(lines)
    guide = GUIDES[command.split()[0]]
    return (
        f"# detkit {command}\n\n{what[0].upper()}{what[1:]}.\n\n```\n{examples}\n```\n\n"
        f"[How it is used](../{guide}).\n\n"
    )


# -- fit, validate, test, predict -------------------------------------------------------------------


class _Captured(Exception):
    """Ends the program once its parser is made."""


def parser_of(command: str) -> Any:
    """The parser of fit, validate, test or predict."""
    from detkit.cli.arguments import Arguments
    from detkit.cli.lightning_cli import DetkitCLI, base_classes
    from detkit.cli.resume import Start

    found: list[Any] = []

    class Program(DetkitCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            found.append(parser)
            raise _Captured

    with suppress(_Captured):
        Program(command, Arguments(), Start(Path()), *base_classes())
    return found[0]


def lightning_page(command: str) -> str:
    """The page of one of Lightning's commands."""
    text = head(command)
    if command in NOTES:
        text += NOTES[command].strip() + "\n\n"
    for group in parser_of(command)._action_groups:
        rows = [row(action) for action in group._group_actions if action.help is not SUPPRESS and action.option_strings]
        rows = [each for each in rows if each]
        if not rows:
            continue
        title = (group.title or "options").strip()
        title = "general" if title in ("optional arguments", "options") else title
        listed = table(("option", "default", "meaning"), rows)
        if rows[0][0].startswith("`--trainer"):
            intro = (
                "They are those of [Lightning's Trainer](https://lightning.ai/docs/pytorch/stable/common/trainer.html)."
            )
            listed = f'??? note "{len(rows)} options"\n\n' + "".join(f"    {line}\n" for line in listed.splitlines())
            text += f"## {title[0].upper()}{title[1:]}\n\n{intro}\n\n{listed}\n"
        else:
            text += f"## {title[0].upper()}{title[1:]}\n\n{listed}\n"
    return text + (
        "The options of a model or a data set, `--model.NAME VALUE` and `--data.NAME VALUE`, are on the pages of "
        "[every setting](../settings/index.md).\n"
    )


def row(action: Any) -> list[str]:
    """Option, default and meaning of an action of a parser."""
    name = next((each for each in action.option_strings if each.startswith("--")), "--help")
    if name.endswith(".help") or name == "--help":
        return []
    default = action.default
    default = "" if default is SUPPRESS else f"`{plain(default)}`"
    return [f"`{name}`", default, str(action.help or "").partition(" (type:")[0].replace("%%", "%").replace("%s", "")]


# -- the tools --------------------------------------------------------------------------------------


def tool_page(command: str, tool: Tool) -> str:
    """The page of a command that is a function."""
    function = getattr(importlib.import_module(tool.module), tool.function)
    text = head(command) + summary(function.__doc__) + "\n\n"
    meanings = arguments(function.__doc__)
    rows = []
    has_data = False
    for name, parameter in inspect.signature(function).parameters.items():
        has_data |= name == "data"
        default = parameter.default
        if is_group(default):
            known = arguments(type(default).__doc__)
            rows += [
                [
                    f"`--{name}.{each.name}`",
                    kind_cell(each.type),
                    value(getattr(default, each.name)),
                    known.get(each.name, ""),
                ]
                for each in fields(default)
            ]
            continue
        needed = "needed" if default is parameter.empty else value(default)
        rows.append([f"`--{name}`", kind_cell(parameter.annotation), needed, meanings.get(name, "")])
    if tool.positional:
        text += f"The first argument, without a name, is `--{tool.positional}`.\n\n"
    if rows:
        text += "## Options\n\n" + table(("option", "type", "default", "meaning"), rows) + "\n"
    if has_data:
        text += f"{CONFIG} The classes of data sets and their options: [data sets](../settings/data.md).\n\n"
    name = f"detkit.{command.replace(' ', '.')}"
    result = kind(inspect.signature(function).return_annotation)
    text += (
        f"## From Python\n\n`{name}(...)` takes the same arguments and returns a `{result}`; `.text` of it is what the "
    )
    return text + f"command prints. [Reference](../reference/{'benchmark' if ' ' in command else 'index'}.md)\n"


def kind_cell(annotation: Any) -> str:
    """The type of an argument, in a cell."""
    return f"`{choices(annotation)}`"
