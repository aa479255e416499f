"""Waits of the host for a device, by what it waited for and the line of code."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What counts, and is not what causes a wait.
OWN = {Path(__file__).with_name(f"{name}.py") for name in ("waits", "simulated_device", "tested_device")}

Waits = Counter[tuple[str, str]]


def check_waits(found: Waits, limit: int) -> None:
    """An AssertionError with a table of the waits where there are more."""
    lines = [f"{count} x {operation} in {line}" for (operation, line), count in found.most_common()]
    assert found.total() <= limit, "\n".join([f"{found.total()} waits, at most {limit} are allowed:", *lines])


def project_line() -> str:
    """The line of the project that is being run, such as detkit/boxes/geometry.py:40."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts and path not in OWN:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "PyTorch or Lightning"
