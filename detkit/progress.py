"""Progress of long work: a bar on a terminal, otherwise a line a minute."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

#: There is no estimate before so many steps and seconds: the first steps include compiling and loading.
MIN_STEPS, MIN_SECONDS = 3, 5.0


class Progress:
    """Counts the steps that are done and estimates the time left; a context manager.

    Args:
        what: what is done, for example "proposals".
        total, done: number of steps, and how many of them were done before.
        unit: what a step is.
        interval: seconds between lines where there is no terminal.
        show: False for no output.
    """

    def __init__(
        self, what: str, total: int, done: int = 0, unit: str = "images", interval: float = 60.0, show: bool = True
    ) -> None:
        self.what = what
        self.total = total
        self.done = done
        self.unit = unit
        self.interval = interval
        self.show = show
        self._first = done
        self._bar: Any = None
        self._task: Any = None
        self._began = self._printed = time.monotonic()

    def start_clock(self) -> None:
        """Starts measuring the speed now, for example after a warm-up."""
        self._began = self._printed = time.monotonic()

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
        """Counts one more step as done."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
            return
        now = time.monotonic()
        if self.show and now - self._printed >= self.interval:
            self._printed = now
            print(self.line(now - self._began), flush=True)

    def line(self, seconds: float) -> str:
        """The line after so many seconds, with an estimate once `MIN_STEPS` and `MIN_SECONDS` are reached."""
        counts = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}"
        steps = self.done - self._first
        if steps < MIN_STEPS or seconds < MIN_SECONDS:
            return counts
        step_time = seconds / steps
        speed = f"{1 / step_time:.1f} a second" if step_time <= 1 else f"{step_time:.1f} s each"
        return f"{counts}, {speed}, about {duration((self.total - self.done) * step_time)} left"


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
