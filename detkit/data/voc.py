"""PASCAL VOC, and every data set in its layout."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np

from detkit.data.annotations import Annotations, AnnotationsBuilder, Finding, class_policy
from detkit.data.collecting import one_item
from detkit.data.datamodule import DetectionDataModule
from detkit.data.voc_files import ALL, VOCSet, image_sets, read_voc
from detkit.data.voc_images import ImageIndex
from detkit.errors import DataError
from detkit.settings import check_choice

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class VOC(DetectionDataModule):
    """A data set with an XML file an image: Annotations, JPEGImages and ImageSets/Main, as VOC has it, or any folders.

    Boxes are read as VOC means them, 1-based and inclusive: x1 - 1, y1 - 1, x2, y2.

    Args:
        path: a VOC folder, a VOCdevkit with VOC2007 and VOC2012 in it, the folder around that, or a folder with XML
            files and images, side by side or in folders such as train and valid.
        train: image set to train on, such as "train", "2007/trainval" or "2007/trainval+2012/trainval"; in a folder
            without image sets, the folder of this name. "auto" takes what there is; see `split`.
        val: image set to validate on; None for none.
        test: image set to test and predict on; None takes that of val.
        missing_annotations: what an image of a set without an XML file is: "error", or "empty", an image without
            objects.
        other_classes: what to do with an object of another class than class_names: "error", or "drop" to leave it
            out (it is then background); the summary says how many were.
        download: fetch VOC2007 and VOC2012, as far as the image sets name them, where they are missing.
        shared: see DetectionDataModule. Without class_names the classes are those found in the training and
            validation set, sorted.
    """

    def __init__(
        self,
        path: str = "data/VOCdevkit",
        train: str = "auto",
        val: str | None = "auto",
        test: str | None = "auto",
        missing_annotations: Literal["error", "empty"] = "error",
        other_classes: Literal["error", "drop"] = "error",
        download: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.path = str(path)
        self.download = download
        self.other_classes = other_classes
        self.missing_annotations = missing_annotations
        class_policy(other_classes)  # raises where it is neither word
        check_choice("missing_annotations", missing_annotations, ("error", "empty"))
        self.sources: dict[str, str | None] = {"train": train, "val": val, "test": test}
        if "auto" in self.sources.values():
            found: dict[str, str | None] = dict(image_sets(self.path))
            if download:
                found = {split: split for split in self.sources}
            given = {split: found.get(split) if name == "auto" else name for split, name in self.sources.items()}
            self.sources = found if ALL in found else given
        if not self.class_names and self.download and self._to_download():
            self._set_classes(VOC_CLASSES)  # known before prepare_data has fetched anything
        if not self.class_names:
            learnt = [split for split in ("train", "val", ALL) if self.sources.get(split)]
            sets = {split: self._read(split) for split in learnt}
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
        return None if self.sources.get(split) is None else self._to_annotations(self._read(split))

    def _read(self, split: str) -> VOCSet:
        return read_voc(self.path, str(self.sources[split]), self.missing_annotations)

    def _to_annotations(self, voc: VOCSet) -> Annotations:
        policy = class_policy(self.other_classes)
        builder = AnnotationsBuilder(voc.path, min_side=1.0, exif=self.exif, measure=True)
        indices = {folder: ImageIndex(folder) for folder in {entry.folder for entry in voc.entries}}
        objects = []
        for entry in voc.entries:
            image = -1
            with one_item():
                if (file := indices[entry.folder].find(entry)) is None:
                    raise DataError(
                        f"{entry.source}: no image {entry.image_id}.jpg (or .png, ...) in {entry.folder}; add it, or "
                        "remove the annotation"
                    )
                if other := indices[entry.folder].named_instead(entry, file):
                    text = f"<filename> names {other}; {os.path.basename(file)}, of the annotation's own name, is taken"
                    builder.findings.append(Finding("other_name", entry.source, None, text))
                name = os.path.relpath(file, builder.root)
                image = builder.image(entry.image_id, name, entry.image.width, entry.image.height, entry.source)
            if image < 0:
                continue
            objects += [(image, entry.source, number, item) for number, item in enumerate(entry.image.objects, 1)]
            for number in entry.image.doubled:
                text = "has several boxes; each is taken as an object"
                builder.findings.append(Finding("several_boxes", entry.source, number, text))
        label_of = {name: label for label, name in enumerate(self.class_names, 1)}
        labels = np.array([label_of.get(item.name, -1) for *_, item in objects], np.int64)
        with one_item():
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
        return builder.build(annotated=voc.annotated)
