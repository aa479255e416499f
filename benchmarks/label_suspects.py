"""How many of the label suspects that a report lists first are wrong labels: BCCD with planted errors.

    python -m benchmarks.label_suspects plant ../shared/data/bccd planted
    python -m benchmarks.label_suspects count planted REPORT [REPORT ...] [--pictures FOLDER]

`plant` copies the data set and makes 5 % of its labels wrong, in equal parts: removed, of another class, moved by 25 to
50 % of the width and height, added where no label is. The image set `look` of the copy is BCCD's val and test.
`count` reads `label_suspects.csv` of reports on that set and prints how many of the first 10, 20, 50 and 100 are about
a planted error. With --pictures it draws those that are not among the first 50, to be judged by eye.
"""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

SHARE = 0.05
KINDS = ("removed", "class", "moved", "added")
FIRST = (10, 20, 50, 100)
SIDES = ("xmin", "ymin", "xmax", "ymax")


def plant(source: Path, target: Path, seed: int = 0) -> None:
    """Write a copy of a VOC folder with wrong labels, and `planted.json`, what they are."""
    shutil.copytree(source, target)
    sets = target / "ImageSets" / "Main"
    (sets / "look.txt").write_text((sets / "val.txt").read_text() + (sets / "test.txt").read_text())
    rng = np.random.default_rng(seed)
    trees = {path.stem: ElementTree.parse(path) for path in sorted((target / "Annotations").glob("*.xml"))}
    places = [(stem, node) for stem, tree in trees.items() for node in tree.findall("object")]
    names = sorted({_name(node) for _, node in places})
    boxes: dict[str, list[np.ndarray]] = {stem: [] for stem in trees}
    for stem, node in places:
        boxes[stem].append(_box(node))
    usable = [i for i, (_, node) in enumerate(places) if (_box(node)[2:] - _box(node)[:2]).min() > 4]
    chosen = rng.choice(usable, round(SHARE * len(places)), replace=False)
    planted = []
    for number, index in enumerate(chosen.tolist()):
        stem, node = places[index]
        kind = KINDS[number % len(KINDS)]
        size = [int(trees[stem].find("size").findtext(side)) for side in ("width", "height")]
        before, name = _box(node), _name(node)
        row = {"kind": kind, "image": stem, "before": before.tolist(), "label": name}
        if kind == "removed":
            trees[stem].getroot().remove(node)
        elif kind == "class":
            row["label"] = str(rng.choice([each for each in names if each != name]))
            node.find("name").text = row["label"]
        elif kind == "moved":
            after = _inside(before + np.tile(_shift(rng) * (before[2:] - before[:2]), 2), size)
            _set_box(node, after)
            row["box"] = after.tolist()
        else:
            after = _free_place(rng, before[2:] - before[:2], size, boxes[stem])
            if after is None:
                continue
            new = ElementTree.fromstring(ElementTree.tostring(node))
            _set_box(new, after)
            trees[stem].getroot().append(new)
            boxes[stem].append(after)
            row = {"kind": kind, "image": stem, "box": after.tolist(), "label": name}
        planted.append(row)
    for stem, tree in trees.items():
        tree.write(target / "Annotations" / f"{stem}.xml")
    (target / "planted.json").write_text(json.dumps(planted, indent=1))
    looked = set((sets / "look.txt").read_text().split())
    print(f"{len(planted)} of {len(places)} labels, {sum(row['image'] in looked for row in planted)} of them in `look`")


def _name(node: ElementTree.Element) -> str:
    return node.findtext("name")


def _box(node: ElementTree.Element) -> np.ndarray:
    """x1 y1 x2 y2, half-open, from 0."""
    return np.array([float(node.find("bndbox").findtext(side)) for side in SIDES]) - (1, 1, 0, 0)


def _set_box(node: ElementTree.Element, box: np.ndarray) -> None:
    for side, value in zip(SIDES, box + np.array([1, 1, 0, 0]), strict=True):
        node.find("bndbox").find(side).text = str(round(value))


def _shift(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.25, 0.5, 2) * rng.choice([-1, 1], 2)


def _inside(box: np.ndarray, size: list[int]) -> np.ndarray:
    """The box, clipped to the image, in whole pixels."""
    return np.rint(np.clip(box, 0, [*size, *size]))


def _free_place(rng: np.random.Generator, side: np.ndarray, size: list[int], boxes: list[np.ndarray]):
    """A box of this size that overlaps no other by an IoU of 0.1; None where 200 tries find none."""
    for _ in range(200):
        corner = rng.uniform((0, 0), np.maximum(np.array(size) - side, 1))
        box = _inside(np.concatenate((corner, corner + side)), size)
        if (box[2:] - box[:2]).min() > 4 and all(_iou(box, other) < 0.1 for other in boxes):
            return box
    return None


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))
