"""Settings: frozen dataclasses in constructors, plain dicts in checkpoints, dotted command-line names.

A group of settings is a dataclass beside the part that uses it, with a check of its values in ``__post_init__``. A
constructor takes it as one argument: ``rpn: RPNSettings = RPNSettings()``; YAML has ``rpn: {nms_threshold: 0.7}``, the
command line ``--model.rpn.nms_threshold 0.7``, a checkpoint ``{"rpn": {"nms_threshold": 0.7, ...}}``.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from detkit.classes import build, did_you_mean, full_name
from detkit.errors import ConfigError


class Configurable:
    """Base of objects in settings, given as ``class_path`` and ``init_args``; a subclass is a frozen dataclass."""


def to_plain(value: Any) -> Any:
    """A value as a checkpoint or YAML holds it: settings become dicts, tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        content = {each.name: to_plain(getattr(value, each.name)) for each in fields(value)}
        if isinstance(value, Configurable):
            return {"class_path": full_name(type(value)), "init_args": content}
        return content
    if hasattr(value, "as_dict"):  # jsonargparse's Namespace
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def parameters_of(cls: type) -> dict[str, tuple[Any, Any]]:
    """The arguments of a class's constructor and, through ``**shared``, of its bases': name -> type and default."""
    parameters: dict[str, tuple[Any, Any]] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        constructor: Any = vars(base)["__init__"]
        hints = typing.get_type_hints(constructor)
        signature = list(inspect.signature(constructor).parameters.values())[1:]
        for each in signature:
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                parameters.setdefault(each.name, (hints.get(each.name, Any), each.default))
        if not any(each.kind is each.VAR_KEYWORD for each in signature):
            break
    return parameters


def nested(settings: Mapping[str, Any], separator: str = "__") -> dict[str, Any]:
    """{"rpn__nms_threshold": 0.7} as {"rpn": {"nms_threshold": 0.7}}; names without the separator stay as they are."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        group, _, rest = name.partition(separator)
        if rest:
            result.setdefault(group, {})[rest] = value
        else:
            result[name] = value
    return result


def construct(cls: type, arguments: Mapping[str, Any]) -> Any:
    """An object of a class from plain arguments: nested dicts, or single settings such as ``rpn__nms_threshold``.

    Raises:
        ConfigError: an argument that the class does not have, or a value that it does not take.
    """
    return cls(**arguments_from_plain(cls, nested(arguments)))


def arguments_from_plain(cls: type, content: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A constructor's arguments from plain values, by their types: the reverse of `to_plain`.

    Raises:
        ConfigError: an argument that the class does not have (``where`` is its own dotted name), or a wrong value.
    """
    known, values = parameters_of(cls), {}
    check_groups(cls, content, f"{where}.".lstrip("."))
    for name, value in content.items():
        if name not in known:
            raise ConfigError(f"{where or cls.__name__} has no argument {name!r}{did_you_mean(name, known)}")
        annotation, default = known[name]
        if isinstance(value, Mapping) and is_dataclass(default) and not isinstance(default, Configurable):
            value = {**vars(default), **value}  # what is left out is the constructor's default, not the group's
        values[name] = _from_plain(annotation, value, f"{where}.{name}".lstrip("."))
    return values


def _from_plain(annotation: Any, value: Any, where: str) -> Any:
    """The value as the first type of the annotation that takes it."""
    is_union = typing.get_origin(annotation) in (typing.Union, type(int | str))
    for kind in typing.get_args(annotation) if is_union else (annotation,):
        if isinstance(value, Mapping) and isinstance(kind, type) and issubclass(kind, Configurable):
            return build(value, kind)
        if isinstance(value, Mapping) and isinstance(kind, type) and is_dataclass(kind):
            return kind(**arguments_from_plain(kind, value, where))
        if typing.get_origin(kind) is tuple and isinstance(value, list):
            count = len(typing.get_args(kind))
            if ... not in typing.get_args(kind) and len(value) != count:
                raise ConfigError(f"{where} wants {count} values, not {value!r:.60}")
            return tuple(value)
    return value


def check_groups(cls: type, arguments: Mapping[str, Any], where: str) -> None:
    """Refuse, with a ConfigError, a group of settings that is given as anything but names and values."""
    for name, (_, default) in parameters_of(cls).items():
        is_group = is_dataclass(default) and not isinstance(default, Configurable)
        value = arguments.get(name, default)
        if is_group and not is_dataclass(value) and not hasattr(value, "items"):
            raise ConfigError(f"{where}{name} is a group of settings and wants names with values, not {value!r:.60}")


def check_choice(where: str, value: str, choices: typing.Iterable[str]) -> None:
    """Refuse, with a ConfigError, a value that is not among the choices, and name the near one."""
    known = list(choices)
    if value not in known:
        near = did_you_mean(str(value), known)
        choices = f"{near} The" if near else "; the"
        raise ConfigError(f"{where}: there is no {value!r}{choices} choices are {', '.join(known)}")


def check_class_names(class_names: Sequence[str], category_ids: Sequence[int] | None) -> None:
    """Refuse names that are none or not different, and another number of ids."""
    if not class_names or len(set(class_names)) != len(class_names):
        raise ConfigError(f"class_names must be one or more different names, not {class_names}")
    if category_ids is not None and len(category_ids) != len(class_names):
        raise ConfigError(f"{len(category_ids)} category_ids for {len(class_names)} class_names")


def check_range(
    where: str, value: float | None, low: float, high: float = float("inf"), open_low: bool = False
) -> None:
    """Refuse a number below ``low`` (or equal to it, with ``open_low``) or above ``high``; None passes."""
    if value is None or (low < value <= high if open_low else low <= value <= high):
        return
    least = f"above {low:g}" if open_low else f"at least {low:g}"
    most = "" if high == float("inf") else f" and at most {high:g}"
    raise ConfigError(f"{where}: {value} must be {least}{most}")
