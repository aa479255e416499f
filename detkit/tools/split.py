"""A data set without sets of its own, divided into train, val and test for good."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detkit.data.checks import quick_checks
from detkit.data.coco_files import decode
from detkit.data.datamodule import ALL, DetectionDataModule
from detkit.data.layouts import opened
from detkit.data.summary import DataSummary
from detkit.errors import ConfigError, DataError
from detkit.files import check_output, write_json


@dataclass(frozen=True)
class SplitResult:
    """What `split` returns.

    Attributes:
        path: the file that divides the data set.
        sets: train, val and test, as far as they have images: the images' files.
        summary: what the sets hold.
        text: images and boxes of each set and class, and the file.
    """

    path: Path
    sets: dict[str, list[str]]
    summary: DataSummary
    text: str


def split(data: DetectionDataModule, replace: bool = False) -> SplitResult:
    """Divide a data set that has no sets of its own, and write split.json into its folder.

    Every later command that reads the folder uses the file. Images that are alike are in the same set. The shares are
    those of --data.split, drawn by --data.split_seed; --data.sets gives lists, folders or patterns instead.

    Args:
        data: The data set, such as a folder; from Python also its path.
        replace: Whether a file that divides it otherwise is replaced.

    Raises:
        DetkitError: the data set has sets of its own or no annotations, cannot be read or written to, or is divided
            otherwise already.
    """
    data = opened(data)
    path = Path(data.split_file)
    if ALL not in data.sources:
        own = ", ".join(name for name, source in data.sources.items() if source is not None)
        raise DataError(f"{path.parent}: has sets of its own ({own}), so there is nothing to divide")
    check_output(path.parent)
    parts, how = data.divide(use_file=False)
    if not how:
        raise DataError(f"{path.parent}: no image is annotated, so there is nothing to divide")
    sets = {name: part.files.tolist() for name, part in parts.items()}
    written = (
        decode(path, dict[str, list[str | int] | str], "lists called train, val and test") if path.exists() else None
    )
    if written not in (None, sets) and not replace:
        raise ConfigError(f"{path}: divides the data set otherwise already; --replace true replaces it")
    if written != sets:
        write_json(path, sets)
    checks = quick_checks(parts, data.class_names, max_detections=None)
    summary = DataSummary.of(parts, data.class_names, data.category_ids, checks)
    state = "unchanged" if written == sets else "written" if written is None else "replaced"
    return SplitResult(path, sets, summary, f"{summary}split: {path} ({state}; {how})")
