"""Keeping the memory that large tensors leave: on a CPU they come and go in every layer of every step."""

from __future__ import annotations

import ctypes
import os
import platform

#: glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
#: What a user sets who knows better.
VARIABLES = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Let this process, and those it forks, use freed memory again instead of giving it back to the system.

    glibc gives large blocks back at once, and a moment later, in the next layer, the system has to fill each of their
    pages with zeros anew: a tenth to a quarter of a training step's time. The peak of the memory stays the same.

    Returns:
        Whether it does; where there is no glibc, or the environment has settings for it, nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block by itself, and up to 2 GB kept at the heap's end, which grows by 64 MB.
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, 2**26)])
