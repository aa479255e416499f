"""Compiled functions with and without a folder for the cache, and freed memory that is used again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numba.core.caching
import numpy as np
import pytest
import torch

from detkit import system
from detkit.system import jit, memory_message


def waits_for(flags, mine, others):
    """Sets a flag and turns until the others' is set: ends only if both run at once."""
    flags[mine] = 1
    while flags[others] == 0:
        flags[mine] += 1
    return flags[mine]


def test_without_a_folder_to_keep_it_in_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(number):
        return number / 0 if number == 0 else 2 * number

    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [], raising=False)
    monkeypatch.setattr(numba.core.caching.CompileResultCacheImpl, "_locator_classes", [], raising=False)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(double)
    assert jit(double)(21.0) == 42


@pytest.mark.timeout(60)
def test_two_threads_run_at_once() -> None:
    import numpy as np

    flags, compiled = np.zeros(2, np.int64), jit(waits_for)
    compiled(np.ones(2, np.int64), 0, 1)
    threads = [threading.Thread(target=compiled, args=(flags, i, 1 - i), daemon=True) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)


def test_what_is_compiled_and_what_is_kept_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(
        "from detkit.system import has_compiled, jit\n\n@jit\ndef double(x):\n    return 2 * x\n\n"
        "assert not has_compiled()\nassert double(21) == 42\nprint(has_compiled())\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "NUMBA_CACHE_DIR": str(tmp_path / "kept"),
    }
    command = [sys.executable, str(tmp_path / "kernel.py")]
    printed = [subprocess.check_output(command, env=environment, text=True).strip() for _ in range(2)]
    assert printed == ["True", "False"]


#: Prints the result of `keep_freed_memory`, and the pages that the system maps for large arrays in turn.
SCRIPT = """
import resource, sys
import numpy as np
from detkit.system import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24)
before = pages()
for _ in range(5):
    np.ones(2**24)  # 128 MB
print(pages() - before)
"""
with_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")


def run(how: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if name not in system.MALLOC_VARIABLES}
    command = [sys.executable, "-c", SCRIPT, how]
    result = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    said, pages = result.stdout.split()
    return said, int(pages)


@with_glibc
def test_large_arrays_get_the_pages_that_others_left() -> None:
    (_, before), (said, after) = run("plain"), run("keep")
    assert said == "True" and after < before / 10


@with_glibc
@pytest.mark.parametrize("name", system.MALLOC_VARIABLES)
def test_what_the_environment_says_stays(name: str) -> None:
    value = "glibc.malloc.mmap_max=100" if name == "GLIBC_TUNABLES" else "100"
    assert run("keep", **{name: value})[0] == "False"


@pytest.mark.parametrize("libc", [("", ""), ("musl", "1.2")])
def test_elsewhere_nothing_happens(libc: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    monkeypatch.delattr(system.ctypes, "CDLL")
    assert system.keep_freed_memory() is False


@pytest.mark.parametrize("request_", [lambda: np.zeros(2**50), lambda: torch.zeros(2**50), lambda: torch.zeros(2**62)])
def test_missing_memory_is_told(request_: Any) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        request_()
    assert "needs more memory than there is (" in memory_message(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 cannot be multiplied"), ValueError("allocate")])
def test_other_errors_are_not_taken_for_missing_memory(error: Exception) -> None:
    assert memory_message(error) is None
    assert "(MemoryError)" in memory_message(MemoryError())


IN_PROCESSES = """
import os, signal, sys, threading
from detkit.system import in_processes

own = os.getpid()
sys.platform = sys.argv[1]

def work(item):
    if item == "wrong" or (item == "b only here" and os.getpid() != own):
        raise ValueError(item)
    return f"{item} {'here' if os.getpid() == own else 'there'} {'x' * 300_000}".encode()

def told(items):
    return [b" ".join(each.split()[:-1]).decode() for each in in_processes(work, items)]

print(told(["a", "b", "c"]))
if sys.platform != "linux":
    sys.exit()
print(told(["a"]), told([]))
print(told(["a", "b only here", "c"]))
for items in (["wrong", "b"], ["a", "b", "wrong"]):
    try:
        print(told(items))
    except ValueError as error:
        print("ValueError:", error)
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("no copy is left")
fork, descriptors = os.fork, len(os.listdir("/proc/self/fd"))
def refuse():
    raise BlockingIOError(11, "no more processes")
os.fork = refuse
print(told(["a", "b"]), len(os.listdir("/proc/self/fd")) == descriptors)
os.fork = fork
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(told(["a", "b"]))
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
print(told(["a", "b"]))
stop.set()
thread.join()
"""


def told_in_processes(system: str) -> list[str]:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    program = [sys.executable, "-c", IN_PROCESSES, system]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux a process is copied")
def test_copies_of_the_process_share_the_work() -> None:
    assert told_in_processes("linux") == [
        "['a here', 'b there', 'c there']",
        "['a here'] []",
        "['a here', 'b only here here', 'c there']",
        "ValueError: wrong",
        "ValueError: wrong",
        "no copy is left",
        "['a here', 'b here'] True",  # fork fails
        "['a here', 'b here']",  # whether a copy has failed is not known
        "['a here', 'b here']",
    ]


def test_where_copies_are_not_safe_there_are_none() -> None:
    assert told_in_processes("darwin") == ["['a here', 'b here', 'c here']"]
