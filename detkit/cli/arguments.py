"""The arguments as they were typed: config files and modules to import apart from options, before anything is parsed.

Options win over files wherever they stand on the command line, so files are put first.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from detkit.classes import did_you_mean
from detkit.errors import ConfigError
from detkit.files import find_config

#: What a config file may hold.
SECTIONS = ("model", "data", "trainer", "checkpoint", "predictions", "seed_everything", "ckpt_path", "print_config")
SECTIONS += ("output", "baseline", "score_threshold")
MAX_VALUES, MAX_DEPTH = 100_000, 50


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
    """

    files: list[ConfigFile] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)

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
    files = [find_config(name) for name in known.config]
    return Arguments([ConfigFile(path, read_config(path)) for path in files], options, known.modules)


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config file.

    Raises:
        ConfigError: as `read_arguments`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if not _is_small(text):
            limits = f"more than {MAX_DEPTH} levels, or {MAX_VALUES:,} values"
            raise ConfigError(f"{path}: holds {limits} (an alias, *NAME, counts as what it stands for)")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:  # such as the 45th of a month
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(
            f"{path}: must hold `model:`, `data:` and `trainer:` sections, not a {type(content).__name__}"
        )
    for name in content or {}:
        if name not in SECTIONS:
            raise ConfigError(f"{path}: there is no option {name}{did_you_mean(str(name), SECTIONS)}")
    check_values(content, path)
    return content or {}


def check_values(content: Any, where: Path, name: str = "") -> None:
    """Refuse what the parser of the command line must not meet in a config or a checkpoint.

    It takes plain values, and reads any string as YAML where its type is not that of a string.

    Raises:
        ConfigError: names the value (``name`` is that of the content) and what is wrong with it.
    """
    wrong = None
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str | int):
                raise ConfigError(f"{where}: {name or 'it'} has the key {key!r}, which is neither a name nor a number")
            check_values(value, where, f"{name}.{key}".lstrip("."))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            check_values(value, where, f"{name}[{number}]")
    elif isinstance(content, str):
        if "\0" in content:
            wrong = "holds a NUL character"
        elif ("*" in content or max(map(content.count, "[{-?:")) > MAX_DEPTH) and not _is_small(content):
            wrong = f"is YAML of more than {MAX_DEPTH} levels or {MAX_VALUES:,} values"
    elif not isinstance(content, bool | int | float | None):
        wrong = f"is a {type(content).__name__}; put it in quotes"
    if wrong is not None:
        raise ConfigError(f"{where}: {name} {wrong}")


def _is_small(text: str) -> bool:
    """Whether a text is no YAML, or keeps within `MAX_DEPTH` and `MAX_VALUES`."""
    try:
        size, depth = _size(yaml.compose(text, yaml.SafeLoader), {})
    except RecursionError:
        return False
    except (yaml.YAMLError, ValueError):
        return True
    return size <= MAX_VALUES and depth <= MAX_DEPTH


def _size(node: yaml.Node | None, known: dict[int, tuple[float, int]]) -> tuple[float, int]:
    """Values and levels of a YAML document once its aliases are filled in, counted without filling them in."""
    if id(node) not in known:
        known[id(node)] = math.inf, 0  # an alias of what holds it
        value = node.value if isinstance(node, yaml.CollectionNode) else []
        children = [_size(each, known) for each in (chain(*value) if isinstance(node, yaml.MappingNode) else value)]
        known[id(node)] = 1 + sum(size for size, _ in children), 1 + max((depth for _, depth in children), default=0)
    return known[id(node)]


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
