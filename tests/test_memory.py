"""Freed memory is used again, where it can be asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from detkit import memory

#: Pages that the system has to find for large arrays that come and go, and what `keep_freed_memory` says.
SCRIPT = """
import resource, sys
import numpy as np
from detkit.memory import keep_freed_memory
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
    clean = {name: value for name, value in os.environ.items() if name not in memory.VARIABLES}
    command = [sys.executable, "-c", SCRIPT, how]
    result = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    said, pages = result.stdout.split()
    return said, int(pages)


@with_glibc
def test_large_arrays_get_the_pages_that_others_left() -> None:
    (_, before), (said, after) = run("plain"), run("keep")
    assert said == "True" and after < before / 10


@with_glibc
@pytest.mark.parametrize("name", memory.VARIABLES)
def test_what_the_environment_says_stays(name: str) -> None:
    value = "glibc.malloc.mmap_max=100" if name == "GLIBC_TUNABLES" else "100"
    assert run("keep", **{name: value})[0] == "False"


@pytest.mark.parametrize("libc", [("", ""), ("musl", "1.2")])
def test_elsewhere_nothing_happens(libc: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    monkeypatch.delattr(memory.ctypes, "CDLL")
    assert memory.keep_freed_memory() is False
