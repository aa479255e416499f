"""PASCAL VOC, and every data set in its layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from detkit.data.annotations import Annotations, AnnotationsBuilder, Finding, check_other_classes
from detkit.data.datamodule import DetectionDataModule
from detkit.data.image_io import image_size
from detkit.data.voc_files import (
    IMAGE_SUFFIXES,
    VOCImage,
    find_folders,
    is_inside,
    list_files,
    parse_annotation,
    read_image_set,
    split_set_name,
)
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
        self.other_classes = check_other_classes(other_classes)
        self.image_sets = {"train": train, "val": val, "test": test}
        if not self.class_names and self.download and self._to_download():
            self._set_classes(VOC_CLASSES)  # known before prepare_data has fetched anything
        if not self.class_names:
            self._find_classes()

    def _find_classes(self) -> None:
        """Take the classes of the training and validation set, and keep what was read for it."""
        sets = {split: read_voc(self.path, name) for split in ("train", "val") if (name := self.image_sets[split])}
        names = sorted(set().union(*(each.names() for each in sets.values())))
        if not names:
            raise DataError(f"{self.path}: no object in {self.image_sets}, so no class to learn; give class_names")
        self._set_classes(names)
        self._content |= {split: to_annotations(each, names) for split, each in sets.items()}

    def _to_download(self) -> list[str]:
        from detkit.data.voc_download import missing_archives

        return missing_archives(self.path, [name for name in self.image_sets.values() if name])

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

    @property
    def test_split(self) -> str:
        """The split that `test` reads: "test", or "val" where no test set is named."""
        return "val" if self.image_sets["test"] is None else "test"

    def read(self, split: str) -> Annotations | None:
        """Read a split's image set."""
        image_set = self.image_sets[split]
        if image_set is None:
            return None
        return to_annotations(read_voc(self.path, image_set), self.class_names, self.other_classes)


class VOCSet(NamedTuple):
    """An image set as written on disk: (image id, image file, annotation file, content) of each image."""

    path: str
    name: str
    items: list[tuple[str, str, str, VOCImage]]
    findings: list[Finding]

    def names(self) -> set[str]:
        """The class names that occur."""
        return {item.name for *_, image in self.items for item in image.objects}


def read_voc(path: str, image_set: str) -> VOCSet:
    """Read an image set in VOC's layout.

    Args:
        path: as VOC's.
        image_set: as VOC's train.

    Raises:
        DataError: anything missing, malformed or outside the folder.
    """
    folders = find_folders(path)
    items: list[tuple[str, str, str, VOCImage]] = []
    findings: list[Finding] = []
    seen: dict[str, str] = {}
    for folder, name in split_set_name(image_set, folders):
        annotations = os.path.join(folder, "Annotations")
        images = list_files(os.path.join(folder, "JPEGImages"), IMAGE_SUFFIXES)
        if not list_files(annotations, (".xml",)):
            raise DataError(f"{annotations}: the folder holds no annotation (*.xml)")
        for image_id in read_image_set(folder, name):
            source = os.path.join(annotations, f"{image_id}.xml")
            if image_id in seen:
                if seen[image_id] != folder:
                    raise DataError(f"{source}: image id {image_id!r} is also in {seen[image_id]}; ids must be unique")
                findings.append(Finding("duplicate", source, None, f"listed twice in {name}; taken once"))
                continue
            seen[image_id] = folder
            image = parse_annotation(source)
            items.append((image_id, _find_image(folder, image_id, image, images, source), source, image))
    return VOCSet(path, image_set, items, findings)


def to_annotations(voc: VOCSet, class_names: Sequence[str], other_classes: str = "error") -> Annotations:
    """Flat arrays of an image set. Boxes with a side of 1 px or less are left out.

    Raises:
        DataError: an object of a class that is not in `class_names`, unless `other_classes` is "drop".
    """
    labels = {name: label for label, name in enumerate(class_names, 1)}
    builder = AnnotationsBuilder(voc.path, min_side=1.0)
    builder.findings.extend(voc.findings)
    for image_id, file, source, image in voc.items:
        _add(builder, image_id, file, source, image, labels, other_classes == "drop")
    return builder.build()


def _find_image(folder: str, image_id: str, image: VOCImage, images: dict[str, str], source: str) -> str:
    """The image file. JPEGImages/<id>.* comes first: the name in the XML is often out of date."""
    below = os.path.join(folder, "JPEGImages")
    if image_id in images:
        return os.path.join(below, images[image_id])
    for suffix in IMAGE_SUFFIXES if "/" in image_id else ():
        if os.path.isfile(os.path.join(below, image_id + suffix)):
            return os.path.join(below, image_id + suffix)
    if image.filename:
        if not is_inside(image.filename):
            raise DataError(f"{source}: <filename> {image.filename!r} leaves the data set's folder; refused")
        if os.path.isfile(os.path.join(below, image.filename)):
            return os.path.join(below, image.filename)
    raise DataError(f"{source}: no image {image_id}.jpg (or .png, ...) in {below}")


def _add(
    builder: AnnotationsBuilder,
    image_id: str,
    file: str,
    source: str,
    image: VOCImage,
    labels: dict[str, int],
    drop_others: bool,
) -> None:
    width, height = image.width, image.height
    findings = builder.findings
    if width == 0 or height == 0:
        width, height = image_size(file)
        findings.append(Finding("no_size", source, None, f"no size is given; {width} x {height} read from the image"))
    index = builder.image(image_id, os.path.relpath(file, builder.root), width, height, source)
    for number, item in enumerate(image.objects, 1):
        if item.name not in labels and drop_others:
            builder.other_class(item.name)
            continue
        if item.name not in labels:
            raise DataError(
                f"{source}: object {number} is a {item.name!r}, which is not among the classes ({', '.join(labels)}); "
                "correct the label, give class_names with it, or leave such objects out with other_classes: drop"
            )
        if item.difficult is None:
            findings.append(Finding("no_difficult", source, number, "difficult is missing or unclear; taken as 0"))
        x1, y1, x2, y2 = item.box
        if min(x1, y1) == 0:
            findings.append(Finding("zero_based", source, number, "a coordinate is 0, but VOC counts from 1"))
        builder.box(index, (x1 - 1, y1 - 1, x2, y2), labels[item.name], number, difficult=bool(item.difficult))
