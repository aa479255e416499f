"""The arguments as they were typed: config files and modules to import apart from options, before anything is parsed.

Options win over files wherever they stand on the command line, so files are put first.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from detkit.cli.data_path import section, with_classes
from detkit.config_files import find_config, read_config
from detkit.errors import ConfigError


class ConfigFile(NamedTuple):
    """A config file and what it holds."""

    path: Path
    content: dict[str, Any]


@dataclass
class Arguments:
    """A command's arguments.

    Attributes:
        files: the config files, in the order given.
        options: every other argument, in the order given; names of options have underscores.
        modules: the modules to import, in the order given.
        notes: what was understood, for the user to read.
    """

    files: list[ConfigFile] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def pairs(self) -> Iterator[tuple[str, str | None]]:
        """The options on the command line as (name, value); the value is None for an option without one."""
        for argument, following in pairwise([*self.options, None]):
            name, equals, value = argument.partition("=")
            if name.startswith("--"):
                yield name[2:], value if equals else following

    @property
    def ask_for_help(self) -> bool:
        """Whether `-h`, `--help`, `--model.help` or the like is among the options."""
        return "-h" in self.options or any(name.rpartition(".")[2] == "help" for name, _ in self.pairs())

    def option(self, *names: str) -> str | None:
        """The last value on the command line for one of these options; None if there is none."""
        return next((value for name, value in reversed(list(self.pairs())) if name in names), None)

    def setting(self, name: str) -> Any:
        """The value of `trainer.max_epochs` and the like on the command line, else in the last file that has it."""
        given = self.option(name)
        if given is not None:
            return given
        values = (lookup(file.content, name) for file in reversed(self.files))
        return next((value for value in values if value is not None), None)

    def class_of(self, section: str) -> tuple[str | None, str]:
        """The class chosen for `model` or `data`, and where: the command line or a file."""
        given = self.option(section, f"{section}.class_path")
        if given is not None and not given.lstrip().startswith("{"):
            return given, "the command line"
        for path, content in reversed(self.files):
            part = content.get(section)
            name = part.get("class_path") if isinstance(part, dict) else part
            if isinstance(name, str):
                return name, str(path)
        return None, ""


def read_arguments(args: Sequence[str]) -> Arguments:
    """Take config files and imports out of the arguments, and read the files.

    Hyphens in the name of an option become underscores; values are left alone.

    Raises:
        ConfigError: a file is missing, is not YAML or is not a mapping; the message names the file and the line.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c", action="append", default=[])
    parser.add_argument("--import", dest="modules", action="append", default=[])
    try:
        known, options = parser.parse_known_args([_normalize(argument) for argument in args])
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    notes: list[str] = []
    files = [find_config(name) for name in known.config]
    options = with_classes(options, notes)
    contents = [ConfigFile(path, section(read_config(path), notes)) for path in files]
    return Arguments(contents, options, known.modules, notes)


def without_lost_null(options: Sequence[str]) -> list[str]:
    """The options, with a null of ``--model.proposals.path`` in JSON: jsonargparse would make a folder "None" of it.

    It takes the null of an option within a group for a text, where the option may be a text.
    """
    lost = re.compile(r"(--model\.(?:init_args\.)?proposals)\.path[=\0]null(?=\0|$)")
    return lost.sub(r'\1={"path": null}', "\0".join(options)).split("\0") if options else []


def lookup(content: Any, name: str, missing: Any = None) -> Any:
    """The value of a dotted name in nested mappings, or `missing`; `init_args` need not be named."""
    for part in name.split("."):
        inner = content.get("init_args") if isinstance(content, dict) else None
        inner = content if isinstance(content, dict) and part in content else inner
        if not isinstance(inner, dict) or part not in inner:
            return missing
        content = inner[part]
    return content


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: dotted name -> value; an empty mapping is a value."""
    if not isinstance(content, dict) or not content:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _normalize(argument: str) -> str:
    """Underscores in the name of an option; null in a list quoted, which jsonargparse loses in nested options."""
    name, equals, value = argument.partition("=")
    if name.startswith("["):
        return re.sub(r"(?<=[\[,\s])null(?=[\],\s])", "'null'", argument)
    return f"--{name[2:].replace('-', '_')}{equals}{_normalize(value)}" if name.startswith("--") else argument
