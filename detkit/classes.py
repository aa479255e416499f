"""Classes by name: a user's own backbone, proposal method or detector, named in a config or in a checkpoint.

A name is looked up among what is imported already, and checked against a base class. A file that names a class imports
and calls nothing: ``--import my_package.detectors``, or an import in Python, makes a user's own module known.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from detkit.errors import ConfigError


def full_name(cls: type) -> str:
    """Module and name of a class, as `find_class` takes it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def find_class(name: str, base: type | tuple[type, ...], among: Mapping[str, type] | None = None) -> type:
    """The class of a full name, or of a short one of ``among``.

    Raises:
        ConfigError: no such class is imported, or it is derived from none of ``base``.
    """
    known = dict(among or {})
    if name in known:
        return known[name]
    module, _, attribute = name.rpartition(".")
    found = None
    if module.partition(".")[0] == "detkit":  # our packages import their classes when these are asked for
        found = getattr(sys.modules.get(module), attribute, None)
    elif module in sys.modules:  # a foreign name must not set off the imports of other packages that do so
        found = vars(sys.modules[module]).get(attribute)
    if isinstance(found, type) and issubclass(found, base):
        return found
    if found is not None:
        if isinstance(base, tuple):
            raise ConfigError(f"{name} is not a class that a config may name")
        raise ConfigError(f"{name} is not a {base.__name__}; give a class that is derived from {full_name(base)}")
    if module not in sys.modules and all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(
            f"{name}: the module {module} is not imported; import it with --import {module} on the command line, or "
            "before this call in Python"
        )
    shown = [*list(known)[:20], *["..."] * (len(known) > 20)]
    hint = did_you_mean(name, known) or (f"; there are: {', '.join(shown)}" if known else "")
    raise ConfigError(f"there is no {'class' if isinstance(base, tuple) else base.__name__} {name!r}{hint}")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The hint of a message about an unknown name; "" where none of the known ones is near."""
    close = [each for each in known if each.lower() == name.lower()] or get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def subclasses(base: type) -> list[type]:
    """`base` and the imported classes derived from it."""
    classes = [base]
    for cls in classes:
        classes.extend(cls.__subclasses__())
    return classes


def known_classes(base: type) -> dict[str, type]:
    """The imported classes derived from `base`, by their short names."""
    return {cls.__name__: cls for cls in subclasses(base)}


def build(spec: Mapping[str, Any], base: type, among: Mapping[str, type] | None = None) -> Any:
    """An object from ``{class_path: NAME, init_args: {...}}``; a ConfigError as `find_class`, or for its arguments."""
    unknown = sorted(set(spec) - {"class_path", "init_args"})
    name = spec.get("class_path")
    if not isinstance(name, str) or unknown:
        raise ConfigError(f"{dict(spec)}: must hold class_path, and may hold init_args, and nothing else")
    cls = find_class(name, base, among)
    arguments = spec.get("init_args") or {}
    if not isinstance(arguments, Mapping) or not all(isinstance(key, str) for key in arguments):
        raise ConfigError(f"{name}: init_args wants names with values, not {arguments!r:.60}")
    try:
        return cls(**arguments)
    except TypeError as error:
        given = f" {arguments}" if arguments else " these arguments"
        raise ConfigError(f"{name} does not take{given}: {error}") from error


def import_modules(names: Sequence[str]) -> None:
    """Import the modules that a user's own command names; the working directory counts as a place to find them.

    Raises:
        ConfigError: one cannot be imported, or raises an error itself; the message names the line.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        if not all(name.split(".")):
            raise ConfigError(f"--import {name!r}: give the name of a module, such as my_package.detectors")
        try:
            importlib.import_module(name)
        except (ImportError, SyntaxError) as error:
            raise ConfigError(f"--import {name}: cannot be imported ({error})") from error
        except (Exception, SystemExit) as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error}; {line.filename}, line {line.lineno}"
            raise ConfigError(f"--import {name}: cannot be imported ({what})") from error
