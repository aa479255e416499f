"""Config files: the project's found by name, and any of them read as plain values within limits."""

from __future__ import annotations

import math
import os
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit.classes import did_you_mean
from detkit.errors import ConfigError
from detkit.files import path_alike

if TYPE_CHECKING:
    import yaml

#: What a config file may hold.
SECTIONS = (
    *("model", "data", "trainer", "checkpoint", "predictions", "seed_everything", "ckpt_path", "print_config"),
    *("output", "baseline", "score_threshold", "tiles", "overlap"),
)
MAX_VALUES, MAX_DEPTH = 100_000, 50


def config_names() -> dict[str, Path]:
    """The configs of the project by name, such as "faster_rcnn/custom_voc": those of a clone, or of the package."""
    package = Path(__file__).resolve().parent
    folder = package / "configs"  # as installed; in a clone they stand beside the package
    folder = folder if folder.is_dir() else package.parent / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_config(name: str | os.PathLike[str]) -> Path:
    """The config file that a path, which wins, or one of `config_names` means, with or without ".yaml".

    Raises:
        ConfigError: there is neither; the message names the nearest config.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    names = config_names()
    wanted = os.fspath(name).removesuffix(".yaml").removesuffix(".yml").removeprefix("configs/")
    if wanted in names:
        return names[wanted]
    by_last_part = {known.rpartition("/")[2]: known for known in names}
    close = get_close_matches(wanted, names, n=1)
    close += [by_last_part[n] for n in get_close_matches(wanted, by_last_part, 1)]
    alike = path_alike(path, "*.yaml") or next(iter(close), None)
    hint = f"; did you mean {alike}?" if alike else ""
    raise ConfigError(f"{path}: no such config file{hint}\nThe configs known by name: {', '.join(names)}")


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config file.

    Raises:
        ConfigError: as `read_arguments`.
    """
    import yaml  # here, since most tools are run without a config

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
    import yaml

    try:
        size, depth = _size(yaml.compose(text, yaml.SafeLoader), {})
    except RecursionError:
        return False
    except (yaml.YAMLError, ValueError):
        return True
    return size <= MAX_VALUES and depth <= MAX_DEPTH


def _size(node: yaml.Node | None, known: dict[int, tuple[float, int]]) -> tuple[float, int]:
    """Values and levels of a YAML document once its aliases are filled in, counted without filling them in."""
    import yaml

    if id(node) not in known:
        known[id(node)] = math.inf, 0  # an alias of what holds it
        value = node.value if isinstance(node, yaml.CollectionNode) else []
        children = [_size(each, known) for each in (chain(*value) if isinstance(node, yaml.MappingNode) else value)]
        known[id(node)] = 1 + sum(size for size, _ in children), 1 + max((depth for _, depth in children), default=0)
    return known[id(node)]
