"""How many threads a process should start."""

from __future__ import annotations

import os


def available_cores() -> int:
    """The cores that this process may use: those it is allowed, shared with the other processes that torchrun started
    on this machine (LOCAL_WORLD_SIZE)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    together = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, cores // max(1, int(together) if together.isdecimal() else 1))
