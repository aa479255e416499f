"""COCO's instance annotations, and every data set in their format."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from detkit.data.annotations import Annotations, AnnotationsBuilder, check_other_classes
from detkit.data.datamodule import DetectionDataModule
from detkit.data.voc_files import is_inside
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
        self.other_classes = check_other_classes(other_classes)
        self.sources = {
            "train": (train_annotations, train_images),
            "val": (val_annotations, val_images),
            "test": (test_annotations, test_images),
        }
        if test_annotations is not None and test_images is None:
            raise DataError("COCO: test_annotations is given without test_images, the folder of its images")
        # With the classes given, any file that is there tells their ids.
        files = [file for file, _ in self.sources.values() if file is not None]
        there = [file for file in files if os.path.isfile(os.path.join(self.path, file))]
        source = files[0] if not self.class_names or not there else there[0]
        content = load_json(os.path.join(self.path, source))
        names, ids = _classes(content, self.class_names, source)
        self._set_classes(names, ids)
        if source == train_annotations:
            # Only the arrays are kept: the JSON of a large data set takes gigabytes.
            self._content["train"] = self._read(content, "train")

    @property
    def test_split(self) -> str:
        """The split that `test` reads: "test", or "val" where no test set is named."""
        return "val" if self.sources["test"][0] is None else "test"

    def read(self, split: str) -> Annotations | None:
        """Read a split's file."""
        file = self.sources[split][0]
        return None if file is None else self._read(load_json(os.path.join(self.path, file)), split)

    def _read(self, content: Mapping[str, Any], split: str) -> Annotations:
        file, images = self.sources[split]
        source, folder = os.path.join(self.path, str(file)), os.path.join(self.path, str(images))
        # A box thinner than a pixel makes training unstable; in evaluation it stays, as the official score has it.
        min_side = 1.0 if split == "train" else 0.0
        return read_coco(content, source, folder, self.class_names, min_side, self.other_classes)


def load_json(path: str) -> dict[str, Any]:
    """The content of an annotation file.

    Raises:
        DataError: missing, no JSON, or without images, annotations or categories.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise DataError(f"{path}: annotation file does not exist") from None
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: no list {key!r}; expected COCO's format with images, annotations and categories")
    for key in ("images", "categories"):
        if not content[key]:
            raise DataError(f"{path}: the list {key!r} is empty")
    return content


def read_coco(
    content: Mapping[str, Any],
    source: str,
    folder: str,
    class_names: Sequence[str],
    min_side: float,
    other_classes: str = "error",
) -> Annotations:
    """Flat arrays of an annotation file.

    Args:
        content: of `load_json`.
        source: the file's name, for messages.
        folder: of the images.
        class_names: the classes in the order of the labels.
        min_side: boxes with a side of this many pixels or less are left out.
        other_classes: "drop" leaves out annotations of categories that are not in class_names.

    Raises:
        DataError: a duplicate or unknown id, a missing image, or an entry that is incomplete.
    """
    builder = AnnotationsBuilder(folder, min_side)
    images = _add_images(builder, content, source, folder)
    names, ids = _classes(content, class_names, source)
    labels = {category: label for label, category in enumerate(ids, 1)}
    others = {each["id"]: str(each["name"]) for each in content["categories"] if each["id"] not in labels}
    wanted = ", ".join(names)
    for annotation in content["annotations"]:
        number = annotation.get("id") if isinstance(annotation, dict) else None
        where = f"{source}: annotation {number}"
        try:
            image, category = annotation["image_id"], annotation["category_id"]
            x, y, width, height = (float(value) for value in annotation["bbox"])
            crowd, given = bool(annotation.get("iscrowd", 0)), annotation.get("area")
            area = float("nan") if given is None else float(given)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where}: incomplete or not as COCO writes it ({error!r})") from None
        if image not in images:
            raise DataError(f"{where}: image id {image!r} is not among the images")
        if category in others and other_classes == "drop":
            builder.other_class(others[category])
            continue
        if category in others:
            raise DataError(
                f"{where}: its category {category!r} is not among the classes ({wanted}); give class_names with it, "
                "or leave such objects out with other_classes: drop"
            )
        if category not in labels:
            raise DataError(f"{where}: category id {category!r} is not among the categories")
        box = (x, y, x + width, y + height)
        builder.box(images[image], box, labels[category], number, crowd=crowd, area=area)
    return builder.build()


def _add_images(builder: AnnotationsBuilder, content: Mapping[str, Any], source: str, folder: str) -> dict[Any, int]:
    """Image id -> number in the builder."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: image folder does not exist")
    present = set(os.listdir(folder))
    images: dict[Any, int] = {}
    kinds: set[type] = set()
    for entry in content["images"]:
        try:
            image_id, file, width, height = entry["id"], entry["file_name"], int(entry["width"]), int(entry["height"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source}: image {entry!r} lacks id, file_name, width or height ({error!r})") from None
        if not isinstance(file, str) or not is_inside(file):
            raise DataError(f"{source}: image {image_id}: file name {file!r} leaves the image folder; refused")
        if image_id in images:
            raise DataError(f"{source}: image id {image_id!r} is given twice; ids must be unique")
        if file not in present and not os.path.isfile(os.path.join(folder, file)):
            raise DataError(f"{source}: image {image_id}: no file {file} in {folder}")
        if width <= 0 or height <= 0:
            raise DataError(f"{source}: image {image_id}: its size is {width} x {height}")
        kinds.add(type(image_id))
        images[image_id] = builder.image(image_id, file, width, height, source)
    if not (kinds <= {int} or kinds <= {str}):
        raise DataError(f"{source}: image ids must be all numbers or all strings")
    return images


def _classes(content: Mapping[str, Any], given: Sequence[str], source: str) -> tuple[list[str], list[int]]:
    """Class names and category ids in the order of the labels."""
    try:
        categories = {int(category["id"]): str(category["name"]) for category in content["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: a category lacks id or name ({error!r})") from None
    ids = {name: number for number, name in categories.items()}
    if len(ids) != len(content["categories"]):
        raise DataError(f"{source}: a category id or name is given twice")
    if not given:
        ordered = sorted(categories)
        return [categories[number] for number in ordered], ordered
    missing = [name for name in given if name not in ids]
    if missing:
        raise DataError(f"{source}: no category {', '.join(missing)} (there are: {', '.join(ids)})")
    return list(given), [ids[name] for name in given]
