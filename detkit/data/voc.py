"""PASCAL VOC, and every data set in its layout."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np

from detkit.data.annotations import Annotations, AnnotationsBuilder, Finding, class_policy
from detkit.data.datamodule import DetectionDataModule
from detkit.data.image_io import image_size
from detkit.data.voc_files import IMAGE_SUFFIXES, VOCEntry, VOCSet, find_image, list_files, read_voc
from detkit.errors import DataError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class VOC(DetectionDataModule):
    """A data set in VOC's layout: Annotations/*.xml, JPEGImages/* and ImageSets/Main/*.txt.

    Boxes are read as VOC means them, 1-based and inclusive: x1 - 1, y1 - 1, x2, y2.

    Args:
        path: a VOC folder, a VOCdevkit with VOC2007 and VOC2012 in it, or the folder around that.
        train: image set to train on, such as "train", "2007/trainval" or "2007/trainval+2012/trainval".
        val: image set to validate on; None for none.
        test: image set to test and predict on; None takes that of val.
        other_classes: what to do with an object of another class than class_names: "error", or "drop" to leave it
            out (it is then background); the summary says how many were.
        download: fetch VOC2007 and VOC2012, as far as the image sets name them, where they are missing.
        shared: see DetectionDataModule. Without class_names the classes are those found in the training and
            validation set, sorted.
    """

    def __init__(
        self,
        path: str = "data/VOCdevkit",
        train: str = "train",
        val: str | None = "val",
        test: str | None = "test",
        other_classes: Literal["error", "drop"] = "error",
        download: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.path = str(path)
        self.download = download
        self.other_classes = other_classes
        class_policy(other_classes)  # raises where it is neither word
        self.sources = {"train": train, "val": val, "test": test}
        if not self.class_names and self.download and self._to_download():
            self._set_classes(VOC_CLASSES)  # known before prepare_data has fetched anything
        if not self.class_names:
            sets = {split: read_voc(self.path, name) for split in ("train", "val") if (name := self.sources[split])}
            names = sorted(set().union(*(voc.class_names() for voc in sets.values())))
            if not names:
                raise DataError(f"{self.path}: no object in {self.sources}, so no class to learn; give class_names")
            self._set_classes(names)
            self._content |= {split: self._to_annotations(voc) for split, voc in sets.items()}

    def _to_download(self) -> list[str]:
        from detkit.data.voc_download import missing_archives

        return missing_archives(self.path, [name for name in self.sources.values() if name])

    def prepare_data(self) -> None:
        """Fetch what is missing, if that was asked for."""
        if self.download and (archives := self._to_download()):
            from detkit.data.voc_download import fetch

            fetch(self.path, archives)

    def setup(self, stage: str | None = None) -> None:
        """Build what the stage needs."""
        if self.trainer is None:
            self.prepare_data()
        super().setup(stage)

    def read(self, split: str) -> Annotations | None:
        """Read a split's image set."""
        image_set = self.sources[split]
        return None if image_set is None else self._to_annotations(read_voc(self.path, image_set))

    def _to_annotations(self, voc: VOCSet) -> Annotations:
        policy = class_policy(self.other_classes)
        builder = AnnotationsBuilder(voc.path, min_side=1.0)
        files = {folder: list_files(os.path.join(folder, "JPEGImages"), IMAGE_SUFFIXES) for folder in set(voc.folders)}
        images = [_add_image(builder, entry, files[entry.folder]) for entry in voc.entries]
        objects = [
            (image, entry.source, number, item)
            for image, entry in zip(images, voc.entries, strict=True)
            for number, item in enumerate(entry.image.objects, 1)
        ]
        label_of = {name: label for label, name in enumerate(self.class_names, 1)}
        labels = np.array([label_of.get(item.name, -1) for *_, item in objects], np.int64)
        policy.check(
            labels,
            id_of=lambda row: objects[row][3].name,
            rows="objects",
            owners="classes",
            file=voc.path,
            known=self.class_names,
            name_of=lambda row: f"{objects[row][1]}: object {objects[row][2]}",
        )
        for label, (image, source, number, item) in zip(labels.tolist(), objects, strict=True):
            if label < 0:
                continue
            x1, y1, x2, y2 = item.box
            if item.difficult is None:
                text = "difficult is missing or unclear; taken as 0"
                builder.findings.append(Finding("no_difficult", source, number, text))
            if min(x1, y1) == 0:
                text = "a coordinate is 0, but VOC counts from 1"
                builder.findings.append(Finding("zero_based", source, number, text))
            builder.box(image, (x1 - 1, y1 - 1, x2, y2), label, number, difficult=bool(item.difficult))
        builder.findings = [*voc.findings, *policy.findings, *builder.findings]
        return builder.build()


def _add_image(builder: AnnotationsBuilder, entry: VOCEntry, files: dict[str, str]) -> int:
    """The image's number in the builder."""
    file = find_image(entry, files)
    if file is None:
        folder = os.path.join(entry.folder, "JPEGImages")
        raise DataError(f"{entry.source}: no image {entry.image_id}.jpg (or .png, ...) in {folder}")
    width, height = entry.image.width, entry.image.height
    if width == 0 or height == 0:
        width, height = image_size(file)
        text = f"no size is given; {width} x {height} read from the image"
        builder.findings.append(Finding("no_size", entry.source, None, text))
    return builder.image(entry.image_id, os.path.relpath(file, builder.root), width, height, entry.source)
