"""The options there are, read from the source, so that a misspelt one is refused before torch is imported.

Arguments of constructors and functions, and the fields of settings, are found with `ast`. Where anything is unclear (a
class of another package, an argument that is no group of settings) nothing is checked: jsonargparse looks at every
option again when the classes are imported.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Union

from detkit.cli.arguments import Arguments, flatten
from detkit.errors import ConfigError
from detkit.files import path_alike

#: Options that take a class, and the packages whose classes they know by their short names.
CLASSES = ("model", "data", "method")
PACKAGES = ("detkit.detectors", "detkit.classification", "detkit.data", "detkit.proposals")
#: What may stand at any level besides the names of arguments.
WORDS = ("class_path", "dict_kwargs", "help")

#: Name -> the names below it, or None where these are not known.
Names = dict[str, Union["Names", None]]


#: A class or a function, and the module it stands in.
Definition = tuple[str, ast.ClassDef | ast.FunctionDef]


def options_of(module: str, name: str) -> Names | None:
    """The arguments of a class's constructor or of a function, with the fields of settings below them.

    ``module`` is where the name is defined or imported. None where the arguments cannot be told from the source.
    """
    found = _find(module, name)
    annotations = _arguments(found) if found is not None else None
    if annotations is None:
        return None
    return {name: _below(where, annotation) for name, (where, annotation) in annotations.items()}


def options_of_class(name: str | None) -> Names | None:
    """`options_of` a class by its short name, or by its full one."""
    module, _, short = (name or "").rpartition(".")
    packages = [module] if module else [package for package in PACKAGES if short in _imports(package)]
    return options_of(packages[0], short) if packages and packages[0].split(".")[0] == "detkit" else None


def names_of(classes: Iterable[type]) -> list[str]:
    """The names of classes and of their arguments, for suggestions."""
    names = [cls.__name__ for cls in classes]
    return names + [name for cls in classes for name in dotted(options_of(cls.__module__, cls.__name__) or {})]


def check_options(
    command: str,
    known: Names,
    arguments: Arguments,
    run: Mapping[str, Any] = MappingProxyType({}),
    classes: Sequence[str] = CLASSES,
) -> None:
    """Refuse an option, a class or a name in a config file that is not known.

    The options of ``classes`` are those of the classes that are chosen; ``run`` is the config of the checkpoint's run,
    for classes that the user does not choose.

    Raises:
        ConfigError: with the near name, and the file that holds the wrong one.
    """
    chosen = {section: arguments.class_of(section)[0] for section in classes if section in known}
    ours = {name for package in PACKAGES for name in _imports(package)}
    for section, name in chosen.items():
        if name is None or "." in name or name in ours or arguments.modules or "torch" in sys.modules:
            continue  # known, or perhaps the user's own
        close = get_close_matches(name, ours, n=1)
        alike = path_alike(Path(name)) if section == "data" else None
        what = f", and no such file or folder{f'; did you mean {alike}?' if alike else ''}" if section == "data" else ""
        hint = f"; did you mean {close[0]}?" if close else what
        raise ConfigError(f"there is no class {name}{hint}\nA class of your own needs --import MODULE")
    chosen = {section: name or _class_in(run.get(section)) for section, name in chosen.items()}
    names = known | {section: options_of_class(name) for section, name in chosen.items()}
    for name, _ in arguments.pairs():
        _check(command, names, name, "--")
    for path, content in arguments.files:
        own = {section: _class_in(content.get(section)) or name for section, name in chosen.items()}
        names = known | {section: options_of_class(name) for section, name in own.items()}
        for name in flatten(content):
            _check(command, names, name, f"{path}: ")


def _check(command: str, names: Names, wanted: str, where: str) -> None:
    parts = wanted.split(".")
    level: Names | None = names
    for depth, part in enumerate(parts):
        part = part.removesuffix("+")
        if level is None or part in WORDS:
            return
        if part == "init_args":
            continue
        if part not in level:
            near = _nearest(names, level, parts, depth)
            dashes = "--" if where == "--" else ""
            meant = near if "." in wanted or not dashes else short_name(command, near).removeprefix("--")
            hint = f"; did you mean {dashes}{meant}?" if near else ""
            text = f"{where.removesuffix('--')}there is no option {dashes}{wanted}{hint}"
            raise ConfigError(f"{text}\n`detkit {command} --help` shows all options.")
        level = level[part]


def _nearest(names: Names, level: Names, parts: list[str], depth: int) -> str:
    """The option that was meant: the nearest at this level, else one of the same last name anywhere."""
    close = get_close_matches(parts[depth], level, n=1)
    if close:
        return ".".join([*parts[:depth], close[0], *parts[depth + 1 :]])
    everywhere = {name.rpartition(".")[2]: name for name in reversed(list(dotted(names)))}
    close = get_close_matches(parts[-1], everywhere, n=1, cutoff=0.7)
    return everywhere[close[0]] if close else ""


def short_name(command: str, name: str) -> str:
    """An option as it may be written without its group: --patience, and predict's options; others as they are."""
    if command == "fit" and name == "checkpoint.patience":
        return "--patience"
    return f"--{name.removeprefix('predictions.')}" if name.startswith("predictions.") else name


def dotted(names: Names, prefix: str = "") -> Iterator[str]:
    """The names of all levels, with dots."""
    for name, below in names.items():
        yield f"{prefix}{name}"
        yield from dotted(below or {}, f"{prefix}{name}.")


def _class_in(section: Any) -> str | None:
    name = section.get("class_path") if isinstance(section, Mapping) else section
    return name if isinstance(name, str) else None


# -- the source -------------------------------------------------------------------------------------


@cache
def _tree(module: str) -> ast.Module | None:
    """A module's source, found without importing it: importing a package may import torch."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top) if len(module) < 1000 else None  # a longer name is no file's
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None


@cache
def _imports(module: str) -> dict[str, tuple[str, str]]:
    """The names that a module imports -> the module they come from and their name there."""
    nodes = ast.walk(_tree(module) or ast.Module([], []))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {alias.asname or alias.name: (str(node.module), alias.name) for node in imports for alias in node.names}


def _find(module: str, name: str) -> Definition | None:
    for node in (_tree(module) or ast.Module([], [])).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
    origin = _imports(module).get(name)
    return _find(*origin) if origin not in (None, (module, name)) else None


def _arguments(found: Definition) -> dict[str, tuple[str, ast.expr | None]] | None:
    """Argument -> its module and annotation, those of the bases included where a constructor takes ``**shared``."""
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return None if node.args.vararg or node.args.kwarg else _own(module, node)
    constructor = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    own = _fields(module, node) if constructor is None else _own(module, constructor)
    if constructor is not None and constructor.args.kwarg is None:
        return own
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id == "ABC":
            continue
        definition = _find(module, base.id) if isinstance(base, ast.Name) else None
        inherited = None if definition is None else _arguments(definition)
        if inherited is None:
            return None
        own = inherited | own
    return own


def _own(module: str, function: ast.FunctionDef) -> dict[str, tuple[str, ast.expr | None]]:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return {each.arg: (module, each.annotation) for each in arguments if each.arg != "self"}


def _fields(module: str, node: ast.ClassDef) -> dict[str, tuple[str, ast.expr | None]]:
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
    return {each.target.id: (module, each.annotation) for each in fields} if node.decorator_list else {}


def _below(module: str, annotation: ast.expr | None) -> Names | None:
    """The fields of a group of settings; None for any other argument."""
    names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)] if annotation is not None else []
    groups = [name for name in names if name.endswith("Settings")]
    return options_of(module, groups[0]) if len(groups) == 1 else None
