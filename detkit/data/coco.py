"""COCO's instance annotations, and every data set in their format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from detkit.data.annotations import Annotations, AnnotationsBuilder, UnknownIdPolicy, class_policy
from detkit.data.coco_files import Image, Instances, areas_of, boxes_of, read_instances
from detkit.data.datamodule import DetectionDataModule
from detkit.data.input_files import is_inside, list_folder, short_repr
from detkit.errors import DataError


class COCO(DetectionDataModule):
    """A data set in COCO's format: one JSON file and one folder of images a split.

    Category ids are mapped to labels 1..K in the order of the ids; `category_ids` maps them back.
    Boxes of iscrowd=1 are kept and marked: no detector learns from them, and the metric ignores them.

    Args:
        path: folder of the data set; the other paths are relative to it.
        train_annotations: JSON file to train on.
        train_images: folder of its images.
        val_annotations: JSON file to validate on; None for none.
        val_images: folder of its images.
        test_annotations: JSON file to test and predict on; None takes the validation set.
        test_images: folder of its images; needed with test_annotations.
        other_classes: what to do with an object of another class than class_names: "error", or "drop" to leave it
            out (it is then background); the summary says how many were.
        shared: see DetectionDataModule. class_names are matched to the categories by name; None takes all
            categories of the training file.
    """

    def __init__(
        self,
        path: str = "data/coco",
        train_annotations: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val_annotations: str | None = "annotations/instances_val2017.json",
        val_images: str = "val2017",
        test_annotations: str | None = None,
        test_images: str | None = None,
        other_classes: Literal["error", "drop"] = "error",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.path = str(path)
        self.other_classes = other_classes
        class_policy(other_classes)  # raises where it is neither word
        self.sources = {"train": train_annotations, "val": val_annotations, "test": test_annotations}
        self.folders = {"train": train_images, "val": val_images, "test": test_images}
        if test_annotations is not None and test_images is None:
            raise DataError("COCO: test_annotations is given without test_images, the folder of its images")
        # Where the classes are given, their ids are read from any file that exists.
        files = [file for file in self.sources.values() if file is not None]
        present = [file for file in files if os.path.isfile(os.path.join(self.path, file))]
        file = files[0] if not self.class_names or not present else present[0]
        source = os.path.join(self.path, file)
        instances = read_instances(source)
        self._set_classes(*_find_classes(instances, self.class_names, source))
        if file == train_annotations:  # read once: only the arrays are kept
            self._content["train"] = self._to_annotations(instances, "train")

    def read(self, split: str) -> Annotations | None:
        """Read a split's file."""
        file = self.sources[split]
        return None if file is None else self._to_annotations(read_instances(os.path.join(self.path, file)), split)

    def _to_annotations(self, instances: Instances, split: str) -> Annotations:
        source, folder = (os.path.join(self.path, str(of[split])) for of in (self.sources, self.folders))
        # A box thinner than a pixel makes training unstable; in evaluation it stays, as the official score has it.
        builder = AnnotationsBuilder(folder, min_side=1.0 if split == "train" else 0.0)
        numbers = _add_images(builder, instances.images, source, folder)
        names, ids = _find_classes(instances, self.class_names, source)
        rows = instances.annotations
        name_of = {category.id: str(category.name) for category in instances.categories}
        label_of = {category: label for label, category in enumerate(ids, 1)}
        images = np.array([numbers.get(row.image_id, -1) for row in rows], np.int64)
        listed = np.array([0 if row.category_id in name_of else -1 for row in rows], np.int64)
        labels = np.array([label_of.get(row.category_id, -1) for row in rows], np.int64)
        file_policy = UnknownIdPolicy("the file", advice="Correct the annotation, or add what it names to the file")
        policy = class_policy(self.other_classes)

        def where(row: int) -> str:
            number = rows[row].id
            return f"{source}: annotation {f'{row} (counted from 0)' if number is None else number}"

        file_policy.check(images, lambda row: rows[row].image_id, "annotations", "images", source, numbers, where)
        file_policy.check(listed, lambda row: rows[row].category_id, "annotations", "classes", source, name_of, where)
        policy.check(labels, lambda row: name_of[rows[row].category_id], "annotations", "classes", source, names, where)
        builder.findings.extend(policy.findings)
        boxes = boxes_of(rows)
        boxes[:, 2:] += boxes[:, :2]
        columns = (images, boxes, labels, areas_of(rows))
        for row, image, box, label, area in zip(rows, *(column.tolist() for column in columns), strict=True):
            if label > 0:
                number = row.id if isinstance(row.id, int) else None
                builder.box(image, box, label, number, crowd=bool(row.iscrowd), area=area)
        return builder.build()


def _add_images(builder: AnnotationsBuilder, images: Sequence[Image], source: str, folder: str) -> dict[Any, int]:
    """Image id -> number in the builder."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: image folder does not exist")
    present = set(list_folder(folder))
    numbers: dict[Any, int] = {}
    for image in images:
        where = f"{source}: image {image.id!r}"
        file = image.file_name
        try:
            width, height = int(image.width), int(image.height)
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"{where}: width or height is missing or no number") from None
        if not isinstance(file, str):
            raise DataError(f"{where}: file_name is missing or no text")
        if not is_inside(file):
            raise DataError(f"{where}: file name {short_repr(file)} leaves the image folder; refused")
        if file not in present and not os.path.isfile(os.path.join(folder, file)):
            raise DataError(f"{where}: no file {short_repr(file)} in {folder}")
        numbers[image.id] = builder.image(image.id, file, width, height, source)
    return numbers


def _find_classes(instances: Instances, given: Sequence[str], source: str) -> tuple[list[str], list[int]]:
    """Class names and category ids in the order of `given`; where none are given all, in the order of their ids."""
    names = {category.id: category.name for category in sorted(instances.categories, key=lambda category: category.id)}
    for number, name in names.items():
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{source}: category {number} has no name")
    ids = {name: number for number, name in names.items()}
    if len(ids) != len(names):
        raise DataError(f"{source}: a category name is given twice; names must be unique")
    missing = [name for name in given if name not in ids]
    if missing:
        raise DataError(f"{source}: no category {', '.join(missing)} (there are: {', '.join(ids)})")
    chosen = list(given or ids)
    return chosen, [ids[name] for name in chosen]
