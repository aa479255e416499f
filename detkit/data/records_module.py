"""The base of the data sets whose files give images and objects with the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from detkit.data.annotations import Annotations, class_policy
from detkit.data.datamodule import ALL, SPLITS, DetectionDataModule
from detkit.data.records import Records, to_annotations
from detkit.errors import DataError


class RecordsDataModule(DetectionDataModule):
    """A data set of `Records`: a subclass reads them in its constructor and gives them to `use_records`.

    Args:
        path: of the data set.
        other_classes: what to do with an object of another class than class_names: "error", or "drop" to leave it
            out (it is then background); the summary says how many were.
        shared: see DetectionDataModule. Without class_names the classes are those found, sorted.
    """

    def __init__(self, path: str, other_classes: Literal["error", "drop"] = "error", **shared: Any) -> None:
        super().__init__(**shared)
        self.path = str(path)
        self.other_classes = other_classes
        class_policy(other_classes)  # raises where it is neither word
        self._records: dict[str, Records] = {}

    def use_records(self, records: Mapping[str, Records]) -> None:
        """Take the sets, or "all" for a data set without sets, and the classes in them.

        Raises:
            DataError: there is no object outside the test set, and no class_names were given.
        """
        self._records = dict(records)
        self.sources = {split: self.path if split in records else None for split in SPLITS}
        if ALL in records:
            self.sources = {ALL: self.path}
        if not self.class_names:
            learnt = [part for split, part in records.items() if split != "test"]
            names = sorted(set().union(*(part.class_names() for part in learnt)))
            if not names:
                raise DataError(f"{self.path}: no object, so no class to learn; give class_names")
            self._set_classes(names)

    def read(self, split: str) -> Annotations | None:
        """The objects of a split."""
        if split not in self._records:
            return None
        return to_annotations(self._records[split], self.class_names, class_policy(self.other_classes), self.exif)
