"""A data set in another format: the same images, boxes and classes as far as the format can hold them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from detkit.data.annotations import PER_BOX, Annotations
from detkit.data.datamodule import DetectionDataModule
from detkit.data.image_io import image_shape, open_image
from detkit.data.layouts import opened
from detkit.data.splitting import SPLITS
from detkit.data.voc_files import SPLIT_FILE, is_image_name
from detkit.data.writers import FORMATS, Format, NewSplit
from detkit.errors import ConfigError, DataError
from detkit.files import check_output, discard, stage, write_json, writing
from detkit.progress import Progress
from detkit.settings import check_choice
from detkit.signals import SIGNALS
from detkit.system import available_cores

#: The file that says how a folder was made; only a folder that has it is replaced.
RECORD = "conversion.txt"
#: Of an image that is written anew because it has to be turned.
JPEG_QUALITY = 95


@dataclass(frozen=True)
class ConvertResult:
    """What `convert` returns.

    Attributes:
        path: the new data set.
        images, boxes: split -> how many the new data set has.
        notes: what the format cannot hold, and what was changed.
        text: all of that in words.
    """

    path: Path
    images: dict[str, int]
    boxes: dict[str, int]
    notes: list[str] = field(default_factory=list)
    text: str = ""


def convert(
    data: DetectionDataModule,
    to: Literal["coco", "voc", "yolo", "csv"],
    output: str,
    images: Literal["link", "copy", "none"] = "link",
    overwrite: bool = False,
) -> ConvertResult:
    """Write a data set in another format; everything that the format cannot hold is counted and told.

    Args:
        data: The data set; from Python also its path.
        to: The format.
        output: The new folder.
        images: Link to the images, copy them, or neither. A copy of a photo that has an EXIF orientation is written as
            the boxes mean it, without the orientation.
        overwrite: Replace the whole folder where it is one that `detkit convert` made.

    Raises:
        DetkitError: an argument, a data set or a file that cannot be used. Nothing is written then.
    """
    check_choice("to", to, tuple(FORMATS))
    check_choice("images", images, ("link", "copy", "none"))
    target = Path(output).resolve()
    _check_target(target, overwrite)
    form = FORMATS[to]
    data = opened(data)
    data.prepare_data()
    present = {split: data.annotations(split) for split in SPLITS if split != "test" or data.test_split == "test"}
    splits: list[NewSplit] = []
    notes = [line for line in data.summary(tuple(present)).lines() if not line.startswith("warning: ")]
    if data.division() is not None:
        notes.append("the data set has no sets of its own; detkit has divided it (split, split_seed and sets decide)")
    names = _Names(form)
    for split, found in present.items():
        if found is None:
            continue
        _check_sources(data, found, target)
        shapes = _Shapes.of(found)
        notes += shapes.notes(split, images)
        splits.append(NewSplit(split, found, names.of(found, split), shapes.sizes, data.category_ids_of(split)))
    if not splits:
        raise DataError(f"{type(data).__name__} has no annotations to convert")
    notes += names.notes()
    part = stage(target.parent)
    try:
        with writing(target):
            new = part / "new"
            new.mkdir()
            notes += form.write(new, splits, data.class_names)
            if images != "none":
                _place_images(new, target, splits, form, images)
            if len(splits) == 1:  # else a single set is taken for a data set without sets, and divided
                write_json(new / SPLIT_FILE, {splits[0].name: ["*"]})
            result = _result(target, Path(output), splits, form, images, notes)
            (new / RECORD).write_text(result.text + "\n", encoding="utf-8", errors="backslashreplace")
            _exchange(new, target, part / "old")
    finally:
        discard(part)
    return result


def _result(
    target: Path, shown: Path, splits: Sequence[NewSplit], form: Format, images: str, notes: list[str]
) -> ConvertResult:
    counts = {split.name: len(split.annotations) for split in splits}
    left_out = {split.name: 0 if form.crowds else int(split.annotations.crowd.sum()) for split in splits}
    boxes = {split.name: len(split.annotations.boxes) - left_out[split.name] for split in splits}
    how = {"link": "links to the images", "copy": "copies of the images", "none": "without images"}[images]
    lines = [f"{form.name}, with {how}:" if images != "none" else f"{form.name}, {how}:"]
    lines += [f"  {name}: {counts[name]:,} images, {boxes[name]:,} boxes" for name in counts]
    if images == "none":
        folders = ", ".join(dict.fromkeys(form.folder_of(name) for name in counts))
        lines.append(f"the images belong into {folders}, under the names that the files have")
    return ConvertResult(target, counts, boxes, notes, "\n".join([*lines, *notes, f"written: {shown}"]))


# -- the folder ------------------------------------------------------------------------------------


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse, before the work begins, a folder that may not be replaced or made."""
    with writing(target):
        if target.exists() and not target.is_dir():
            raise ConfigError(f"{target}: is a file; choose another folder by --output")
        full = target.is_dir() and any(target.iterdir())
    if full and not (target / RECORD).is_file():
        raise ConfigError(
            f"{target}: is not empty, and was not made by detkit convert; choose another folder by --output"
        )
    if full and not overwrite:
        raise ConfigError(f"{target}: holds a data set already; --overwrite true replaces the whole folder")
    check_output(target.parent)


def _check_sources(data: DetectionDataModule, annotations: Annotations, target: Path) -> None:
    """Refuse a folder that is read from: it would be replaced, or be read as part of the data set."""
    paths = [str(getattr(data, "path", "")), annotations.root]
    paths += [annotations.path(index) for index in range(len(annotations))]
    for given in filter(None, paths):
        for path in {os.path.realpath(given), os.path.abspath(given)}:
            if os.path.commonpath([path, target]) == str(target):
                raise ConfigError(f"{target}: holds {path}, which is read; choose another folder by --output")


def _exchange(new: Path, target: Path, old: Path) -> None:
    """Put the new folder in the place of the old one, which is kept until then."""
    with SIGNALS.postponed():
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise


# -- names -----------------------------------------------------------------------------------------


class _Names:
    """Gives images their names in the new data set: their own, with the folders below the one that all are in.

    A name that is taken gets a number. One that some reader cannot take loses what it stumbles over: white space at
    the ends, colons, backslashes and control characters.
    """

    def __init__(self, form: Format) -> None:
        self.form = form
        self.renamed: list[tuple[str, str]] = []
        self._taken: set[str] = set()
        self._earlier: dict[str, tuple[str, Annotations, int]] = {}

    def of(self, annotations: Annotations, split: str) -> list[str]:
        """The names of a split's images, in their order."""
        if not self.form.shares_folder:
            self._taken, self._earlier = set(), {}
        paths = [os.path.abspath(annotations.path(index)) for index in range(len(annotations))]
        base = os.path.commonpath([os.path.dirname(path) for path in set(paths)])
        names, own = [], {}
        for index, path in enumerate(paths):
            if path in self._earlier and self._is_same(path, annotations, index):
                names.append(self._earlier[path][0])  # VOC lists an image in several sets, and has it once
                continue
            plain = os.path.relpath(path, base).replace(os.sep, "/")
            name = self._unique(self._readable(plain, path))
            if name != plain:
                self.renamed.append((path, f"{self.form.folder_of(split)}/{name}"))
            names.append(name)
            own[path] = (name, annotations, index)
        self._earlier |= own
        return names

    def notes(self) -> list[str]:
        """What was renamed, in words."""
        if not self.renamed:
            return []
        path, name = self.renamed[0]
        text = "since their names are taken, or cannot be read by every program"
        return [f"{len(self.renamed):,} images are renamed, {text}: {_printable(path)} is {name}"]

    def _is_same(self, path: str, annotations: Annotations, index: int) -> bool:
        _, other, number = self._earlier[path]
        mine, theirs = annotations.fields(index), other.fields(number)
        return annotations.annotated == other.annotated and all(
            np.array_equal(mine[name], theirs[name]) for name in PER_BOX
        )

    def _unique(self, name: str) -> str:
        stem, suffix = os.path.splitext(name)
        number = 1
        # Windows and macOS take names that differ by upper and lower case only for one.
        while (key := (os.path.splitext(name)[0] if self.form.by_stem else name).casefold()) in self._taken:
            number += 1
            name = f"{stem}_{number}{suffix}"
        self._taken.add(key)
        return name

    def _readable(self, name: str, path: str) -> str:
        name = re.sub(r"[:\\\x00-\x1f\x7f-\x9f\ud800-\udfff]", "_", name)
        if self.form.by_stem and not is_image_name(name):
            folder, last = os.path.split(name)
            last = "_" + last if last.startswith(".") else last
            if not is_image_name(last):
                with open_image(path) as image:
                    kind = str(image.format).lower()
                last += {"jpeg": ".jpg", "mpo": ".jpg"}.get(kind, f".{kind}")
            name = os.path.join(folder, last)
        stem, suffix = os.path.splitext(name)
        left, right = len(stem) - len(stem.lstrip()), len(stem) - len(stem.rstrip())
        return "_" * left + stem.strip() + "_" * right + suffix.rstrip()


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


# -- images ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shapes:
    """How the images of a split lie on the disk, and how their boxes mean them.

    Attributes:
        sizes: (I, 2) int, of the images as the boxes mean them.
        wrong: images of which the annotation gives another size.
        turned: images that their EXIF orientation turns, as the boxes mean them.
        stored: images with an EXIF orientation that the boxes do not follow.
    """

    sizes: np.ndarray
    wrong: list[str]
    turned: list[str]
    stored: list[str]

    @classmethod
    def of(cls, annotations: Annotations) -> _Shapes:
        """Read the images' headers; DataError for one that cannot be read."""
        sizes = np.stack([annotations.widths, annotations.heights], 1).astype(np.int64)
        wrong: list[int] = []
        turned: list[int] = []
        stored: list[int] = []
        paths = [annotations.path(index) for index in range(len(annotations))]
        with ThreadPoolExecutor(available_cores()) as pool, Progress("reading sizes", len(paths)) as bar:
            for index, shape in enumerate(pool.map(image_shape, paths)):
                stated = tuple(sizes[index].tolist())
                size = shape.size_for(stated, annotations.exif)
                if size != stated:
                    wrong.append(paths[index])
                    sizes[index] = size
                if shape.orientation != 1:
                    as_stored = size == shape.size != shape.upright or annotations.exif == "ignore"
                    (stored if as_stored else turned).append(paths[index])
                bar.step()
        return cls(sizes, wrong, turned, stored)

    def notes(self, split: str, images: str) -> list[str]:
        """What a user has to know of it, in words."""
        notes = []
        if self.wrong:
            text = "have another size than the annotation says; the image's size is written"
            notes.append(f"{split}: {len(self.wrong):,} images {text}, such as {_printable(self.wrong[0])}")
        turned = self.turned + self.stored
        if turned and images == "copy":
            text = "are written anew as the boxes mean them, without it"
            notes.append(
                f"{split}: {len(turned):,} images with an EXIF orientation {text}, such as {_printable(turned[0])}"
            )
            return notes
        kinds = (
            (self.turned, "are turned by their EXIF orientation, and so are the boxes: programs that do not apply it"),
            (self.stored, "have an EXIF orientation that the boxes do not follow: programs that apply it"),
        )
        for files, text in kinds:
            if files:
                advice = "misplace them (--images copy writes such images as the boxes mean them)"
                notes.append(f"{split}: {len(files):,} images {text} {advice}, such as {_printable(files[0])}")
        return notes


def _place_images(new: Path, target: Path, splits: Sequence[NewSplit], form: Format, how: str) -> None:
    """Link or copy all images into the new data set, which lies in `new` now and in `target` later."""
    total = sum(len(split.files) for split in splits)
    with Progress(f"images ({how})", total) as bar:
        for split in splits:
            folder = form.folder_of(split.name)
            for index, file in enumerate(split.files):
                place = new / folder / file
                if not os.path.lexists(place):  # VOC has an image of several sets once
                    place.parent.mkdir(parents=True, exist_ok=True)
                    if how == "link":
                        _link(split.annotations.path(index), place, (target / folder / file).parent)
                    else:
                        _copy(split.annotations, index, place)
                bar.step()


def _link(source: str, place: Path, folder: Path) -> None:
    """Make a link to an image, relative to the folder in which the link will lie."""
    real = os.path.realpath(source)
    with suppress(ValueError):  # on another drive of Windows
        real = os.path.relpath(real, folder)
    try:
        os.symlink(real, place)
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{folder}: links cannot be made there ({reason}); use --images copy") from error


def _copy(annotations: Annotations, index: int, place: Path) -> None:
    """Copy an image as it is or, where it has an EXIF orientation, write it as its boxes mean it."""
    path = annotations.path(index)
    if image_shape(path).orientation == 1:
        shutil.copyfile(path, place)
        return
    with open_image(path) as image:
        kind = "JPEG" if image.format == "MPO" else image.format
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(annotations.image(index)).save(place, format=kind, **options)
