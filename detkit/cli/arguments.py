"""The arguments as given: config files apart from options, and what each of them says.

Options win over files wherever they stand on the command line, so files are put first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detkit.errors import ConfigError

CONFIG_FLAGS = ("--config", "-c")


@dataclass
class Arguments:
    """A command's arguments.

    Attributes:
        configs: the config files, in the order given.
        options: every other argument, in the order given.
        sections: the content of each config file.
    """

    configs: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    sections: list[dict[str, Any]] = field(default_factory=list)

    def option(self, *names: str) -> str | None:
        """The last value given on the command line for one of these options; None if none was given."""
        value = None
        for i, argument in enumerate(self.options):
            flag, equals, rest = argument.partition("=")
            if flag.startswith("--") and flag[2:] in names:
                following = self.options[i + 1] if i + 1 < len(self.options) else None
                value = rest if equals else following
        return value

    def setting(self, name: str, section: str | None = None) -> Any:
        """What the command line, else the last config file that has it, says for `name` (or `section.name`)."""
        given = self.option(f"{section}.{name}" if section else name)
        if given is not None:
            return given
        for content in reversed(self.sections):
            part = content.get(section) if section else content
            if isinstance(part, dict) and part.get(name) is not None:
                return part[name]
        return None

    def given_for(self, section: str) -> set[str]:
        """The names of the options of a class (`--model.lr`) given on the command line, by their first part."""
        names = set()
        for argument in self.options:
            flag = argument.partition("=")[0]
            if flag.startswith(f"--{section}."):
                names.add(_first(flag[len(section) + 3 :]))
        return names - {"class_path", "help"}

    def class_of(self, section: str) -> tuple[str | None, str]:
        """The class chosen for `model` or `data`, by its last name, and where: "command line" or the file."""
        given = self.option(section, f"{section}.class_path")
        if given is not None and not given.lstrip().startswith("{"):
            return given.rsplit(".", 1)[-1], "the command line"
        for content, path in zip(reversed(self.sections), reversed(self.configs), strict=True):
            part = content.get(section)
            name = part if isinstance(part, str) else part.get("class_path") if isinstance(part, dict) else None
            if name:
                return str(name).rsplit(".", 1)[-1], path
        return None, ""

    def in_files(self, section: str) -> dict[str, str]:
        """The names of a class's options that config files set -> the file that sets it last."""
        found: dict[str, str] = {}
        for content, path in zip(self.sections, self.configs, strict=True):
            part = content.get(section)
            if isinstance(part, dict):
                found |= dict.fromkeys(part.get("init_args") or {}, path)
        return found


def read_arguments(args: Sequence[str]) -> Arguments:
    """Takes config files out of the arguments and reads them.

    Raises:
        ConfigError: a file is missing, is not YAML or is not a mapping; the message names the file and the line.
    """
    found = Arguments()
    rest = iter(args)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in CONFIG_FLAGS:
            path = value if equals else next(rest, None)
            if path is None:
                raise ConfigError(f"{flag} needs the path of a YAML file.")
            found.configs.append(path)
            found.sections.append(read_config(path))
        else:
            found.options.append(argument)
    return found


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of a config file, see `read_arguments` for the errors."""
    file = Path(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such config file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{file}{where}: not valid YAML ({getattr(error, 'problem', None) or error}).") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file}: must hold `model:`, `data:` and `trainer:` sections, not a {type(content).__name__}."
        )
    return content


def _first(name: str) -> str:
    parts = name.split(".")
    return parts[1] if parts[0] in ("init_args", "dict_kwargs") and len(parts) > 1 else parts[0].removesuffix("+")
