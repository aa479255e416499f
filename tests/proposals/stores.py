"""Stores of proposals made for a test, by one writer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detkit.proposals.store import Images, ProposalStore
from detkit.proposals.store_writer import StoreWriter


def write_store(
    path: Path | str,
    ids: Sequence[str] | Sequence[int],
    boxes: Iterable[Any],
    size: tuple[int, int] = (40, 30),
    method: str = "x",
    parameters: dict[str, Any] | None = None,
) -> ProposalStore:
    """A store for images of one size (width, height)."""
    images = Images.of(ids, [size[0]] * len(ids), [size[1]] * len(ids))
    return fill(StoreWriter(path, images, method, parameters or {}), dict(enumerate(boxes)), finish=True)


def fill(writer: StoreWriter, boxes: dict[int, Any], finish: bool = False) -> ProposalStore | None:
    """Add boxes by the image's position, and close the writer."""
    with writer:
        for index, each in boxes.items():
            writer.add(index, each, (int(writer.images.widths[index]), int(writer.images.heights[index])))
        return writer.finish() if finish else None
