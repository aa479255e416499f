"""SIGINT (Ctrl-C) and SIGTERM: they end a command at once, or after the item in hand where it would be lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

IMPORT_RETRY = 0.05  # seconds from a signal in an import to the next try


class Stopped(KeyboardInterrupt):
    """Raised between two items after a signal."""


class Signals:
    """The handler of both signals. While it ``waits``, the first one is only noted; a second one ends at once."""

    received: int | None = None
    waits = False

    def install(self) -> dict[int, Any]:
        """Handle the signals that are not ignored; only the main thread may. Returns the handlers of before."""
        self._process = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return {}
        earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        handled = [number for number, handler in earlier.items() if handler not in (signal.SIG_IGN, None)]
        return {number: signal.signal(number, self) for number in handled}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked process, which Ctrl-C reaches too: its parent ends it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if _imports(frame):
            retry = threading.Timer(IMPORT_RETRY, os.kill, (self._process, number))
            retry.daemon = True
            retry.start()
            return
        at_once, self.received = self.received is not None or not self.waits, number
        if at_once:
            raise KeyboardInterrupt
        os.write(2, b"\ndetkit: ends after the item in hand; a second signal ends it at once\n")

    def begin_item(self) -> None:
        """Wait from now on, also where Lightning has put its own handler."""
        self.install()
        if not self.waits:
            self.received, self.waits = None, True

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Wait in the block; a signal in it raises KeyboardInterrupt at its end, unless others wait too."""
        others, earlier = self.waits, self.received
        self.waits, self.received = True, None
        try:
            yield
        finally:
            self.waits, came, self.received = others, self.received is not None, self.received or earlier
        if came and not others:
            raise KeyboardInterrupt


def let_parent_end_worker() -> None:
    """In a DataLoader's worker: end by a SIGTERM of the parent only.

    Both signals may go to a whole process group, as systemd and a terminal send them. The parent still needs the worker
    for the item in hand; torch's own handler would end it, and that ends the parent with an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _imports(frame: FrameType | None) -> bool:
    """Whether an import goes on; modules turn an exception in it into another, or into half a module."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


SIGNALS = Signals()
