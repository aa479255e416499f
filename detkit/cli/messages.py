"""jsonargparse's errors in a line or two: without its list of alternatives, with the file and the near name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from detkit.classes import find_class
from detkit.cli.arguments import Arguments, flatten
from detkit.cli.imports import kinds
from detkit.cli.signatures import short_name
from detkit.errors import ConfigError, DetkitError

#: Lines that say nothing of what the user gave.
NOISE = re.compile(
    r"Expected a <class 'NoneType'>|Expected a path but|Does not validate against|Subtypes: |Errors:|Given value type: "
    r"|Given value: (\w+\(|\{)"
)
#: What a message complains about: the name of an option or a class, or a value.
CULPRIT = re.compile(
    r"(?:unrecognized arguments: -*|[Oo]ption '|import path string: |Got value: |Given value: )([\w.-]+)"
)
#: What jsonargparse says of a name that `detkit.cli.imports` does not allow.
DENIED = re.compile(r"Importing '([\w.]+)' is not allowed, denied by")
#: What a library's class says where a package that it needs is missing.
MISSING = re.compile(r"Try running `pip install (?:-U )?'?([\w-]+)")
#: Where a value is wrong, what is wanted there, and what was given.
KEY, GIVEN = re.compile(r'Parser key "([\w.]+)"'), re.compile(r"(?:Got value|Given value): (.*)")
WANTED = re.compile(r"Expected an? (?:<class '(?:[\w.]*\.)?(\w+)'>|typing\.Literal\[(.*?)\](?=[.\n]))")
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "names with values, such as {a: 1}",
    **dict.fromkeys(("list", "tuple", "Sequence", "Iterable"), "a list, such as [1, 2]"),
}


def explain(message: str, command: str, arguments: Arguments, known: Iterable[str]) -> ConfigError:
    """The error for the user, of what jsonargparse says, with the config file that holds the wrong name or value.

    ``known`` are the names of options and classes there are; the choices that the message itself lists are added.
    """
    if denied := DENIED.search(message):
        file = next((f"{path}: " for path, content in arguments.files if denied[1] in str(content)), "")
        return ConfigError(f"{file}{_not_allowed(denied[1])}")
    if missing := _missing_package(message):
        return missing
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    lines = [line for line in lines if line and not NOISE.match(line) and len(line) < 500]
    wrong_value = _wrong_value(message)
    text = wrong_value or _no_class(message) or " ".join(lines) or message
    found = CULPRIT.search(message)
    culprit = found[1].rstrip(".") if found else ""
    file = _file_of(culprit, arguments)
    if wrong_value and not file:  # of the command line, where options have short names
        name, words = wrong_value.split(" ", 1)
        text = f"{short_name(command, name)} {words}"
    choices = [name for name in re.findall(r"'([\w-]+)'", message) if name != culprit]
    near = "" if wrong_value else _near(culprit, [*known, *choices])
    return ConfigError(f"{f'{file}: ' if file else ''}{text}{near}\n`detkit {command} --help` shows all options.")


def _missing_package(message: str) -> ConfigError | None:
    """The error for a class, such as a logger, whose package is not installed."""
    if (found := MISSING.search(message)) is None:
        return None
    classes = re.findall(r"class_path '([\w.]+)'", message[: found.start()])
    name = f"{classes[-1].rpartition('.')[2]} needs" if classes else "it needs"
    return ConfigError(f"{name} the package {found[1]}, which is not installed: pip install {found[1]}")


def _wrong_value(message: str) -> str:
    """What jsonargparse says of a value of the wrong type, in plain words; "" where it says something else."""
    keys = list(KEY.finditer(message))
    given = GIVEN.search(message, keys[-1].end()) if keys else None
    if given is None or given[1].startswith(("NestedArg", "Namespace")):
        return ""
    name = ".".join(dict.fromkeys(key[1] for key in keys))
    said = message[keys[-1].end() : given.start()] + "\n"
    if pair := re.search(r"Expected a tuple with (\d+) elements", said):
        return f"{name} must be a list of {pair[1]}, not {given[1]}"
    wanted = [choices or TYPES.get(name, "") for name, choices in WANTED.findall(said) if name != "NoneType"]
    if not all(wanted) or not wanted or re.search(r"class_path|import path", said):
        return ""
    literals = [item.strip("'\" ") for text in wanted if text not in TYPES.values() for item in text.split(",")]
    numbers = [text for text in wanted if text in TYPES.values()]
    if literals or TYPES["float"] in numbers:  # a whole number is a number; of literals 16 and the like are such
        numbers = [text for text in numbers if text != TYPES["int"]]
    choices = list(dict.fromkeys([*numbers, *literals]))
    words = f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]
    return f"{name} must be {words}, not {given[1].rstrip('.')}"


def _no_class(message: str) -> str:
    """What jsonargparse says of the short name of a class that there is not; "" where it says something else."""
    found, keys = re.search(r"import path string: (\w+)$", message, re.MULTILINE), KEY.findall(message)
    if found is None or not keys:
        return ""
    return f"{keys[-1]}: there is no class {found[1]}; one of your own is MODULE.CLASS, with --import MODULE"


def own_cause(error: BaseException) -> DetkitError | None:
    """The error of ours that another one was made of: jsonargparse wraps what a constructor raises."""
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):  # by dict_kwargs
        return ConfigError(str(error))
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DetkitError):
        if denied := DENIED.match(str(cause)):
            return _not_allowed(denied[1])
        cause = cause.__cause__ or cause.__context__
    return cause


def _not_allowed(name: str) -> ConfigError:
    """Why a class must not be named."""
    try:
        find_class(name, kinds())
    except ConfigError as error:
        return error
    return ConfigError(f"{name} is not the full name of a class that a config may name")


def _file_of(culprit: str, arguments: Arguments) -> str:
    """The config file that holds a name or a value, if the command line does not."""
    name = culprit if culprit[:1].isdigit() else culprit.rpartition(".")[2]
    if not name or any(name in option for option in arguments.options):
        return ""
    for path, content in arguments.files:
        flat = flatten(content)
        if name in (str(value) for value in flat.values()) or any(name in key.split(".") for key in flat):
            return str(path)
    return ""


def _near(culprit: str, known: Iterable[str]) -> str:
    names = {name.rpartition(".")[2]: name for name in known}
    close = get_close_matches(culprit.rpartition(".")[2], names, n=1, cutoff=0.7)
    return f"; did you mean {names[close[0]]!r}?" if close and names[close[0]] != culprit else ""
