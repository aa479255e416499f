"""Imports torchvision and Lightning without what they import for parts that validate, test and predict do not use.

torchvision 0.29 and Lightning 2.6 import torch's compiler (and with it sympy and triton) for one check each, and
torchmetrics 1.9, which Lightning imports, takes in matplotlib and scipy.signal for plots and audio: a third of the time
of a prediction on one image. Here the compiler is imported when it is asked for, and torchmetrics finds neither
matplotlib nor SciPy. Only the program does this: `import detkit` and `main` change nothing in other libraries.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any

#: What torchvision and Lightning import of torch's compiler while they are imported themselves.
COMPILER = ("torch._dynamo", "torch._dynamo.utils")
#: What torchmetrics imports where it is installed.
UNUSED = ("matplotlib", "scipy")


def import_lightning() -> None:
    """Import torch, torchvision and Lightning; what is imported already stays as it is."""
    import_module("torch")
    with _deferred_compiler(), _not_installed(UNUSED):
        import_module("torchvision")
        import_module("lightning.pytorch.cli")


class _Deferred(type):
    """The class of a stand-in for `OptimizedModule`, what torch.compile returns."""

    def __instancecheck__(cls, value: Any) -> bool:
        compiler = sys.modules.get("torch._dynamo")  # without it, nothing was compiled
        return compiler is not None and isinstance(value, compiler.OptimizedModule)


class _OptimizedModule(metaclass=_Deferred):
    pass


def _is_compile_supported(device_type: Any) -> Any:
    return import_module("torch._dynamo.utils").is_compile_supported(device_type)


def _disable(function: Callable[..., Any], *options: Any, **named: Any) -> Callable[..., Any]:
    """torch.compiler.disable: a decorator of what must not be compiled."""

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        compiler = sys.modules.get("torch._dynamo")  # without it, nothing is
        return (compiler.disable(function, *options, **named) if compiler else function)(*arguments, **keywords)

    return call


@contextmanager
def _deferred_compiler() -> Iterator[None]:
    """Stand-ins for the modules of torch's compiler; a name that these do not have imports the real ones."""
    if any(name in sys.modules for name in COMPILER):
        yield
        return
    names: dict[str, dict[str, Any]] = {
        "torch._dynamo": {"OptimizedModule": _OptimizedModule, "disable": _disable, "__path__": []},
        "torch._dynamo.utils": {"is_compile_supported": _is_compile_supported},
    }
    stand_ins = {name: ModuleType(name) for name in COMPILER}

    def remove() -> None:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]

    def importer(module: str) -> Callable[[str], Any]:
        def get(name: str) -> Any:
            if name.startswith("__"):  # `inspect` looks for the file of every module
                raise AttributeError(name)
            remove()
            return getattr(import_module(module), name)

        return get

    for name, stand_in in stand_ins.items():
        vars(stand_in).update(names[name], __getattr__=importer(name))
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        remove()


@contextmanager
def _not_installed(packages: tuple[str, ...]) -> Iterator[None]:
    """Let lightning_utilities, by which torchmetrics looks for packages, find none of these."""
    from lightning_utilities.core import imports

    if not hasattr(imports, "_version"):  # there is no public way to change it; without it, all is imported
        yield
        return
    found, version = imports.package_available, imports._version

    def package_available(package_name: str) -> bool:
        return package_name not in packages and found(package_name)

    def version_of(package: str) -> str:
        if package in packages:
            raise imports.PackageNotFoundError(package)
        return version(package)

    imports.package_available, imports._version = package_available, version_of
    try:
        yield
    finally:
        imports.package_available, imports._version = found, version
