"""Errors in single items of a data set: they stop the reader, or are collected so that one pass finds all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from detkit.errors import DataError

_COLLECTED: ContextVar[list[DataError] | None] = ContextVar("collected", default=None)


@contextmanager
def collect_errors() -> Iterator[list[DataError]]:
    """Leave out, in the block, items of a data set that cannot be read, and collect their errors.

    Yields:
        The errors, in the order found; of a block within another one the outer block's.
    """
    outer = _COLLECTED.get()
    errors: list[DataError] = [] if outer is None else outer
    token = _COLLECTED.set(errors)
    try:
        yield errors
    finally:
        _COLLECTED.reset(token)


@contextmanager
def one_item() -> Iterator[None]:
    """What a reader does with one item; where errors are collected, an item with a DataError is left out."""
    try:
        yield
    except DataError as error:
        errors = _COLLECTED.get()
        if errors is None:
            raise
        errors.append(error)
