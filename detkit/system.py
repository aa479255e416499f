"""How detkit uses the CPU: compiled loops, the number of threads and processes, and freed memory.

Compiled loops release the interpreter's lock: callers run several of them in threads, which, unlike numba's own
parallel loops, still work in forked DataLoader workers. numba does not notice when a function that a cached one calls
has changed in another file: after such a change remove the `__pycache__` folders (`make clean` does).
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, update_wrapper
from threading import Lock
from typing import Any, BinaryIO, TypeVar

#: Constants of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
#: Environment variables by which a user sets glibc's memory; where one is set, `keep_freed_memory` changes nothing.
MALLOC_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
#: What torch says, on any device, where it gets no memory.
MEMORY = re.compile(r"allocate|out of memory|storage size", re.IGNORECASE)

T = TypeVar("T")

_COMPILED: list[Any] = []
_LOCK = Lock()


class Compiled:
    """A function that numba compiles when it is first called, and imports only then."""

    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        return self.dispatcher(*arguments)

    @cached_property
    def dispatcher(self) -> Any:
        """numba's function."""
        from numba import njit

        options = {"nogil": True, "error_model": "numpy"}
        with _LOCK:
            if "dispatcher" in vars(self):  # by another thread
                return vars(self)["dispatcher"]
            try:
                self.dispatcher = njit(cache=True, **options)(self.__wrapped__)
            except RuntimeError:  # no folder for the cache can be written
                self.dispatcher = njit(**options)(self.__wrapped__)
            _COMPILED.append(self.dispatcher)
            return self.dispatcher

    @property
    def _numba_type_(self) -> Any:
        """By which numba compiles a function that calls this one."""
        return self.dispatcher._numba_type_


def jit(function: Callable[..., Any]) -> Any:
    """The function, compiled when it is first called; it must not raise, and divides as NumPy does."""
    return Compiled(function)


def has_compiled() -> bool:
    """Whether this process has compiled a function that was not in the cache."""
    return any(function.signatures and not function.stats.cache_hits for function in _COMPILED)


def available_cores() -> int:
    """The cores that the process may use, divided by the processes that torchrun started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, cores // max(1, int(processes) if processes.isdecimal() else 1))


def in_processes(work: Callable[[T], bytes | memoryview], items: Sequence[T]) -> list[bytes | memoryview]:
    """`work` of each item, of all but the first in a copy of this process each, where that is safe.

    It is on Linux in a process that has no other thread: a copy has its locks, but not the thread that would release
    them. Elsewhere, and where a copy has failed, this process does the work itself.

    Args:
        work: must not change anything outside; what it returns goes through a pipe.

    Raises:
        Exception: what `work` raises.
    """
    if len(items) < 2 or not _is_single():
        return [work(item) for item in items]
    copies: deque[tuple[int, BinaryIO]] = deque()
    try:
        with suppress(OSError):  # no more processes, or no memory for them
            for item in items[1:]:
                copies.append(_copy(work, item))
        results = [work(items[0])]
        for item in items[1:]:
            content = copies[0][1].read() if copies else b""
            is_whole = bool(copies) and _ends_well(copies.popleft())
            results.append(content if is_whole else work(item))
        return results
    finally:
        for process, pipe in copies:  # left by an error
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            _ends_well((process, pipe))


def _is_single() -> bool:
    """Whether it is known that this process has one thread, and copies are safe then."""
    try:
        return sys.platform == "linux" and len(os.listdir("/proc/self/task")) == 1
    except OSError:  # no /proc
        return False


def _copy(work: Callable[[T], bytes | memoryview], item: T) -> tuple[int, BinaryIO]:
    """Start a copy of this process that writes `work` of the item; its number, and the pipe to read from."""
    readable, writable = os.pipe()
    try:
        process = os.fork()
    except OSError:
        os.close(readable)
        os.close(writable)
        raise
    if not process:
        try:
            os.close(readable)  # so that it ends where the other process has ended
            with open(writable, "wb") as pipe:
                pipe.write(work(item))
            os._exit(0)
        finally:
            os._exit(1)  # without what this process does at its end
    os.close(writable)
    return process, open(readable, "rb")


def _ends_well(copy: tuple[int, BinaryIO]) -> bool:
    """Wait for a copy; whether it has written all that it had to."""
    process, pipe = copy
    pipe.close()
    try:
        return os.waitpid(process, 0)[1] == 0
    except ChildProcessError:  # whoever ignores SIGCHLD is not told
        return False


def memory_message(error: BaseException) -> str | None:
    """What to tell the user of an error of Python, NumPy or torch that says that memory is missing; None for others."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and MEMORY.search(str(error))):
        return None
    return (
        f"it needs more memory than there is ({reason}). Lower --data.batch_size or the size of the images "
        "(--model.image.max_size, --model.crop.size), or take a machine with more of it"
    )


def keep_freed_memory() -> bool:
    """Let this process, and those it forks, reuse freed memory; whether it was set, which needs glibc.

    By default glibc returns large blocks at once; the next layer requests them again, and the system fills each of the
    pages with zeros: a tenth to a quarter of the time of a training step on a CPU. The peak memory stays the same.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in MALLOC_VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No blocks outside the heap, and up to 2 GB kept at its end, which grows by 64 MB.
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, 2**26)])
