"""What the parts of the campaign report: cases, failures and how to run one again; all in a file that grows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """A row of the table: what was tried.

    Attributes:
        cases: that were tried.
        failed: those of them that did not hold.
        seconds: that they took.
        notes: further words, such as how many kills fell into which stage; the last report's.
    """

    cases: int = 0
    failed: int = 0
    seconds: float = 0.0
    notes: str = ""


@dataclass
class Campaign:
    """Where the campaign writes, and what its parts need.

    Attributes:
        folder: for everything; failures/ in it keeps the inputs of what did not hold.
        seed: of all that is drawn by chance.
        ends: when the time is over, by `time.monotonic`.
        case: the only case to run, of a part that was named; None for all.
    """

    folder: Path
    seed: int
    ends: float = 0.0
    case: int | None = None
    shapes: Path = field(init=False)
    many: Path = field(init=False)

    def __post_init__(self) -> None:
        self.shapes, self.many = self.folder / "small", self.folder / "many"

    @property
    def log(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - time.monotonic()

    def report(self, name: str, cases: int, seconds: float, failed: int = 0, notes: str = "") -> None:
        """Report cases that were tried, and how many of them did not hold."""
        self._append({"name": name, "cases": cases, "failed": failed, "seconds": seconds, "notes": notes})

    def explain(self, name: str, case: int, message: str, kept: Path | None = None) -> None:
        """Say what did not hold in a case that is among those reported; ``kept`` is its input or its folder."""
        again = f"python -m tests.deep --only {name} --seed {self.seed} --case {case}"
        self._append({"name": name, "case": case, "message": message, "kept": str(kept or ""), "again": again})

    def _append(self, event: dict[str, Any]) -> None:
        with open(self.log, "ab", buffering=0) as file:  # in one piece, since several processes write
            file.write(json.dumps(event).encode() + b"\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """Everything that was reported so far."""
        with open(self.log, "rb") as file:
            yield from (json.loads(line) for line in file if line.endswith(b"\n"))

    def failures(self) -> list[dict[str, Any]]:
        """What did not hold, so far."""
        return [event for event in self.events() if "case" in event]

    def rows(self) -> dict[str, Row]:
        """The table."""
        rows: dict[str, Row] = {}
        for event in self.events():
            if "cases" in event:
                row = rows.setdefault(event["name"], Row())
                row.cases += event["cases"]
                row.failed += event["failed"]
                row.seconds += event["seconds"]
                row.notes = event["notes"] or row.notes
        return rows

    def keep(self, name: str, case: int, content: bytes, suffix: str = "") -> Path:
        """Keep the input of a case that did not hold."""
        path = self.folder / "failures" / f"{name}-{self.seed}-{case}{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path


def fork(function: Any, *args: Any) -> int:
    """Call a function in a child process, which then ends; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function(*args)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)
