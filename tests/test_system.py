"""Compiled functions where there is no folder to keep machine code in, and where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numba.core.caching
import pytest

from detkit.system import jit


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
