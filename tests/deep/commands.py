"""`detkit` commands as processes of their own, forked from one that has imported everything: a start takes 0.1 s.

The process that forks has one thread only, so the child is as whole as a new Python.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

LIMIT = 120.0  # seconds that a command may take
POLL = 0.005


@dataclass
class Command:
    """A command that runs, or has ended.

    Attributes:
        args: its arguments.
        folder: its working directory.
        log: the file with its output, stdout and stderr.
        began, began_at: when it was started, by `time.monotonic` and by the clock.
        code: its exit code, negative for the signal that killed it; None while it runs.
    """

    args: Sequence[str]
    folder: Path
    log: Path
    pid: int
    began: float = field(default_factory=time.monotonic)
    began_at: float = field(default_factory=time.time)
    code: int | None = None

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, until: Callable[[], bool] = lambda: False) -> int | None:
        """Wait until it has ended or ``until`` is true; one that takes more than `LIMIT` is killed (exit code -9)."""
        while not self.poll() and not until():
            if time.monotonic() - self.began > LIMIT:
                self.kill()
                raise TimeoutError(f"detkit {' '.join(self.args)} takes more than {LIMIT:g} s")
            time.sleep(POLL)
        return self.code

    def kill(self, number: int = signal.SIGKILL, group: bool = False) -> None:
        """Send it a signal, or its whole ``group`` of processes; wait for its end after a SIGKILL."""
        if not self.poll():
            (os.killpg if group else os.kill)(self.pid, number)
            if number == signal.SIGKILL:
                self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def __str__(self) -> str:
        return f"detkit {' '.join(self.args)} (in {self.folder}, exit code {self.code})"


def start(args: Sequence[str], folder: Path, name: str = "log") -> Command:
    """Start `detkit` with these arguments in a folder, in a process group of its own.

    Its output goes to ``name``.txt beside the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}-{name}.txt"
    log.write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        _run(args, folder, log)
    with contextlib.suppress(OSError):  # it has done so already
        os.setpgid(pid, pid)
    return Command(args, folder, log, pid)


def run(args: Sequence[str], folder: Path, name: str = "log") -> Command:
    """`start`, and wait for the end; AssertionError where the exit code is not 0."""
    command = start(args, folder, name)
    command.wait()
    if command.code != 0:
        raise AssertionError(f"{command}:\n{command.output[-2000:]}")
    return command


def _run(args: Sequence[str], folder: Path, log: Path, last: Callable[[], Any] = lambda: None) -> NoReturn:
    """What the child does, and ``last`` after the command; it never returns to the code that forked it."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(folder)
        os.environ.pop("DETKIT_RUN_FOLDER", None)
        from detkit.cli.main import main

        code = main(args)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        last()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def modules_of(args: Sequence[str], folder: Path) -> list[str]:
    """The modules that a command imports, found by running it in a child."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "imports.txt"
        log.write_bytes(b"")

        def tell() -> None:
            with os.fdopen(write, "w") as pipe:
                pipe.write("\n".join(sys.modules))

        _run(args, folder, log, last=tell)
    os.close(write)
    with os.fdopen(read) as pipe:
        names = pipe.read().split("\n")
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise AssertionError(f"detkit {' '.join(args)} failed:\n{(folder / 'imports.txt').read_text()[-2000:]}")
    return names


def go_on_command(output: str) -> list[str] | None:
    """The arguments that a stopped command names to go on with; None where it names none."""
    found = re.search(r"detkit (fit --ckpt_path \S+)", output)
    return found[1].split() if found else None


def number_of_threads() -> int:
    """Threads of this process."""
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
