"""Bootstrap intervals of average precision: how far the numbers of a test would move with other images like these.

A resample draws as many images as the set has, with replacement; an image that is drawn twice counts as two images.
Images are drawn rather than objects, since the objects of an image are not independent. An interval is the
bias-corrected percentile interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 14.3, without
acceleration): AP takes the best precision from a recall on, which makes it larger in small sets and larger again in
resamples, so that the plain percentiles lie too high (`benchmarks/results/bootstrap.md`).

What a detection matches does not depend on the other images, so the matching is done once, and the detections are
sorted once. A resample only counts hits and misses again, each as often as its image was drawn; it has the numbers, to
the last bit, of a set in which the images are repeated one after the other.

Draws depend on the number of the resample and on the order of the images' ids only. Two evaluations of the same images
see the same draws: the difference of their numbers in each resample is paired.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from detkit.errors import DataError
from detkit.evaluation import voc
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import group_by_class
from detkit.evaluation.matching import HIT, MISS, NOT_COUNTED, assign, interpolate
from detkit.evaluation.protocol import Protocol
from detkit.evaluation.voc import average
from detkit.system import available_cores, jit

RESAMPLES = 1000
SEED = 0
LEVEL = 0.95
#: Of fewer images or objects the intervals are too narrow: they held the true AP in about 90 % of sets of 50 images
#: (`benchmarks/results/bootstrap.md`).
FEW = 100


@dataclass(frozen=True, eq=False, slots=True)
class Resamples:
    """The numbers of a set with K classes, in row 0, and of its B resamples; 0..1, NaN where no object is to find."""

    numbers: dict[str, np.ndarray]  # map and, where the protocol has them, map_50 and map_75: (B + 1,) float64
    per_class: np.ndarray  # (B + 1, K) float64, AP
    class_names: list[str]  # K
    protocol: str  # its description
    images: str  # a digest of the images' ids

    def intervals(self) -> dict[str, Any]:
        """[low, high] by the names of `numbers`, `map_per_class` by class name, and `resamples`, B."""
        return _intervals(self.numbers, self.class_names, self.per_class)

    def save(self, path: Path) -> None:
        """Write the numbers as float32: at 80 classes about 0.3 MB."""
        np.savez_compressed(
            path,
            class_names=np.array(self.class_names, str),
            protocol=np.array(self.protocol),
            images=np.array(self.images),
            per_class=self.per_class.astype(np.float32),
            **{name: values.astype(np.float32) for name, values in self.numbers.items()},
        )


def read_resamples(path: Path) -> Resamples:
    """Read what `Resamples.save` wrote.

    Raises:
        DataError: the file is damaged, or of something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
        names, per_class = fields.pop("class_names").tolist(), fields.pop("per_class").astype(np.float64)
        protocol, images = str(fields.pop("protocol")), str(fields.pop("images"))
        numbers = {name: values.astype(np.float64) for name, values in fields.items()}
        shapes = {values.shape for values in numbers.values()}
        if "map" not in numbers or shapes != {per_class.shape[:1]} or per_class.shape[1:] != (len(names),):
            raise ValueError("its arrays do not fit together")
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not the resamples of a report ({error}); delete it to compare without") from None
    return Resamples(numbers, per_class, names, protocol, images)


def few_note(images: int, objects: int) -> str:
    """A warning where a set is so small that its intervals are too narrow; "" for others."""
    if min(images, objects) >= FEW:
        return ""
    return (
        f"{images:,} images with {objects:,} objects are few: such an interval misses the true value more often "
        "than in 5 % of cases (in about 10 % for 50 images), and says nothing of images of another kind"
    )


def difference(now: Resamples, before: Resamples) -> dict[str, Any]:
    """The intervals of now - before, as `Resamples.intervals`, of the numbers and classes that both have.

    Raises:
        ValueError: why the two are not paired.
    """
    if now.images != before.images:
        raise ValueError("the baseline was evaluated on other images")
    if now.protocol != before.protocol:
        raise ValueError("the baseline has another protocol")
    if len(now.per_class) != len(before.per_class):
        counts = (len(each.per_class) - 1 for each in (before, now))
        raise ValueError("the baseline has {:,} resamples, this evaluation {:,}".format(*counts))
    shared = [name for name in now.numbers if name in before.numbers]
    numbers = {name: _minus(now.numbers[name], before.numbers[name]) for name in shared}
    both = [name for name in now.class_names if name in before.class_names]
    columns = [[each.class_names.index(name) for name in both] for each in (now, before)]
    return _intervals(numbers, both, _minus(now.per_class[:, columns[0]], before.per_class[:, columns[1]]))


def bootstrap(
    evaluation_set: EvaluationSet, class_names: Sequence[str], protocol: Protocol, count: int = RESAMPLES
) -> Resamples:
    """The numbers of `count` resamples of the images of a set.

    Args:
        class_names: K names, in the order of the labels.
        protocol: what the numbers are computed by; of COCO's ranges of areas, the first counts.
    """
    ranking = _rank(protocol.seen(evaluation_set), len(class_names), protocol)
    ids = evaluation_set.image_ids
    order = np.array(sorted(range(len(ids)), key=lambda i: _sort_key(ids[i], i)), np.int64)

    def numbers_of(resample: int) -> dict[str, Any]:
        if resample == 0:  # the set itself
            return _numbers(ranking, np.ones(len(order), np.int64), protocol)
        drawn = np.random.default_rng((SEED, resample)).integers(len(order), size=len(order)) if len(order) else order
        return _numbers(ranking, np.bincount(order[drawn], minlength=len(order)), protocol)

    with ThreadPoolExecutor(available_cores()) as pool:
        found = list(pool.map(numbers_of, range(count + 1)))
    return Resamples(
        numbers={name: np.array([row[name] for row in found]) for name in found[0] if name != "map_per_class"},
        per_class=np.stack([row["map_per_class"] for row in found]),
        class_names=list(class_names),
        protocol=protocol.description,
        images=hashlib.sha256("\0".join(repr(ids[i]) for i in order).encode("utf-8", "backslashreplace")).hexdigest(),
    )


class _Ranking(NamedTuple):
    """N detections, E of them no misses, and M objects to find, of K classes at T thresholds.

    Class k has the rows starts[k]:starts[k + 1] of the detections, best score first. Detections of equal score in the
    same image, which come one after the other, are a block; most are alone in theirs.
    """

    starts: np.ndarray  # (K + 1,) int64
    images: np.ndarray  # (N,) int32
    events: np.ndarray  # (E,) int32, rows that are no misses, by threshold, then in their order
    hits: np.ndarray  # (E,) bool, a hit; else not counted
    event_images: np.ndarray  # (E,) int32
    heads: np.ndarray  # (E,) int32, the first row of the event's block
    sizes: np.ndarray  # (E,) int32, the rows of the block
    event_starts: np.ndarray  # (T, K + 1) int64
    objects: np.ndarray  # (M,) int32, images of the objects, by class
    object_starts: np.ndarray  # (K + 1,) int64


def _rank(seen: EvaluationSet, num_classes: int, protocol: Protocol) -> _Ranking:
    """What all resamples have in common: the matching at each threshold, and the order of the detections."""
    kinds = _match(seen, num_classes, protocol)
    grouped = group_by_class(seen, num_classes)
    rows, labels = grouped.detections, np.repeat(np.arange(num_classes), np.diff(grouped.detection_starts))
    counts = (kinds[:, rows] != NOT_COUNTED).any(axis=0)
    rows, labels = rows[counts], labels[counts]
    images, scores = seen.detection_images[rows], seen.scores[rows]
    begins = np.ones(len(rows), bool)
    begins[1:] = (images[1:] != images[:-1]) | (scores[1:] != scores[:-1]) | (labels[1:] != labels[:-1])
    heads = np.flatnonzero(begins)
    sizes = np.diff(np.append(heads, len(rows)))
    block = np.cumsum(begins) - 1
    starts = np.searchsorted(labels, np.arange(num_classes + 1))
    by_threshold = [np.flatnonzero(kinds[t, rows] != MISS) for t in range(len(kinds))]
    offsets = np.cumsum([0, *map(len, by_threshold)])[:-1]
    events = np.concatenate(by_threshold)
    objects = grouped.objects[seen.to_find(num_classes)[grouped.objects]]
    return _Ranking(
        starts=starts,
        images=images,
        events=events.astype(np.int32),
        hits=np.concatenate([kinds[t, rows[each]] == HIT for t, each in enumerate(by_threshold)]),
        event_images=images[events],
        heads=heads[block[events]].astype(np.int32),
        sizes=sizes[block[events]].astype(np.int32),
        event_starts=np.stack([np.searchsorted(each, starts) for each in by_threshold]) + offsets[:, None],
        objects=seen.object_images[objects],
        object_starts=np.searchsorted(seen.labels[objects], np.arange(1, num_classes + 2)),
    )


def _match(seen: EvaluationSet, num_classes: int, protocol: Protocol) -> np.ndarray:
    """What each detection is at each threshold, (T, D) int8: MISS, HIT or NOT_COUNTED."""
    if protocol.name != "coco":
        return voc.match(seen, num_classes, protocol.iou_thresholds, protocol.hit_rule == ">")
    area = seen.detected_boxes[:, 2] * seen.detected_boxes[:, 3]
    least, most = next(iter(protocol.area_ranges.values()))
    inside = (area >= least) & (area <= most)
    kinds = np.full((len(protocol.iou_thresholds), len(area)), NOT_COUNTED, np.int8)
    for row, threshold in zip(kinds, protocol.iou_thresholds, strict=True):
        assignment = assign(seen, num_classes, threshold, protocol.max_detections[-1])
        row[assignment.misses & inside] = MISS
        row[assignment.hits] = HIT
    return kinds


def _numbers(ranking: _Ranking, times: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """The protocol's averages if the images count so often, (I,) int64."""
    num_thresholds, num_classes = ranking.event_starts.shape[0], len(ranking.starts) - 1
    if protocol.name == "coco":
        recalls = np.array(protocol.recall_thresholds)
        precision = np.full((num_classes, num_thresholds, len(recalls)), np.nan)
        _count(*ranking, times, np.spacing(1.0), recalls, True, precision)
        return protocol.averages(precision.transpose(1, 2, 0))
    points = voc.ELEVEN_POINTS if protocol.name == "voc07" else voc.ELEVEN_POINTS[:0]
    result = np.full((num_classes, num_thresholds, 1), np.nan)
    _count(*ranking, times, 0.0, points, False, result)
    return protocol.averages(np.ascontiguousarray(result[..., 0].T))


@jit
def _count(
    starts, images, events, hits, event_images, heads, sizes, event_starts, objects, object_starts,
    times, eps, points, is_coco, result,
):  # fmt: skip
    """Write the precision at each point of recall, (K, T, R), or else VOC's average, (K, T, 1).

    `times` is how often each image counts, `eps` what is added to the number of detections.
    """
    for k in range(len(starts) - 1):
        wanted = 0
        for image in objects[object_starts[k] : object_starts[k + 1]]:
            wanted += times[image]
        if wanted == 0:
            continue
        begin = starts[k]
        before = np.empty(starts[k + 1] - begin + 1, np.int64)  # detections before each one, as often as they count
        before[0] = 0
        for i in range(begin, starts[k + 1]):
            before[i - begin + 1] = before[i - begin] + times[images[i]]
        at_hit = np.empty(wanted)  # precision of all detections up to each hit
        for t in range(len(event_starts)):
            found, left_out = 0, 0
            event, end = event_starts[t, k], event_starts[t, k + 1]
            while event < end:
                copies, head = times[event_images[event]], heads[event]
                if sizes[event] == 1:
                    if hits[event]:
                        counted = before[head - begin] - left_out
                        for copy in range(1, copies + 1):
                            at_hit[found] = (found + 1) / (counted + copy + eps)
                            found += 1
                    else:
                        left_out += copies
                    event += 1
                    continue
                # Detections of equal score in the same image repeat together: a b a b, not a a b b.
                stop, uncounted = event, 0
                while stop < end and heads[stop] == head:
                    uncounted += not hits[stop]
                    stop += 1
                for copy in range(copies):
                    counted = before[head - begin] - left_out + copy * (sizes[event] - uncounted)
                    skipped = 0
                    for i in range(event, stop):
                        if hits[i]:
                            at_hit[found] = (found + 1) / (counted + events[i] - head + 1 - skipped + eps)
                            found += 1
                        else:
                            skipped += 1
                left_out += copies * uncounted
                event = stop
            if is_coco:
                interpolate(at_hit, found, wanted, points, result[k, t])
            else:
                result[k, t, 0] = average(at_hit, found, wanted, points)


def _minus(now: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The difference of what files hold: equal numbers differ by 0, also where one of them was read from a file."""
    return now.astype(np.float32).astype(np.float64) - before.astype(np.float32)


def _sort_key(image_id: Any, position: int) -> tuple[Any, ...]:
    """Orders ids as `first_of_each` does: numbers, strings, and images without an id in their order."""
    return (2, position) if image_id is None else (isinstance(image_id, str), image_id)


def _intervals(numbers: Mapping[str, np.ndarray], class_names: Sequence[str], per_class: np.ndarray) -> dict[str, Any]:
    return {
        **{name: _interval(values) for name, values in numbers.items()},
        "map_per_class": {name: _interval(per_class[:, k]) for k, name in enumerate(class_names)},
        "resamples": len(per_class) - 1,
    }


def _interval(values: np.ndarray) -> list[float]:
    """[low, high] of a number, from its values (B + 1,), the set's own first; NaN for none."""
    known = values[1:][~np.isnan(values[1:])]
    if not len(known) or np.isnan(values[0]):
        return [float("nan")] * 2
    normal = NormalDist()
    below = ((known < values[0]).sum() + (known == values[0]).sum() / 2) / len(known)
    bias = normal.inv_cdf(float(np.clip(below, 0.5 / len(known), 1 - 0.5 / len(known))))
    ends = (normal.inv_cdf((1 - LEVEL) / 2), normal.inv_cdf((1 + LEVEL) / 2))
    return np.quantile(known, [normal.cdf(2 * bias + end) for end in ends]).tolist()
