"""The detections of an image: a dict of tensors that filters, draws, and turns itself into other libraries' types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.classes import did_you_mean
from detkit.errors import ConfigError
from detkit.settings import check_range

if TYPE_CHECKING:
    import pandas
    import supervision
    from PIL.Image import Image
    from torch import Tensor

#: IoU above which suppression across classes keeps the better one.
AGNOSTIC_IOU = 0.5
#: The box (x1, y1, x2, y2), score and label of a detection, as plain numbers.
Row = tuple[list[float], float, int]


class Detections(dict[str, "Tensor"]):
    """``boxes``, ``scores`` and ``labels`` of one image, best first; of an exported model they are NumPy arrays.

    boxes: float32 (N, 4), x1 y1 x2 y2 in the pixels of the image that came in.
    scores: float32 (N,), 0-1.
    labels: int64 (N,), from 1 to K.

    Args:
        fields: the three tensors by their names.
        class_names: label k is ``class_names[k - 1]``; None where the names are not known.
        category_ids: the data set's own ids of the classes, in the order of the labels; None: 1 to K.
    """

    def __init__(
        self,
        fields: Mapping[str, Tensor],
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__(fields)
        self.class_names = None if class_names is None else list(class_names)
        self.category_ids = None if category_ids is None else list(category_ids)

    def __repr__(self) -> str:
        """Such as "3 detections: 2 person, 1 dog; best 0.98"; ``dict(detections)`` shows the tensors."""
        if set(self) != {"boxes", "scores", "labels"}:
            return super().__repr__()
        count = len(self["scores"])
        if not count:
            return "0 detections"
        classes = Counter(self.name(label) for label in self["labels"].tolist())
        parts = ", ".join(f"{number} {name}" for name, number in classes.most_common())
        return f"{count} detection{'s' * (count > 1)}: {parts}; best {self['scores'].max():.2f}"

    def copy(self) -> Detections:
        """A shallow copy: the same tensors."""
        return Detections(self, self.class_names, self.category_ids)

    def name(self, label: int) -> str:
        """The class of a label; "class 3" where its name is not known."""
        names = self.class_names or []
        return names[label - 1] if 1 <= label <= len(names) else f"class {label}"

    def select(self, rows: Tensor) -> Detections:
        """Those of a mask (N,) bool, or of indices int64 in their order."""
        return Detections({key: values[rows] for key, values in self.items()}, self.class_names, self.category_ids)

    def filter(self, score: float = 0.0, classes: str | Sequence[str] | None = None) -> Detections:
        """Those with at least this score, 0 to 1, and of this class or one of these; None keeps all classes.

        Raises:
            ConfigError: there is no such class, or the score is out of its range.
        """
        check_range("score", score, 0, 1)
        keep = self["scores"] >= score
        if classes is not None:
            labels, among = self["labels"], self["labels"] < 0
            for wanted in labels_of([classes] if isinstance(classes, str) else classes, self.class_names or []):
                among = among | (labels == wanted)
            keep = keep & among
        return self.select(keep)

    def draw(self, image: Any, targets: Mapping[str, Any] | None = None, score_threshold: float = 0.0) -> Image:
        """A picture of the image with all of its detections, as `detkit.draw` makes it."""
        import detkit

        return detkit.draw(image, self, targets, score_threshold=score_threshold)

    def to_coco(self, image_id: str | int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows of COCO's results, as `detkit predict` writes them.

        Args:
            image_id: as in the data set.
            category_ids: of the labels 1, 2, ...; by default those that the detector learnt.

        Returns:
            Of each detection image_id, category_id, bbox [x, y, width, height] in pixels, and score.

        Raises:
            ConfigError: fewer ids than labels.
        """
        boxes, scores, labels = plain_fields(self)
        most = max(labels, default=0)
        given = self.category_ids if category_ids is None else [int(each) for each in category_ids]
        ids = list(range(1, most + 1)) if given is None else given
        if len(ids) < most:
            raise ConfigError(f"to_coco: {len(ids)} category_ids, and there are detections of class {most}")
        return list(coco_rows(image_id, zip(boxes, scores, labels, strict=True), ids))

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a detection a row: xmin, ymin, xmax, ymax in pixels, class, score, label.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ConfigError("to_pandas needs pandas; install it: pip install pandas") from error
        arrays = {key: _as_array(values) for key, values in self.items()}
        columns = dict(zip(("xmin", "ymin", "xmax", "ymax"), arrays["boxes"].T, strict=True))
        names = self._names()
        return DataFrame({**columns, "class": names, "score": arrays["scores"], "label": arrays["labels"]})

    def to_supervision(self) -> supervision.Detections:
        """As Roboflow's supervision has them: its class ids count from 0, so that they index a list of the names.

        Raises:
            ConfigError: supervision is not installed.
        """
        try:
            from supervision import Detections as Theirs
        except ImportError as error:
            raise ConfigError("to_supervision needs supervision; install it: pip install supervision") from error
        boxes, scores, labels = (_as_array(self[key]) for key in ("boxes", "scores", "labels"))
        return Theirs(
            xyxy=boxes, confidence=scores, class_id=labels - 1, data={"class_name": np.array(self._names(), dtype=str)}
        )

    def _names(self) -> list[str]:
        return [self.name(label) for label in self["labels"].tolist()]


@dataclass(frozen=True)
class Selection:
    """A choice among detections.

    Args:
        score_threshold: least score, 0 to 1.
        classes: names of the classes that are kept; None keeps all.
        agnostic_nms: suppress across classes too: of two detections whose IoU is above `AGNOSTIC_IOU` only the better
            one is kept.
    """

    score_threshold: float = 0.0
    classes: Sequence[str] | None = None
    agnostic_nms: bool = False

    def __post_init__(self) -> None:
        check_range("score_threshold", self.score_threshold, 0, 1)

    def labels(self, class_names: Sequence[str]) -> list[int]:
        """The labels that are kept, from 1.

        Raises:
            ConfigError: a class that there is not.
        """
        return labels_of(class_names if self.classes is None else self.classes, class_names)

    def __call__(self, detections: Detections, class_names: Sequence[str]) -> Detections:
        """The detections of one image that are kept, in their order.

        Raises:
            ConfigError: see `labels`.
        """
        kept = Detections(detections, class_names).filter(self.score_threshold, self.classes)
        if self.agnostic_nms:
            from detkit.boxes import nms  # which imports torch

            kept = kept.select(nms(kept["boxes"], kept["scores"], AGNOSTIC_IOU))
        return kept


def labels_of(classes: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """The labels, from 1, of these classes.

    Raises:
        ConfigError: there is no such class.
    """
    for name in classes:
        if name not in class_names:
            if not class_names:
                raise ConfigError(f"classes: there is no class {name!r}; the names of the classes are not known")
            near = did_you_mean(name, class_names)
            known = f"{near} There" if near else "; there"
            raise ConfigError(f"classes: there is no class {name!r}{known} are: {', '.join(class_names)}")
    return [label for label, name in enumerate(class_names, 1) if name in classes]


def plain_fields(detections: Mapping[str, Tensor]) -> tuple[list[list[float]], list[float], list[int]]:
    """Boxes, scores and labels in lists; each number is the shortest decimal that is read back as the same float32."""
    boxes, scores, labels = (_as_array(detections[key]) for key in ("boxes", "scores", "labels"))
    return _decimals(boxes), _decimals(scores), labels.tolist()


def coco_rows(image_id: str | int, rows: Iterable[Row], category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The detections of an image as rows of COCO's results; ``category_ids`` are in the order of the labels."""
    for (x1, y1, x2, y2), score, label in rows:
        yield {
            "image_id": image_id,
            "category_id": int(category_ids[label - 1]),
            "bbox": [x1, y1, _difference(x2, x1), _difference(y2, y1)],
            "score": score,
        }


def _as_array(values: Any) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()


def _decimals(values: np.ndarray) -> Any:
    if values.ndim > 1:
        return [_decimals(row) for row in values]
    return [float(str(value)) for value in values.astype(np.float32)]


def _difference(a: float, b: float) -> float:
    """a - b in float32, as the shortest decimal that is read back as the same number."""
    return float(str(np.float32(a) - np.float32(b)))
