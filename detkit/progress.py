"""How far a long piece of work is: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

#: Less than so many steps in so many seconds tell nothing of what is to come: the first hold compiling and loading.
FEWEST, SHORTEST = 3, 5.0


class Progress:
    """Counts what is done and says how long the rest will take; a context manager.

    Args:
        what: of what, for example "proposals".
        total: how many there are.
        done: how many of them were done before.
        unit: what is counted.
        interval: seconds between lines where there is no terminal.
        show: False for no output at all.
    """

    def __init__(
        self, what: str, total: int, done: int = 0, unit: str = "images", interval: float = 60.0, show: bool = True
    ) -> None:
        self.what, self.total, self.done, self.unit, self.interval, self.show = what, total, done, unit, interval, show
        self._first = done
        self._bar: Any = None
        self._task: Any = None
        self._began = self._said = time.monotonic()

    def start_clock(self) -> None:
        """What came before, such as a warm-up, does not count in the speed."""
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        self.start_clock()
        if self.show and sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
            self._bar = Bar(*columns, TextColumn("left"), TimeRemainingColumn(), speed_estimate_period=120)
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
            return
        now = time.monotonic()
        if self.show and now - self._said >= self.interval:
            self._said = now
            print(self.line(now - self._began), flush=True)

    def line(self, seconds: float) -> str:
        """What is said after so many seconds: an estimate only where there is something to make it from."""
        so_far = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}"
        steps = self.done - self._first
        if steps < FEWEST or seconds < SHORTEST:
            return so_far
        each = seconds / steps
        speed = f"{1 / each:.1f} a second" if each <= 1 else f"{each:.1f} s each"
        return f"{so_far}, {speed}, about {duration((self.total - self.done) * each)} left"


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
