"""What a file of an exported detector says of itself: the classes, the thresholds, and where it comes from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from detkit.data.input_files import check_printable
from detkit.errors import CheckpointError, ConfigError, DataError
from detkit.settings import check_class_names

#: The entry of a file's metadata that holds it, as JSON.
KEY = "detkit"
#: What `detkit.load` reads: ONNX, and the two files of OpenVINO by their first.
SUFFIXES = (".onnx", ".xml")
IMAGES, PROPOSALS = "images", "proposals"
OUTPUTS = ("boxes", "scores", "labels", "image")


@dataclass(frozen=True)
class Description:
    """Of an exported detector.

    Args:
        detector: FasterRCNN or FastRCNN.
        class_names: without background, in the order of the labels, which begin at 1.
        category_ids: the data set's own ids of the classes.
        score_threshold, max_detections: the detections that it gives.
        max_proposals: of Fast R-CNN, how many of an image's proposals are used; 0: all, or none is wanted.
        source: the checkpoint.
        version: detkit's.
    """

    detector: str
    class_names: list[str]
    category_ids: list[int]
    score_threshold: float
    max_detections: int
    max_proposals: int
    source: str
    version: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the graph's inputs."""
        return (IMAGES, PROPOSALS) if self.detector == "FastRCNN" else (IMAGES,)

    def to_json(self) -> str:
        """As the metadata holds it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None, path: str | PathLike[str]) -> Description:
        """Of the metadata of the file ``path``.

        Raises:
            CheckpointError: `detkit export` has not written it, or it is damaged.
        """
        if text is None:
            raise CheckpointError(f"{path}: `detkit export` has not written this file; only such files can be used")
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict) or not all(
            _is_right(content.get(each.name), each.type) for each in fields(cls)
        ):
            raise CheckpointError(f"{path}: its metadata is damaged; export the checkpoint again")
        known = {each.name for each in fields(cls)}
        description = cls(**{name: value for name, value in content.items() if name in known})
        try:
            check_class_names(description.class_names, description.category_ids)
            for name in description.class_names:
                check_printable(name, "class name")
        except (ConfigError, DataError) as error:
            raise CheckpointError(f"{path}: its metadata is damaged ({error}); export the checkpoint again") from None
        return description


def is_exported(path: str | PathLike[str]) -> bool:
    """Whether a path is that of a file which `detkit.load` reads as an exported detector."""
    return Path(path).suffix.lower() in SUFFIXES


def _is_right(value: Any, kind: Any) -> bool:
    if str(kind).startswith("list"):
        item = str if "str" in kind else int
        return isinstance(value, list) and all(type(each) is item for each in value)
    return type(value) in {"str": (str,), "int": (int,), "float": (float, int)}[kind]
