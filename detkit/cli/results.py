"""Where a checkpoint and the command line differ, as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_differences(rows: list[tuple[str, Any, Any, str]], console: Console | None = None) -> None:
    """Prints where the checkpoint and the user's words differ.

    Args:
        rows: (option, checkpoint's value, the other value, which wins).
        console: where to; standard output by default.
    """
    console = console or Console()
    console.print("The checkpoint and what was asked for differ:", highlight=False)
    table = Table()
    for column in ("option", "checkpoint", "asked for", "wins"):
        table.add_column(column)
    for option, theirs, ours, winner in rows:
        table.add_row(escape(f"model.{option}"), escape(str(theirs)), escape(str(ours)), winner)
    console.print(table)
    if any(row[3] == "checkpoint" for row in rows):
        console.print("Given on the command line (--model.NAME VALUE), an option wins.", highlight=False)
