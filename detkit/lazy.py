"""Names of a package that are imported when they are first used: torch, Lightning and numba take seconds to import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are imported when first used.

    Type checkers do not see such names; import them below ``if TYPE_CHECKING:`` too, as ``import NAME as NAME``.

    Args:
        package: the package's ``__name__``.
        names: module -> the names that it defines; those beside the package itself are its subpackages.
    """
    modules = {name: module for module, defined in names.items() for name in defined}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if modules[name] == package:
            return import_module(f"{package}.{name}")
        return getattr(import_module(modules[name]), name)

    def names_of() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names_of, sorted(modules)
