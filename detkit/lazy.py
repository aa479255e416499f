"""Names of a package that are imported when they are first used: torch, Lightning and numba take seconds to import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, Sequence[str]], modules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are imported when first used.

    Names are given by the module that defines them; ``modules`` are names themselves, by their last part. Type checkers
    see none of them; import them below ``if TYPE_CHECKING:`` too.
    """
    origins = {name: module for module, defined in names.items() for name in defined}
    as_names = {module.rpartition(".")[2]: module for module in modules}
    public = sorted({*origins, *as_names})

    def get(name: str) -> Any:
        if name in as_names:
            return import_module(as_names[name])
        if name in origins:
            return getattr(import_module(origins[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names_of() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return get, names_of, public
