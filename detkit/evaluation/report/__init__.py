"""The report of an evaluation: one page to read, and its numbers as files."""

from __future__ import annotations

from detkit.evaluation.report.page import write_report

__all__ = ["write_report"]
