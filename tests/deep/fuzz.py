"""Fuzzing: damaged files end in a result or a DetkitError, and nothing that they name is run or imported.

Every reader runs in a worker process of its own. It says which case it is in before it begins with it, so that a crash
of native code, too, is a failure with a number.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.deep.campaign import Campaign, fork
from tests.deep.mutations import CANARY, UNKNOWN_MODULE
from tests.deep.readers import READERS

TIME = 10  # seconds of the processor that a case may take
MEMORY = 2 * 2**30  # bytes that it may take
BATCH = 5.0  # seconds between two reports
ALIKE = 3  # failures of one kind that are kept and printed; all are counted
CRASHES = 20  # of a reader, after which it is given up
HARMFUL = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
HARMFUL += ("socket.connect", "socket.getaddrinfo", "sqlite3.load_extension", "webbrowser.open", "ftplib.connect")


class Harm(BaseException):
    """Something that a file named was run, imported or opened for writing."""


class TooSlow(BaseException):
    """A case took more than `TIME` seconds."""


class Watch:
    """Notices, by Python's audit events, what a damaged file must not set off; off while no case runs."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        harmful = event in HARMFUL or (event in ("import", "open", "exec", "compile") and self._is_named(event, args))
        if harmful:
            self.seen.append(f"{event} {args!r}"[:300])
            raise Harm(self.seen[-1])

    @staticmethod
    def _is_named(event: str, args: tuple[Any, ...]) -> bool:
        if event == "import":
            return str(args[0]).startswith(UNKNOWN_MODULE)
        if event == "open":  # for reading it does no harm
            return CANARY in str(args[0]) and "r" not in str(args[1])
        text = args[0] if isinstance(args[0], str | bytes) else getattr(args[0], "co_consts", ())
        return CANARY in str(text)


def limit_memory() -> None:
    """Let this process take `MEMORY` bytes more than it has."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


def random_of(seed: int, name: str, case: int) -> random.Random:
    """The generator of a case."""
    return random.Random(f"{seed}/{name}/{case}")


#: What every worker tries first, so that a watch that sees nothing is seen.
HARMFUL_ACTS: tuple[Callable[[], Any], ...] = (
    lambda: os.system(f"touch {CANARY}"),
    lambda: subprocess.Popen(["touch", CANARY]),
    lambda: exec(f"open({CANARY!r}, 'w')"),
    lambda: Path(CANARY).write_text(""),
    lambda: importlib.import_module(UNKNOWN_MODULE),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: bytearray(2 * MEMORY),
)


def failure_of(read: Callable[[], Any], watch: Watch) -> str | None:
    """Read the file; what did not hold, or None."""
    from detkit.errors import DetkitError

    watch.seen.clear()
    watch.on = True
    signal.setitimer(signal.ITIMER_PROF, TIME)
    failure, began = None, time.process_time()
    try:
        read()
    except DetkitError as error:
        if not str(error).strip() or "Traceback" in str(error):
            failure = f"a message that says nothing: {error!r}"
    except TooSlow:
        pass
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        calls = traceback.extract_tb(error.__traceback__)[::-1]
        calls = calls[:1] + [call for call in calls[1:] if f"{os.sep}detkit{os.sep}" in call.filename][:3]
        at = " < ".join(f"{Path(call.filename).name}:{call.lineno}" for call in calls)
        failure = f"{type(error).__name__}: {str(error)[:200]} ({at})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watch.on = False
    if time.process_time() - began > TIME:  # also where the signal's exception was caught on its way
        failure = f"takes more than {TIME} s"
    if watch.seen:
        return f"was run or imported: {watch.seen[0]}"
    if os.path.exists(CANARY):
        os.unlink(CANARY)
        return "a file that the input names has appeared"
    return failure


def _work(campaign: Campaign, name: str, first: int, ends: float, position: mmap.mmap) -> None:
    """Run cases from ``first`` on, in this process."""
    folder = campaign.folder / "fuzz" / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "here").mkdir(parents=True)
    (folder / "here" / f"{UNKNOWN_MODULE}.py").write_text(
        f"open({CANARY!r}, 'w')\nclass Harm: pass\ndef harm(*args): pass\n"
    )
    os.chdir(folder / "here")
    sys.path.insert(0, str(folder / "here"))
    sys.dont_write_bytecode = True
    output = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGPROF, _too_slow)
    (folder / "files").mkdir()
    reader = READERS[name](campaign.folder / "material", folder / "files")
    with contextlib.suppress(Exception):
        reader.read()  # undamaged: what is imported or compiled now counts for no case
    limit_memory()
    watch, kinds = Watch(), Counter()
    for harmful in HARMFUL_ACTS:
        if failure_of(harmful, watch) is None:
            raise AssertionError("harm is not noticed")
    began, count, failed = time.monotonic(), 0, 0
    case = first
    while time.monotonic() < ends:
        position[:8] = struct.pack("q", case)
        content = reader.make(random_of(campaign.seed, name, case))
        reader.path.write_bytes(content)
        failure = failure_of(reader.read, watch)
        count, case = count + 1, case + 1
        if failure is not None:
            failed += 1
            kinds[kind := re.sub(r"\d+", "0", failure)] += 1
            if kinds[kind] <= ALIKE:
                campaign.explain(name, case - 1, failure, campaign.keep(name, case - 1, content, reader.path.suffix))
        if campaign.case is not None:
            break
        if time.monotonic() - began > BATCH:
            campaign.report(name, count, time.monotonic() - began, failed)
            began, count, failed = time.monotonic(), 0, 0
            os.ftruncate(output, 0)
    campaign.report(name, count, time.monotonic() - began, failed)
    position[8:16] = struct.pack("q", 1)


def _too_slow(*_: Any) -> None:
    raise TooSlow


def fuzz(campaign: Campaign, names: Sequence[str]) -> None:
    """Fuzz these readers, one after the other, until the campaign's time is over."""
    left = sum(READERS[name].share for name in names)
    for name in names:
        share = READERS[name].share
        _fuzz_one(campaign, name, time.monotonic() + campaign.left * share / left)
        left -= share


def _fuzz_one(campaign: Campaign, name: str, ends: float) -> None:
    """Run workers until the time is over; each begins after the case that ended the one before."""
    position = mmap.mmap(-1, 16)  # the case that a worker is in, and whether it has come to its end
    case, crashes = campaign.case or 0, 0
    while time.monotonic() < ends and crashes < CRASHES:
        position[:16] = struct.pack("qq", case, 0)
        pid = fork(_work, campaign, name, case, ends, position)
        status = _wait(pid, position)
        case, ended = struct.unpack("qq", position[:16])
        if ended:
            return
        crashes += 1
        output = (campaign.folder / "fuzz" / name / "output.txt").read_text(errors="replace").strip()
        status = f"{status}: {output[-1000:]}" if "exit code" in status else status
        path = campaign.folder / "fuzz" / name / "files" / READERS[name].file
        kept = campaign.keep(name, case, path.read_bytes(), path.suffix) if path.is_file() else None
        campaign.explain(name, case, f"the process ended: {status}", kept)
        campaign.report(name, 1, 0.0, 1)
        if campaign.case is not None:
            return
        case += 1


def _wait(pid: int, position: mmap.mmap) -> str:
    """Wait for a worker; one that waits for ever, or is in native code, where no signal reaches it, is killed."""
    before, since, reason = None, time.monotonic(), ""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return reason or (f"signal {-code}" if code < 0 else f"exit code {code}")
        if position[:8] != before:
            before, since = position[:8], time.monotonic()
        if time.monotonic() - since > 6 * TIME:  # also the first case, before which everything is imported
            reason = "a case has not come to its end within a minute"
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
