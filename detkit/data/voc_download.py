"""Fetching VOC2007 and VOC2012 through torchvision, which knows their addresses and checksums.

torchvision unpacks an archive only after its MD5 checksum agreed, so that no other archive's paths reach the disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from detkit.errors import DataError


def archives_of(image_sets: Sequence[str]) -> list[str]:
    """torchvision's keys of the archives that image sets are in: "2007-test" for "2007/test"; DataError for no year."""
    keys = set()
    for part in "+".join(image_sets).split("+"):
        match = re.fullmatch(r"(?:VOC)?(2007|2012)/(\S+)", part.strip())
        if match is None:
            raise DataError(f"image set {part!r}: to download, name the year, as in '2007/trainval' or '2012/val'")
        year, name = match.groups()
        if year == "2012" and name == "test":
            raise DataError(f"image set {part!r}: the annotations of VOC2012's test set were never published")
        keys.add("2007-test" if year == "2007" and re.search(r"(^|_)test$", name) else year)
    return sorted(keys)


def missing_archives(path: str, image_sets: Sequence[str]) -> list[str]:
    """Those of `archives_of` whose image sets are not below `path`."""
    missing = []
    for key in archives_of(image_sets):
        main = os.path.join(_devkit(path), f"VOC{key[:4]}", "ImageSets", "Main")
        name = "test" if key.endswith("test") else "trainval"
        if not os.path.isfile(os.path.join(main, f"{name}.txt")) or _unfinished(path, key).exists():
            missing.append(key)
    return missing


def fetch(path: str, archives: Sequence[str]) -> None:
    """Download, check and unpack the archives, so that `path` holds the VOCdevkit or is it.

    Args:
        path: a folder called VOCdevkit, or the one that VOCdevkit comes to lie in.
        archives: torchvision's keys: "2007", "2007-test", "2012".

    Raises:
        DataError: no connection, or an archive that does not match its checksum.
    """
    from torchvision.datasets import voc

    root = os.path.dirname(_devkit(path)) or "."
    os.makedirs(root, exist_ok=True)
    for key in archives:
        entry = voc.DATASET_YEAR_DICT[key]
        # A process that is stopped while it unpacks leaves this mark, and the next one unpacks again.
        mark = _unfinished(path, key)
        mark.touch()
        try:
            voc.VOCDetection(root, year=key[:4], image_set="test" if key.endswith("test") else "train", download=True)
        except Exception as error:  # urllib, tarfile, hashing and zlib all raise their own
            raise DataError(
                f"{entry['url']}: cannot be downloaded, or is corrupt ({error}); remove "
                f"{os.path.join(root, entry['filename'])} and try again, or fetch it by hand and unpack it in {root}"
            ) from error
        mark.unlink()


def _devkit(path: str) -> str:
    path = os.path.abspath(path)
    return path if os.path.basename(path) == "VOCdevkit" else os.path.join(path, "VOCdevkit")


def _unfinished(path: str, key: str) -> Path:
    return Path(_devkit(path)).with_name(f".voc-{key}.unfinished")
