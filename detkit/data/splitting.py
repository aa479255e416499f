"""Dividing a data set that has no split into train, val and test, so that no image is in two of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.data.annotations import Annotations, Finding
from detkit.data.image_io import open_image
from detkit.data.input_files import short_repr
from detkit.data.text_files import read_text
from detkit.data.voc_files import SPLIT_NAMES, SPLIT_OF
from detkit.errors import ConfigError, DataError
from detkit.progress import Progress
from detkit.system import available_cores

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = tuple(SPLIT_NAMES)
#: The most bits in which the hashes of images that look alike differ: those of a copy in another format or size do.
DIFFERENT_BITS = 4
BLOCK = 256  # images compared with all others at once


def check_shares(shares: Sequence[float]) -> None:
    """Refuse, with a ConfigError, shares that are not three numbers from 0 with a sum of 1, the first above 0."""
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] == 0:
        raise ConfigError(f"split: {list(shares)} must be the shares of train, val and test, such as [0.8, 0.1, 0.1]")


def split_annotations(annotations: Annotations, shares: Sequence[float], seed: int) -> dict[str, Annotations]:
    """Divide images by `split_groups`, images that are alike (`duplicate_groups`) together.

    Args:
        annotations: all images.
        shares: of train, val and test; their sum is 1.
        seed: any integer from 0.

    Returns:
        Split -> its images, without splits that have none, which a finding tells; findings are the first split's.
    """
    order = np.argsort(annotations.image_ids, kind="stable")  # not that of the files, which may change
    groups = duplicate_groups([annotations.path(index) for index in order.tolist()])
    parts = split_groups(groups, shares, seed)
    found = [*annotations.findings]
    if alike := len(groups) - len(np.unique(groups)):
        text = f"images that look like another one: {alike:,}; images that are alike are in one split"
        found.append(Finding("alike", annotations.root, None, text, alike))
    for split, share, part in zip(SPLITS, shares, parts, strict=True):
        if share > 0 and not len(part):
            text = (
                f"{split} gets no image: {len(groups):,} images, of which {len(groups) - alike:,} are different, are "
                "too few for these shares; choose its images by sets (--data.sets)"
            )
            found.append(Finding("empty_set", annotations.root, None, text))
    return _subsets(annotations, [order[part] for part in parts], found)


def choose_sets(annotations: Annotations, sets: Mapping[str, Any], source: str) -> dict[str, Annotations]:
    """Divide images as lists say.

    Args:
        annotations: all images.
        sets: train, val and test, as far as there are: names of images (or their ids), folders, patterns with `*`, or
            text files of names, in the data set's folder or else from the working directory.
        source: what the lists are from, for messages.

    Raises:
        DataError: another name of a split, an entry that names no image, or an image that is in two splits.
    """
    images = _ImageNames(annotations)
    split_of: dict[int, str] = {}
    for name, entries in sets.items():
        split = SPLIT_OF.get(name)
        if split is None or not isinstance(entries, str | list | tuple):
            raise DataError(f"{source}: sets are lists called train, val and test, not {name!r}: {entries!r:.40}")
        for entry in [entries] if isinstance(entries, str) else entries:
            if not (chosen := images.find(str(entry))):
                raise DataError(f"{source}: {name}: {short_repr(entry)} names no image of {annotations.root}")
            for index in chosen:
                if split_of.setdefault(index, split) != split:
                    raise DataError(f"{source}: {images.files[index]} is in {split_of[index]} and in {split}")
    found = [*annotations.findings]
    if rest := len(images.files) - len(split_of):
        text = f"{rest:,} images are in none of the sets: left out"
        found.append(Finding("in_no_set", source, None, text, rest))
    parts = [np.array([i for i in range(len(images.files)) if split_of.get(i) == split], np.int64) for split in SPLITS]
    return _subsets(annotations, parts, found)


class _ImageNames:
    """The images by what people call them: the file, from the root or with the root's name before it, or the id."""

    def __init__(self, annotations: Annotations) -> None:
        self.root = annotations.root
        self.files = [os.path.normpath(str(file)).replace(os.sep, "/") for file in annotations.files]
        top = os.path.basename(os.path.abspath(annotations.root))
        self.by_name: dict[str, list[int]] = {}
        for index, (file, image_id) in enumerate(zip(self.files, annotations.image_ids.tolist(), strict=True)):
            for name in {file, f"{top}/{file}", str(image_id)}:
                self.by_name.setdefault(name, []).append(index)

    def find(self, entry: str) -> list[int]:
        """The images that an entry means: by name, else below a folder, else by a pattern, else by a list in a file."""
        name = os.path.normpath(entry).replace("\\", "/")
        if found := self.by_name.get(name):
            return found
        below = [index for each, found in self.by_name.items() if each.startswith(f"{name}/") for index in found]
        found = below or [index for each, found in self.by_name.items() if fnmatchcase(each, name) for index in found]
        lists = (file for file in (os.path.join(self.root, entry), entry) if os.path.isfile(file))
        if not found and entry.endswith(".txt") and (file := next(lists, None)):
            lines = filter(None, map(str.strip, read_text(file).splitlines()))
            listed = {line: self.by_name.get(os.path.normpath(line.replace("\\", "/"))) for line in lines}
            if missing := next((line for line, indices in listed.items() if indices is None), None):
                raise DataError(f"{file}: {short_repr(missing)} names no image of the data set")
            found = [index for indices in listed.values() for index in indices or []]
        return sorted(set(found))


def _subsets(annotations: Annotations, parts: Sequence[np.ndarray], findings: list[Finding]) -> dict[str, Annotations]:
    chosen = [(split, np.sort(part)) for split, part in zip(SPLITS, parts, strict=True) if len(part)]
    return {
        split: annotations.subset(part, findings if number == 0 else []) for number, (split, part) in enumerate(chosen)
    }


def split_groups(groups: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """Divide images into parts of about these shares; a group is never divided.

    Args:
        groups: (I,) int64, the group of each image.
        shares: of the parts.
        seed: of the order in which groups are taken; the larger ones come first.

    Returns:
        For each part the indices of its images, ascending, int64.
    """
    names, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    wanted = np.array(shares, np.float64) * len(groups)
    part_of = np.zeros(len(names), np.int64)
    missing = wanted.copy()
    for group in order:
        part_of[group] = part = int(np.argmax(missing))
        missing[part] -= sizes[group]
    parts = part_of[np.searchsorted(names, groups)]
    return [np.flatnonzero(parts == part) for part in range(len(shares))]


def duplicate_groups(paths: Sequence[str]) -> np.ndarray:
    """(I,) int: images have the same number if they are the same file or look alike.

    Raises:
        DataError: an image that cannot be read.
    """
    digests: list[bytes] = []
    looks = np.zeros(len(paths), np.uint64)
    with ThreadPoolExecutor(available_cores()) as pool, Progress("looking for images alike", len(paths)) as bar:
        for index, (digest, look) in enumerate(pool.map(_hashes, paths)):
            looks[index] = look
            digests.append(digest)
            bar.step()
    return groups_of(digests, looks)


def groups_of(digests: Sequence[bytes], looks: np.ndarray) -> np.ndarray:
    """(I,) int: the same number for equal digests, and for looks that differ in at most `DIFFERENT_BITS`.

    Args:
        digests: of the images' bytes.
        looks: (I,) uint64, see `look_of`.
    """
    from scipy.sparse import coo_array  # takes half a second, and most data sets have sets of their own
    from scipy.sparse.csgraph import connected_components

    # Images are compared by their distinct digests and looks: where all are equal, pairs of images would be too many.
    _, by_digest = np.unique(np.array(digests, object), return_inverse=True)
    unique, by_look = np.unique(looks, return_inverse=True)
    first, second = [by_digest], [by_look + len(digests)]  # nodes: the digests, then the looks
    for start in range(0, len(unique), BLOCK):
        block = unique[start : start + BLOCK, None]
        one, other = np.nonzero(np.bitwise_count(block ^ unique[None, start:]) <= DIFFERENT_BITS)
        first.append(one + start + len(digests))
        second.append(other + start + len(digests))
    rows, columns = np.concatenate(first), np.concatenate(second)
    size = len(digests) + len(unique)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), (size, size))
    return np.unique(connected_components(graph, directed=False)[1][by_digest], return_inverse=True)[1]


def look_of(image: Image) -> int:
    """The perceptual hash of an image, 64 bits: of images that look alike most bits are the same."""
    import imagehash

    return int(str(imagehash.phash(image)), 16)


def _hashes(path: str) -> tuple[bytes, int]:
    """Of the bytes, and of how the image looks."""
    with open_image(path) as image:
        image.draft("L", (128, 128))  # JPEG is decoded at an eighth of its size
        look = look_of(image)
    return hashlib.sha256(Path(path).read_bytes()).digest(), look
