"""VOC's files: results as the devkit writes them, `comp4_det_test_CLASS.txt`, for a VOCdevkit's annotations.

A row is `image_id score x1 y1 x2 y2`. All boxes are 1-based and inclusive; in the half-open ones they become, the
devkit's arithmetic is the plain one: x2 - (x1 - 1) is its x2 - x1 + 1. Nothing is clipped or dropped.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from detkit.data.annotations import Finding, UnknownIdPolicy
from detkit.data.coco_files import decode
from detkit.data.input_files import LARGEST, check_printable, list_folder, read_bytes, short_repr
from detkit.data.voc_files import ALL, SPLIT_FILE, SPLIT_NAMES, VOCEntry, VOCSet, find_folders, read_voc
from detkit.data.voc_images import ImageIndex
from detkit.errors import DataError
from detkit.evaluation.evaluation_files import Detected, EvaluationFiles, Objects, assemble, unknown_id_policy

SUFFIXES = (".txt", ".txt.gz")
COLUMNS = ("image_id", "score", "x1", "y1", "x2", "y2")


def read_voc_results(
    detections: str | Path,
    annotations: str | Path,
    split: str = "test",
    *,
    other_images: str = "error",
    other_classes: str = "error",
) -> EvaluationFiles:
    """Read the devkit's result files for the annotations of an image set.

    Classes are those of the image set's objects, sorted.

    Args:
        detections: a folder of result files, or a pattern such as "results/comp4_det_test_*.txt"; gzip may have packed
            them.
        annotations: a VOC folder, a VOCdevkit, or the folder around that.
        split: image set, such as "test" or "2007/test"; several are joined by "+".
        other_images: "error", or "drop" to leave out detections of images that are not in the image set.
        other_classes: "error", or "drop" to leave out result files of a class that no object of the image set is of.

    Raises:
        DataError: a file is missing or malformed, or names an image or a class that there is not.
    """
    voc, chosen = _read_set(str(annotations), split)
    entries = sorted(chosen, key=lambda entry: entry.image_id)
    if not voc.annotated:
        raise DataError(f"{annotations}: no image of {split} is annotated: there is nothing to compare with")
    ids = [entry.image_id for entry in entries]
    names = sorted(voc.class_names())
    for name in names:
        check_printable(name, f"{annotations}: class name")
    policy = unknown_id_policy(f"{annotations} ({split})", other_images, other_classes)
    files = _class_files(_result_files(str(detections), split), names)
    detected = _detected(files, ids, names, policy)
    missing = [
        Finding("no_result_file", str(detections), None, f"none for {name}: it counts as never found; is one missing?")
        for name in names
        if name not in files
    ]
    return EvaluationFiles(
        evaluation_set=assemble(ids, _objects(entries, names), detected),
        class_names=names,
        category_ids=list(range(1, len(names) + 1)),
        image_files=_image_files(entries),
        data=str(annotations),
        split=split,
        protocol=_protocol(voc.folders),
        findings=[*voc.findings, *policy.findings, *missing],
    )


def _read_set(annotations: str, split: str) -> tuple[VOCSet, list[VOCEntry]]:
    """An image set, and its images; of a folder without image sets, those that `detkit split` has put into it."""
    path = os.path.join(annotations, SPLIT_FILE)
    if split not in SPLIT_NAMES or not os.path.isfile(path) or find_folders(annotations):
        voc = read_voc(annotations, split)
        return voc, voc.entries
    sets = decode(path, dict[str, list[str | int] | str], "lists called train, val and test")
    names = sets.get(split, [])
    stems = {os.path.splitext(str(name))[0] for name in ([names] if isinstance(names, str) else names)}
    voc = read_voc(annotations, ALL)
    entries = [entry for entry in voc.entries if entry.image_id in stems]
    if not entries:
        raise DataError(f"{path}: names no annotated image of the set {split!r}")
    return voc, entries


def _image_files(entries: Sequence[VOCEntry]) -> list[str]:
    """The image of each entry, "" where there is none: numbers need no images."""
    indices = {folder: ImageIndex(folder) for folder in {entry.folder for entry in entries}}
    return [indices[entry.folder].find(entry) or "" for entry in entries]


def _protocol(folders: Sequence[str]) -> str:
    """The devkits' own: eleven points until 2009, the area under the curve after."""
    years = [re.search(r"VOC(\d{4})$", os.path.basename(os.path.abspath(folder))) for folder in folders]
    return "voc07" if all(year and int(year[1]) < 2010 for year in years) else "voc10"


def _objects(entries: Sequence[VOCEntry], names: Sequence[str]) -> Objects:
    for entry in entries:
        for number, item in enumerate(entry.image.objects, 1):
            if not all(abs(value) <= LARGEST for value in item.box):  # NaN is not, either
                raise DataError(f"{entry.source}: object {number}: its box {item.box} is not finite, or beyond 1e9")
    labels = {name: label for label, name in enumerate(names, 1)}
    objects = list(chain.from_iterable(entry.image.objects for entry in entries))
    boxes = _half_open(np.array([item.box for item in objects], np.float64).reshape(-1, 4))
    return Objects(
        images=np.repeat(np.arange(len(entries)), [len(entry.image.objects) for entry in entries]),
        boxes=boxes,
        labels=np.array([labels[item.name] for item in objects], np.int32),
        difficult=np.array([bool(item.difficult) for item in objects], bool),
        crowd=np.zeros(len(objects), bool),
        area=boxes[:, 2] * boxes[:, 3],
    )


def _half_open(boxes: np.ndarray) -> np.ndarray:
    """x1, y1, x2, y2 as VOC means them to x, y, width, height."""
    corner = boxes[:, :2] - 1.0
    return np.concatenate((corner, boxes[:, 2:] - corner), axis=1)


def _result_files(detections: str, split: str) -> list[Path]:
    """The files that a folder or a pattern means; of a folder with several sets in it, those of the split."""
    if os.path.isdir(detections):
        files = [Path(detections, name) for name in list_folder(detections) if name.endswith(SUFFIXES)]
        image_sets = {part.rpartition("/")[2].strip() for part in split.split("+")}
        of_split = [file for file in files if any(f"_det_{name}_" in file.name for name in image_sets)]
        files = of_split or files
    else:
        files = [Path(detections)] if os.path.isfile(detections) else sorted(map(Path, glob.glob(detections)))
    if not files:
        raise DataError(
            f"{detections}: no result files here; give a folder or a pattern of files like comp4_det_{split}_CLASS.txt"
        )
    prefixes = {match[0] for file in files if (match := re.match(r".*?_det_[^_]+_", file.name))}
    if len(prefixes) > 1:
        folder = detections if os.path.isdir(detections) else os.path.dirname(detections)
        raise DataError(
            f"{detections}: files of several competitions or sets: {', '.join(sorted(prefixes))}; name one: "
            f"'{os.path.join(folder, min(prefixes))}*.txt'"
        )
    return files


def _class_files(files: Sequence[Path], names: Collection[str]) -> dict[str, Path]:
    """Class -> its file. What all file names begin with is cut off, as far as it leaves the most known classes."""
    stems = [re.sub(r"\.txt(\.gz)?$", "", file.name) for file in files]
    ends = [0, *(match.end() for match in re.finditer("_", stems[0]))]
    cuts = [cut for cut in ends if all(stem.startswith(stems[0][:cut]) for stem in stems)]
    known = {cut: sum(stem[cut:] in names for stem in stems) for cut in cuts}
    # Without any known class, as it stands in the devkit's names.
    official = re.match(r".*?_det_[^_]+_", stems[0])
    best = max(cuts, key=lambda cut: (known[cut], official is not None and cut == official.end(), -cut))
    twice = [name for name, count in Counter(stem[best:] for stem in stems).items() if count > 1]
    if twice:
        raise DataError(f"{files[0].parent}: two files for {', '.join(twice)} (packed and not?); remove one of them")
    return {stem[best:]: file for stem, file in zip(stems, files, strict=True)}


def _same(name: str, _: int) -> str:
    return name


def _decoded(names: Sequence[bytes], row: int) -> str:
    return os.fsdecode(names[row])


def _detected(files: dict[str, Path], ids: Sequence[str], names: Sequence[str], policy: UnknownIdPolicy) -> Detected:
    number_of = {os.fsencode(image_id): number for number, image_id in enumerate(ids)}
    label_of = {name: label for label, name in enumerate(names, 1)}
    images, values, labels = [np.zeros(0, np.int64)], [np.zeros((0, 5))], [np.zeros(0, np.int32)]
    for name, path in files.items():
        owners, rows = _rows(path)
        label = np.full(len(rows), label_of.get(name, -1), np.int32)
        policy.check(label, partial(_same, name), "detections", "classes", str(path), names)
        number = np.array([number_of.get(owner, -1) for owner in owners], np.int64)
        policy.check(number, partial(_decoded, owners), "detections", "images", str(path), ids)
        images.append(number)
        values.append(rows)
        labels.append(label)
    rows = np.concatenate(values)
    return Detected(np.concatenate(images), _half_open(rows[:, 1:]), rows[:, 0], np.concatenate(labels))


def _rows(path: Path) -> tuple[list[bytes], np.ndarray]:
    """Image ids, and (n, 5) float64: score and box as written."""
    lines = [line.strip().rsplit(None, len(COLUMNS) - 1) for line in read_bytes(path).splitlines()]  # ids have spaces
    rows = [line for line in lines if line]
    if set(map(len, rows)) <= {len(COLUMNS)}:
        try:
            numbers = chain.from_iterable(row[1:] for row in rows)
            values = np.fromiter(map(float, numbers), np.float64).reshape(-1, 5)
            if (np.abs(values) <= LARGEST).all():
                return [row[0] for row in rows], values
        except ValueError:
            pass
    number, line = next((number, line) for number, line in enumerate(lines, 1) if line and not _is_row(line))
    text = short_repr(b" ".join(line).decode(errors="replace"))
    raise DataError(f"{path}, line {number}: {text} is not '{' '.join(COLUMNS)}' with finite numbers of at most 1e9")


def _is_row(line: Sequence[bytes]) -> bool:
    try:
        return len(line) == len(COLUMNS) and all(abs(float(value)) <= LARGEST for value in line[1:])
    except ValueError:
        return False
