"""What a data set holds: counted as data, shown as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from detkit.data.annotations import DROPPED, Annotations, Finding

_SHOWN = 3  # findings of a kind that are named one by one


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split; `findings` are counted by their kind."""

    images: int
    empty: int
    boxes: int
    difficult: int
    crowd: int
    dropped: int
    per_class: dict[str, int]
    findings: dict[str, int]


@dataclass(frozen=True)
class DataSummary:
    """Counts of the splits, the findings behind them, and warnings in words.

    Attributes:
        splits: name of the split -> its counts.
        findings: name of the split -> everything its reader found.
        category_ids: class name -> the data set's own id.
        warnings: sentences a user should read.
    """

    splits: dict[str, SplitSummary]
    findings: dict[str, list[Finding]]
    category_ids: dict[str, int]
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        splits: Mapping[str, Annotations],
        class_names: Sequence[str],
        category_ids: Sequence[int],
        checks: Mapping[str, Sequence[Finding]] = MappingProxyType({}),
    ) -> DataSummary:
        """Count the splits. The same annotations under two names are counted for both.

        Args:
            splits: name -> its annotations.
            class_names, category_ids: of the labels 1..K.
            checks: name of the split -> what was found besides its reader's findings.
        """
        findings = {name: [*part.findings, *checks.get(name, ())] for name, part in splits.items()}
        counts = {name: _count(part, class_names, findings[name]) for name, part in splits.items()}
        warnings = [text for name, split in counts.items() for text in _warn(name, split, findings[name])]
        per_class = counts["train"].per_class if "train" in counts else {}
        if missing := [name for name, count in per_class.items() if count == 0]:
            warnings.append(f"train: no box of {', '.join(missing)}, so it cannot be learnt")
        return cls(counts, findings, dict(zip(class_names, category_ids, strict=True)), warnings)

    def print(self, console: Any = None) -> None:
        """Print the table, the first findings of each kind and the warnings."""
        from rich.console import Console
        from rich.text import Text

        console = console or Console()
        console.print(self.table())
        for line in self.lines():
            console.print(Text(line), soft_wrap=True, highlight=False)

    def table(self) -> Any:
        """A rich Table: one column a split, one row a count, then one row a class."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title="Data", title_justify="left", show_edge=False, pad_edge=False)
        table.add_column("")
        for name in self.splits:
            table.add_column(name, justify="right")
        texts = {"images": "images", "empty": "without objects", "boxes": "boxes", "difficult": "difficult"}
        texts |= {"crowd": "crowd", "dropped": "boxes left out"}
        for key, text in texts.items():
            table.add_row(text, *(f"{getattr(split, key):,}" for split in self.splits.values()))
        table.add_section()
        for name, number in self.category_ids.items():
            counts = (f"{split.per_class[name]:,}" for split in self.splits.values())
            table.add_row(f"{escape(name)} [dim]({number})[/dim]", *counts)
        return table

    def lines(self) -> list[str]:
        """Findings (the first few of each kind, by file and object) and warnings, in words."""
        lines = []
        for split, findings in self.findings.items():
            for kind, count in self.splits[split].findings.items():
                lines.append(f"{split}: {kind.replace('_', ' ')}: {count}")
                same = [finding for finding in findings if finding.kind == kind]
                lines += [f"  {finding}" for finding in same[:_SHOWN]]
                if len(same) > _SHOWN:
                    lines.append(f"  and {len(same) - _SHOWN} more")
        return lines + [f"warning: {text}" for text in self.warnings]

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        self.print(Console(file=(text := StringIO()), width=100, no_color=True))
        return text.getvalue()


def _count(annotations: Annotations, class_names: Sequence[str], findings: Sequence[Finding]) -> SplitSummary:
    per_class = np.bincount(annotations.labels, minlength=len(class_names) + 1)[1:]
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.kind] += finding.count
    return SplitSummary(
        images=len(annotations),
        empty=int((annotations.counts == 0).sum()),
        boxes=len(annotations.boxes),
        difficult=int(annotations.difficult.sum()),
        crowd=int(annotations.crowd.sum()),
        dropped=sum(counts[kind] for kind in DROPPED),
        per_class=dict(zip(class_names, per_class.tolist(), strict=True)),
        findings=dict(counts),
    )


def _warn(name: str, split: SplitSummary, findings: Sequence[Finding]) -> list[str]:
    texts = []
    if zero := [finding for finding in findings if finding.kind == "zero_based"]:
        texts.append(
            f"{name}: {zero[0].file} has a coordinate of 0; VOC counts pixels from 1, so the boxes of this data set "
            "may be shifted by one pixel"
        )
    if split.crowd > 0.2 * split.boxes:
        texts.append(
            f"{name}: {split.crowd} of {split.boxes} boxes are marked iscrowd and are not trained on; "
            "some exporters set it for every mask in run-length form"
        )
    if split.boxes == 0:
        texts.append(f"{name}: no image has a box")
    return texts
