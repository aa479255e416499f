"""COCO's instance annotations, and every data set in their format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from detkit.data.annotations import Annotations, AnnotationsBuilder, Finding, UnknownIdPolicy, class_policy
from detkit.data.coco_files import Image, Instances, areas_of, boxes_of, read_instances
from detkit.data.collecting import one_item
from detkit.data.datamodule import DetectionDataModule
from detkit.data.image_finder import ImageFinder
from detkit.data.input_files import is_inside, list_folder
from detkit.data.voc_files import ALL, SPLIT_NAMES
from detkit.errors import DataError


class COCO(DetectionDataModule):
    """A data set in COCO's format: one JSON file and one folder of images a split.

    Category ids are mapped to labels 1..K in the order of the ids; `category_ids` maps them back.
    Boxes of iscrowd=1 are kept and marked: no detector learns from them, and the metric ignores them.

    Args:
        path: folder of the data set; the other paths are relative to it.
        train_annotations: JSON file to train on.
        train_images: folder of its images; "auto" looks for them beside the file and in folders called as usual.
        val_annotations: JSON file to validate on; None for none.
        val_images: folder of its images.
        test_annotations: JSON file to test and predict on; None takes the validation set.
        test_images: folder of its images.
        annotations: one JSON file instead of these three; it is divided, see `split`.
        images: folder of its images.
        merge_categories: take categories of the same name for one, where several have objects.
        other_classes: what to do with an object of another class than class_names: "error", or "drop" to leave it
            out (it is then background); the summary says how many were.
        shared: see DetectionDataModule. class_names are matched to the categories by name; None takes all
            categories of the training file.
    """

    def __init__(
        self,
        path: str = "data/coco",
        train_annotations: str = "annotations/instances_train2017.json",
        train_images: str = "auto",
        val_annotations: str | None = "annotations/instances_val2017.json",
        val_images: str = "auto",
        test_annotations: str | None = None,
        test_images: str = "auto",
        annotations: str | None = None,
        images: str = "auto",
        merge_categories: bool = False,
        other_classes: Literal["error", "drop"] = "error",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.path = str(path)
        self.other_classes = other_classes
        class_policy(other_classes)  # raises where it is neither word
        self.sources = {"train": train_annotations, "val": val_annotations, "test": test_annotations}
        self.folders = {"train": train_images, "val": val_images, "test": test_images, ALL: images}
        self.merge_categories = merge_categories
        if annotations is not None:
            self.sources = {ALL: annotations}
        self._ids: dict[str, list[int]] = {}
        # Where the classes are given, their ids are read from any file that exists.
        files = [file for file in self.sources.values() if file is not None]
        present = [file for file in files if os.path.isfile(os.path.join(self.path, file))]
        file = files[0] if not self.class_names or not present else present[0]
        source = os.path.join(self.path, file)
        instances = read_instances(source)
        self._set_classes(*self._choose(_categories(instances, source, merge_categories)[0], source))
        if file == self.sources.get("train"):  # read once: only the arrays are kept
            self._content["train"] = self._to_annotations(instances, "train")

    def read(self, split: str) -> Annotations | None:
        """Read a split's file."""
        file = self.sources.get(split)
        return None if file is None else self._to_annotations(read_instances(os.path.join(self.path, file)), split)

    def _to_annotations(self, instances: Instances, split: str) -> Annotations:
        source = os.path.join(self.path, str(self.sources[split]))
        folder = _image_folder(self.path, str(self.sources[split]), self.folders[split], split, instances.images)
        # A box thinner than a pixel makes training unstable; in evaluation it stays, as the official score has it.
        min_side = 1.0 if split in ("train", ALL) else 0.0
        builder = AnnotationsBuilder(folder, min_side=min_side, exif=self.exif, measure=True)
        builder.findings.extend(instances.findings)
        option = "images" if split == ALL else f"{split}_images"
        numbers = _add_images(
            builder, instances.images, source, ImageFinder(folder, f" by --data.{option} FOLDER", whole_paths=True)
        )
        ids, same = _categories(instances, source, self.merge_categories)
        names, self._ids[split] = self._choose(ids, source)
        rows = instances.annotations
        name_of = {category.id: str(category.name) for category in instances.categories}
        label_of = {category: label for label, category in enumerate(self._ids[split], 1)}
        label_of |= {other: label_of[kept] for other, kept in same.items() if kept in label_of}
        for number in sorted(set(name_of) - set(ids.values()) - set(same)):
            text = f"category {number} ({name_of[number]}) has no objects, and the name of another one or of a group"
            builder.findings.append(Finding("unused_category", source, None, f"{text}: left out"))
        images = np.array([numbers.get(row.image_id, -1) for row in rows], np.int64)
        listed = np.array([0 if row.category_id in name_of else -1 for row in rows], np.int64)
        labels = np.array([label_of.get(row.category_id, -1) for row in rows], np.int64)
        file_policy = UnknownIdPolicy("the file", advice="Correct the annotation, or add what it names to the file")
        policy = class_policy(self.other_classes)

        def where(row: int) -> str:
            number = rows[row].id
            return f"{source}: annotation {f'{row} (counted from 0)' if number is None else number}"

        known = {image.id for image in instances.images}
        owners = np.array([0 if row.image_id in known else -1 for row in rows], np.int64)
        with one_item():
            file_policy.check(owners, lambda row: rows[row].image_id, "annotations", "images", source, numbers, where)
        with one_item():
            file_policy.check(listed, lambda r: rows[r].category_id, "annotations", "classes", source, name_of, where)
            policy.check(labels, lambda r: name_of[rows[r].category_id], "annotations", "classes", source, names, where)
        builder.findings.extend(policy.findings)
        boxes = boxes_of(rows)
        boxes[:, 2:] += boxes[:, :2]
        columns = (images, boxes, labels, areas_of(rows))
        for row, image, box, label, area in zip(rows, *(column.tolist() for column in columns), strict=True):
            if label > 0 and image >= 0:
                number = row.id if isinstance(row.id, int) else None
                flags = {"difficult": bool(row.difficult), "crowd": bool(row.iscrowd)}
                builder.box(image, box, label, number, **flags, area=area)
        return builder.build(annotated=instances.annotated)

    def category_ids_of(self, split: str) -> list[int]:
        """The ids that a split's own file gives the classes."""
        self.annotations(split)
        return self._ids.get(self.test_split if split == "test" else split, self.category_ids)

    def _choose(self, ids: dict[str, int], source: str) -> tuple[list[str], list[int]]:
        """The names of the classes and their ids, of all that a file has."""
        missing = [name for name in self.class_names if name not in ids]
        if missing:
            raise DataError(f"{source}: no category {', '.join(missing)} (there are: {', '.join(ids)})")
        chosen = list(self.class_names or ids)
        return chosen, [ids[name] for name in chosen]


def _image_folder(root: str, file: str, given: str, split: str, images: Sequence[Image]) -> str:
    """The folder of a split's images: the given one, or the first of the usual ones that holds the first of them."""
    if given != "auto":
        return os.path.join(root, given)
    folder, name = os.path.split(file)
    stem = os.path.splitext(name)[0].removeprefix("instances_")
    above = os.path.dirname(folder)
    names = [stem, *SPLIT_NAMES.get(split, ())]
    places = [folder, os.path.join(folder, "images"), above, os.path.join(above, "images")]
    places += [os.path.join(place, each) for place in list(places) for each in names]
    first = [os.path.normpath(str(image.file_name).replace("\\", "/")) for image in images[:3]]
    for place in dict.fromkeys(os.path.join(root, place) for place in places):
        if any(is_inside(name) and os.path.isfile(os.path.join(place, name)) for name in first):
            return place
    return os.path.join(root, above)  # its names may have other folders or another spelling: see ImageFinder


def _add_images(
    builder: AnnotationsBuilder, images: Sequence[Image], source: str, finder: ImageFinder
) -> dict[Any, int]:
    """Image id -> number in the builder."""
    if not os.path.isdir(finder.root):
        raise DataError(f"{finder.root}: image folder does not exist")
    present = set(list_folder(finder.root))
    numbers: dict[Any, int] = {}
    for image in images:
        where = f"{source}: image {image.id!r}"
        file = image.file_name
        with one_item():
            try:
                width, height = (_side(side) for side in (image.width, image.height))
            except (TypeError, ValueError, OverflowError):
                raise DataError(f"{where}: width or height is no number") from None
            if not isinstance(file, str):
                raise DataError(f"{where}: file_name is missing or no text")
            if file not in present or not is_inside(file):
                file = finder.find(file, where)
            numbers[image.id] = builder.image(image.id, file, width, height, source)
    builder.findings += finder.findings(source)
    return numbers


def _side(value: Any) -> int:
    """A side in pixels; 0, which is read from the image, where it is not given."""
    return max(value if isinstance(value, int) else int(float(value or 0)), 0)


def _categories(instances: Instances, source: str, merge: bool) -> tuple[dict[str, int], dict[int, int]]:
    """Name -> category id in the order of the ids, and id -> the id of another category that it is merged into.

    A category without objects is left out where another one has its name, or has it for a supercategory, as exports of
    Roboflow have them.

    Raises:
        DataError: a category has no name, or several of one name have objects and they are not to be merged.
    """
    ids: dict[str, int] = {}
    same: dict[int, int] = {}
    used = {row.category_id for row in instances.annotations}
    above = {category.supercategory for category in instances.categories if category.supercategory != category.name}
    for category in sorted(instances.categories, key=lambda category: category.id):
        number, name = category.id, category.name
        if isinstance(name, int | float):
            name = category.name = str(name)
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{source}: category {number} has no name")
        if name in above and number not in used:
            continue
        kept = ids.setdefault(name, number)
        if kept == number or number not in used:
            continue
        if kept not in used:
            ids[name] = number
        elif merge:
            same[number] = kept
        else:
            raise DataError(
                f"{source}: the categories {kept} and {number} are both called {name!r}, and both have objects; rename "
                "one, or take them for one by merge_categories: true (on the command line --data.merge_categories true)"
            )
    return ids, same
