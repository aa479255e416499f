"""The options of the methods that make proposals: one way to write each value, and which values there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from detkit.errors import ConfigError

#: Least values of numbers; those of `POSITIVE` must be larger than 0.
LEAST = {"seed": 0, "max_boxes": 1, "resize_width": 1, "min_side": 0}
POSITIVE = ("scales", "ratios", "stride", "ks", "sigma")
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def check_option(method: str, name: str, value: Any, kind: Any) -> Any:
    """An option's value as its type has it, so that 20 and 20.0 are one value where a float is wanted.

    Args:
        method: as in `load_or_compute`.
        name: of the option.
        value: plain, as JSON has it.
        kind: the type that the method's function wants.

    Returns:
        plain; a mapping of selective search's own parameters holds all of them.

    Raises:
        ConfigError: another type, or a value that the method does not take.
    """
    value = _as(f"{method}: {name}", value, kind)
    choices = _choices(name)
    if isinstance(value, str) and choices and value not in choices:
        raise ConfigError(f"{method}: unknown {name} {value!r}; use one of {', '.join(choices)}")
    if isinstance(value, Mapping):
        value = {key: check_option(method, key, each, _kinds()[key]) for key, each in value.items()}
        _check_search(method, value)
    numbers = value if isinstance(value, list) else [value]
    numbers = [number for number in numbers if isinstance(number, int | float)]
    if any(number < LEAST.get(name, -math.inf) for number in numbers):
        raise ConfigError(f"{method}: {name} must be {LEAST[name]} or more, not {value!r}")
    if name in POSITIVE and (value == [] or any(number <= 0 for number in numbers)):
        raise ConfigError(f"{method}: {name} must be above 0, and one at least, not {value!r}")
    return value


def _choices(name: str) -> Sequence[str]:
    from detkit.proposals.selective_search.search import MODES, SETS

    return {"mode": MODES, "parameters": SETS}.get(name, ())


def _kinds() -> dict[str, Any]:
    from detkit.proposals.selective_search import SearchParameters

    return get_type_hints(SearchParameters)


def _as(what: str, value: Any, kind: Any) -> Any:
    """The value as that type; of several types the one that it is of."""
    from detkit.proposals.selective_search import SearchParameters

    kinds = get_args(kind) if get_origin(kind) not in (tuple, Sequence, list) else (kind,)
    kinds = kinds or (kind,)
    if value is None and NoneType in kinds:
        return None
    if isinstance(value, Mapping) and SearchParameters in kinds:
        return _completed(what, value)
    for each in kinds:
        if each is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if each is int and isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
            return int(value)
        if each in (str, bool) and isinstance(value, each):
            return value
        if get_origin(each) in (tuple, Sequence, list) and isinstance(value, list):
            return [_as(what, item, get_args(each)[0]) for item in value]
    wanted = [_in_words(each) for each in kinds]
    raise ConfigError(f"{what} must be {' or '.join(wanted)}, not {value!r}")


def _in_words(kind: Any) -> str:
    if get_origin(kind) is not None:
        return "a list"
    if kind is NoneType:
        return "null"
    return WORDS.get(kind, "numbers of your own, by name")


def _completed(what: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from detkit.proposals.selective_search import SearchParameters

    names = [each.name for each in fields(SearchParameters)]
    needed = [each.name for each in fields(SearchParameters) if each.default is MISSING]
    if set(given) - set(names) or set(needed) - set(given):
        raise ConfigError(
            f"{what} of your own are {', '.join(names)}, of which {', '.join(needed)} are needed; given are "
            f"{', '.join(sorted(given)) or 'none'}"
        )
    return asdict(SearchParameters(**given))


def _check_search(method: str, own: Mapping[str, Any]) -> None:
    if len(own["ks"]) != len(own["min_sizes"]) or not own["colour_spaces"] or not own["strategies"]:
        raise ConfigError(
            f"{method}: parameters need a colour space and a strategy at least, and as many min_sizes as ks; they have "
            f"colour_spaces {own['colour_spaces']}, strategies {own['strategies']}, ks {own['ks']}, min_sizes "
            f"{own['min_sizes']}"
        )
