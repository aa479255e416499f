"""The report of an evaluation: one page to read, and its numbers as files."""

from __future__ import annotations

from .write import write_report

__all__ = ["write_report"]
