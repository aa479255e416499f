"""The one way in which detkit compiles its inner loops.

Machine code is kept beside the source (or in the user's cache where that is read-only), so that only the first call
ever waits for it. The interpreter's lock is released: callers run several such loops in threads, which, unlike numba's
own parallel loops, survive being forked into DataLoader workers.

numba does not see when a function that a kept one calls has changed in another file: after such a change remove the
`__pycache__` folders (`make clean` does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

_FUNCTIONS: list[Any] = []


def jit(function: Callable[..., Any]) -> Any:
    """The function, compiled when it is first called; it must not raise, and divides as NumPy does."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep it in can be written
        compiled = njit(**options)(function)
    _FUNCTIONS.append(compiled)
    return compiled


def has_compiled() -> bool:
    """Whether this process had to compile something that was not kept from an earlier one."""
    return any(function.signatures and not function.stats.cache_hits for function in _FUNCTIONS)
