"""Which classes config files and checkpoints may name: imported ones, of the kinds that there is a use for.

The parser resolves names while it parses, wherever a type allows a class or a callable: in a string, in YAML within a
string, in a file that a string names. So it is jsonargparse itself that is told what may be imported, and a file that
is searched for names (`check_names`) only gets the better message.
"""

from __future__ import annotations

import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from detkit.classes import find_class, full_name, subclasses
from detkit.errors import ConfigError
from detkit.settings import Configurable

#: Packages whose modules are layers and whole networks, but no models or backbones of detkit.
LIBRARIES = ("torch", "torchvision", "torchmetrics", "lightning", "timm")


def kinds() -> tuple[type, ...]:
    """The bases of all classes that a config may name."""
    import lightning.pytorch as pl
    import torch
    from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment

    ours = [Configurable, pl.LightningDataModule, torch.nn.Module]  # a model and a backbone are an nn.Module
    if "albumentations" in sys.modules:  # takes seconds to import, and a user's transforms have done so
        ours += [sys.modules["albumentations"].BasicTransform, sys.modules["albumentations"].BaseCompose]
    ours += [torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, pl.Callback, pl.accelerators.Accelerator]
    ours += [pl.loggers.Logger, pl.profilers.Profiler, pl.strategies.Strategy, pl.plugins.Precision]
    return *ours, pl.plugins.LayerSync, CheckpointIO, ClusterEnvironment


def restrict_imports() -> None:
    """Let jsonargparse, in this process and from now on, import nothing but imported classes of these `kinds`."""
    from jsonargparse import set_parsing_settings

    classes = {cls for kind in kinds() for cls in subclasses(kind) if not _is_layer(cls)}
    # jsonargparse also looks up, by name, the settings that an argument of these classes takes.
    packages = {cls.__module__.partition(".")[0] for cls in classes}
    groups = [cls for base in object.__subclasses__() if is_dataclass(base) for cls in subclasses(base)]
    classes |= {cls for cls in groups if cls.__module__.partition(".")[0] in packages}
    # An allowed name allows what is below it: methods, such as load_from_checkpoint, are denied one by one.
    values = (str, int, dict, tuple, property, type(None))
    methods = {f"{full_name(c)}.{n}" for c in classes for n, value in vars(c).items() if not isinstance(value, values)}
    names = {name for cls in classes for name in _names(cls)}
    set_parsing_settings(
        import_path_denylist=["*", *filter(_is_path, methods)],
        import_path_allowlist=[*filter(_is_path, names)],
        instantiate_subclass_spec_in_any=False,  # where a type allows anything, a class is not built
    )


def _is_layer(cls: type) -> bool:
    """Whether a class is a module of a library, such as torch.nn.Linear, which is no model and no backbone."""
    from torch import nn

    return issubclass(cls, nn.Module) and cls.__module__.partition(".")[0] in LIBRARIES


def _names(cls: type) -> list[str]:
    """The name of a class in its module, and those in the packages that the module lies in."""
    parts = cls.__module__.split(".")
    return [f"{'.'.join(parts[:count])}.{cls.__qualname__}" for count in range(1, len(parts) + 1)]


def _is_path(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def check_names(content: Any, where: Path) -> None:
    """Refuse a ``class_path`` in a run's files that is no imported class of these `kinds`, and say where it stands.

    Augmentations of albumentations are looked up by the data sets themselves.

    Raises:
        ConfigError: names the file and the class.
    """
    items = content.items() if isinstance(content, dict) else enumerate(content if isinstance(content, list) else ())
    for key, value in items:
        if key == "class_path" and "." in str(value) and not str(value).startswith("albumentations."):
            try:
                found = find_class(str(value), kinds())
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error
            if _is_layer(found):
                raise ConfigError(f"{where}: {value} is not a class that a config may name")
        check_names(value, where)
