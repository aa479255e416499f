"""How many of the label suspects that a report lists first are wrong labels: BCCD with planted errors.

    python -m benchmarks.label_suspects plant ../shared/data/bccd planted
    python -m benchmarks.label_suspects count planted REPORT [REPORT ...] [--pictures FOLDER]

`plant` copies the data set and makes 5 % of its labels wrong, in equal parts: removed, of another class, moved by 25 to
50 % of the width and height, added where no label is. The image set `look` of the copy is BCCD's val and test.
`count` reads `label_suspects.csv` of reports on that set and prints how many of the first 10, 20, 50 and 100 are about
a planted error. With --pictures it draws those that are not among the first 50, to be judged by eye.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHARE = 0.05
KINDS = ("removed", "class", "moved", "added")
FIRST = (10, 20, 50, 100)
SUSPECTS = ("missing", "wrong class", "loose box", "spurious")
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


def count(folder: Path, report: Path, pictures: Path | None) -> list[str]:
    """A row of a table: how many of the first suspects of a report are planted; draws the others among the first 50."""
    planted = json.loads((folder / "planted.json").read_text())
    with (report / "label_suspects.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    by_image: dict[str, list[int]] = {}
    for number, error in enumerate(planted):
        by_image.setdefault(error["image"], []).append(number)
    found = [_planted(row, planted, by_image.get(Path(row["image"]).stem, [])) for row in rows]
    firsts = [str(sum(number is not None for number in found[:first])) for first in FIRST]
    kinds = [
        sum(row["kind"] == kind for row in rows[:50]) for kind in ("missing", "wrong class", "loose box", "spurious")
    ]
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for rank, (row, number) in enumerate(zip(rows[:50], found, strict=False), 1):
            if number is None:
                _draw(folder, row).save(pictures / f"{rank:02d} {row['kind']}.png")
    words = ", ".join(f"{number} {kind}" for number, kind in zip(kinds, SUSPECTS, strict=True))
    return [f"| {report} | {len(rows)} | {' | '.join(firsts)} |", f"of the first 50: {words}"]


def _planted(row: dict[str, str], planted: list[dict], numbers: list[int]) -> int | None:
    """The number of the planted error that a suspect is about; a place without a label, by the box that was there."""
    has_label = row["label"] != ""
    box = np.array([float(row[side if has_label else f"suggested_{side}"]) for side in ("x1", "y1", "x2", "y2")])
    for number in numbers:
        error = planted[number]
        if has_label:
            now = error.get("box", error.get("before"))
            if error["kind"] != "removed" and error["label"] == row["label"] and _iou(box, np.array(now)) > 0.9:
                return number
        elif error["kind"] in ("removed", "moved") and _iou(box, np.array(error["before"])) >= 0.5:
            return number
    return None


def _draw(folder: Path, row: dict[str, str]) -> Image.Image:
    """The image with the label in red and the detection in blue."""
    image = Image.open(folder / "JPEGImages" / row["image"]).convert("RGB")
    pen = ImageDraw.Draw(image)
    for whose, colour in (("", "red"), ("suggested_", "blue")):
        if row[f"{whose}x1"]:
            pen.rectangle([float(row[whose + side]) for side in ("x1", "y1", "x2", "y2")], outline=colour, width=3)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("plant")
    planting.add_argument("source", type=Path)
    planting.add_argument("target", type=Path)
    counting = commands.add_parser("count")
    counting.add_argument("planted", type=Path)
    counting.add_argument("reports", type=Path, nargs="+")
    counting.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "plant":
        plant(arguments.source, arguments.target)
        return
    print(f"| report | suspects | planted of the first {' | of '.join(map(str, FIRST))} |")
    for report in arguments.reports:
        print("\n".join(count(arguments.planted, report, arguments.pictures)))


if __name__ == "__main__":
    main()
