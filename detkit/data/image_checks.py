"""What may be wrong with the images of a data set: each is decoded once, on all cores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detkit.data.annotations import Annotations, Finding
from detkit.data.checks import Check
from detkit.data.image_io import open_image
from detkit.data.splitting import groups_of, look_of
from detkit.errors import DataError
from detkit.progress import Progress
from detkit.system import available_cores


class Looked(NamedTuple):
    """A digest of an image's bytes, its perceptual hash and its EXIF orientation; or why it cannot be read."""

    digest: bytes
    look: int
    orientation: int
    error: str | None = None


def look_at(path: str) -> Looked:
    """Decode an image to its last row."""
    try:
        with open_image(path) as image:
            orientation = image.getexif().get(0x0112, 1)
            image.load()
            return Looked(hashlib.sha256(Path(path).read_bytes()).digest(), look_of(image), orientation)
    except DataError as error:
        return Looked(path.encode(errors="surrogateescape"), 0, 1, str(error))


def check_files(splits: Mapping[str, Annotations]) -> Iterator[Check]:
    """Images that cannot be read, are turned by EXIF, or look like one of another set.

    Shows a progress bar.
    """
    places = [(split, index) for split, annotations in splits.items() for index in range(len(annotations))]
    paths = [splits[split].path(index) for split, index in places]
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(available_cores()) as pool, Progress("images", len(distinct)) as bar:
        found = {}
        for path, looked in zip(distinct, pool.map(look_at, distinct), strict=True):
            found[path] = looked
            bar.step()
    for (split, index), path in zip(places, paths, strict=True):
        if (error := found[path].error) is not None:
            message = error.removeprefix(f"{path}: ")  # the finding names the file itself
            yield Check(split, Finding("unreadable", path, None, message), index)
        elif found[path].orientation != 1:
            turned = splits[split].exif != "ignore"
            text = f"has the EXIF orientation {found[path].orientation}, {'which turns it' if turned else 'not used'}"
            yield Check(split, Finding("turned", path, None, text), index)
    yield from _alike(places, paths, [found[path] for path in paths])


def _alike(places: Sequence[tuple[str, int]], paths: Sequence[str], looks: Sequence[Looked]) -> Iterator[Check]:
    """Images of different sets that are the same or look alike; of an image the first one of another set is named."""
    good = [number for number, looked in enumerate(looks) if looked.error is None]
    if not good:
        return
    digests = [looks[number].digest for number in good]
    groups = groups_of(digests, np.array([looks[number].look for number in good], np.uint64))
    first: dict[int, dict[str, int]] = {}
    for number, group in zip(good, groups.tolist(), strict=True):
        first.setdefault(group, {}).setdefault(places[number][0], number)
    for number, group in zip(good, groups.tolist(), strict=True):
        split, index = places[number]
        for other, earlier in first[group].items():
            if other == split:
                break  # only the later set is told
            if paths[earlier] != paths[number]:
                same = looks[earlier].digest == looks[number].digest
                what = "is the same file as" if same else "looks like"
                text = f"{what} {paths[earlier]} of {other}"
                yield Check(split, Finding("alike_sets", paths[number], None, text), index)
                break
