"""What to predict on: image files, folders, patterns, lists of files, and videos."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detkit.data.image_io import open_image, read_image
from detkit.data.input_files import check_regular, walk
from detkit.data.text_files import read_text
from detkit.data.voc_files import IMAGE_SUFFIXES
from detkit.errors import DataError
from detkit.files import path_alike
from detkit.settings import check_range

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
LIST_SUFFIXES = (".txt", ".lst", ".list")


class Input(NamedTuple):
    """An image to predict on.

    Attributes:
        image_id: its path below the folder that all inputs have in common, with "/"; of a frame of a video
            "clip.mp4/000120".
        path: the file.
        frame: its number in a video, from 0; None for an image.
    """

    image_id: str
    path: str
    frame: int | None = None


@dataclass
class Inputs:
    """Images to predict on, and the files that were left out.

    Attributes:
        images: in the order of the inputs, of a folder by name.
        skipped: why -> files that were found but are not read.
    """

    images: list[Input]
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def note(self) -> str:
        """What was left out, by kind with three examples; "" if nothing was."""
        kinds = [
            f"{len(files):,} {kind} ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''})"
            for kind, files in sorted(self.skipped.items())
        ]
        return f"not read: {'; '.join(kinds)}" if kinds else ""


def find_inputs(inputs: str | Sequence[str], every: int = 1) -> Inputs:
    """The images that paths and patterns mean.

    Args:
        inputs: one or more of: an image file; a folder, which is searched with the folders in it for whatever opens as
            an image; a pattern with `*` or `**`; a text file with a path a line, relative to it or to the working
            directory; a video.
        every: of a video every how many-th frame is read, from the first.

    Raises:
        ConfigError: ``every`` is less than 1.
        DataError: an input is not there or holds no image, or a video cannot be read.
    """
    check_range("every", every, 1)
    entries = [inputs] if isinstance(inputs, str) else [str(each) for each in inputs]
    if not entries:
        raise DataError("no input: give images, folders, patterns, a list of files, or a video")
    skipped: dict[str, list[str]] = defaultdict(list)
    bases: list[str] = []
    found: list[str] = []
    for entry in entries:
        base, files = _resolve(entry, skipped)
        bases.append(os.path.abspath(base))
        found += files
    root = _common(bases)
    images: list[Input] = []
    seen: set[str] = set()
    for file in found:
        path = os.path.abspath(file)
        if path in seen:
            skipped["named twice"].append(file)
            continue
        seen.add(path)
        image_id = os.path.relpath(path, root).replace(os.sep, "/")
        if _is_video(file):
            frames = range(0, count_frames(file), every)
            images += [Input(f"{image_id}/{frame:06d}", file, frame) for frame in frames]
        else:
            images.append(Input(image_id, file))
    return Inputs(images, dict(skipped))


def _resolve(entry: str, skipped: dict[str, list[str]]) -> tuple[str, list[str]]:
    """The folder that the files of an input are relative to, and the files."""
    if os.path.isdir(entry):
        return entry, _images_below(entry, skipped)
    if not os.path.lexists(entry) and glob.has_magic(entry):
        files = sorted(path for path in glob.glob(entry, recursive=True) if not os.path.isdir(path))
        images = [file for file in files if _take(file, file, skipped)]
        if not images:
            raise DataError(f"{entry}: no image fits this pattern")
        return _common(_folders(images)), images
    if not os.path.lexists(entry):
        alike = path_alike(Path(entry))
        raise DataError(f"{entry}: no such file or folder{f'; did you mean {alike}?' if alike else ''}")
    check_regular(entry, "input")
    if entry.lower().endswith(LIST_SUFFIXES):
        files = read_list(entry, read_text(entry), os.path.dirname(entry))
        return _common(_folders(files)), files
    if not (_is_video(entry) or entry.lower().endswith(IMAGE_SUFFIXES)) and not _opens(entry):
        kinds, videos = ", ".join(IMAGE_SUFFIXES), ", ".join(VIDEO_SUFFIXES)
        raise DataError(
            f"{entry}: not an image file; give a folder, an image ({kinds}), a list of files (.txt) or a video "
            f"({videos})"
        )
    return os.path.dirname(entry) or os.curdir, [entry]


def read_list(source: str, text: str, folder: str) -> list[str]:
    """The files that a list names, a line each; those that are not there are told when they are read.

    Args:
        source: of the list, for messages.
        text: its content; lines that begin with # are left out.
        folder: names are relative to it, or else to the working directory.

    Raises:
        DataError: none of the files is there.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    files = []
    for line in lines:
        name = line if os.path.exists(line) else line.replace("\\", "/")
        beside = os.path.join(folder, name)
        files.append(beside if os.path.exists(beside) or not os.path.exists(name) else name)
    if not any(map(os.path.exists, files)):
        what = f"none of its {len(files):,} files is there, such as {lines[0][:200]}" if files else "names no file"
        raise DataError(f"{source}: {what}; wanted is a path a line, relative to the list or the working directory")
    return files


def _images_below(folder: str, skipped: dict[str, list[str]]) -> list[str]:
    above = len(os.path.join(folder, ""))
    images = [file for file in sorted(walk(folder)) if _take(file, file[above:], skipped)]
    if not images:
        note = Inputs([], skipped).note()
        raise DataError(
            f"{folder}: no image below this folder ({', '.join(IMAGE_SUFFIXES)}){f'; {note}' if note else ''}"
        )
    return images


def _take(file: str, shown: str, skipped: dict[str, list[str]]) -> bool:
    """Whether a file that was found is an image; one that is not is counted."""
    name = os.path.basename(file)
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        skipped["hidden"].append(shown)
    elif suffix in VIDEO_SUFFIXES:
        skipped["videos, which are to be named one by one"].append(shown)
    elif suffix in IMAGE_SUFFIXES or _opens(file):
        return True
    else:
        skipped[suffix or "without a suffix"].append(shown)
    return False


def _opens(file: str) -> bool:
    """Whether a file begins as an image does."""
    try:
        with open_image(file):
            return True
    except DataError:
        return False


def _is_video(file: str) -> bool:
    return file.lower().endswith(VIDEO_SUFFIXES)


def _folders(files: Sequence[str]) -> list[str]:
    return [os.path.dirname(os.path.abspath(file)) for file in files]


def _common(folders: Sequence[str]) -> str:
    try:
        return os.path.commonpath(folders)
    except ValueError:  # on several drives
        return os.path.abspath(os.curdir)


def count_frames(path: str) -> int:
    """How many frames of a video can be read: they are counted, since files often state another number.

    Raises:
        DataError: there is none.
    """
    check_regular(path, "video")
    count = sum(1 for _ in _grab(path))
    if not count:
        raise DataError(f"{path}: no frame of this video can be read; it is damaged, or OpenCV cannot decode it")
    return count


def _grab(path: str) -> Iterator[None]:
    import cv2

    video = cv2.VideoCapture(path)
    try:
        while video.grab():
            yield
    finally:
        video.release()


class InputReader:
    """Reads inputs; the frames of a video quickest in their order."""

    def __init__(self) -> None:
        self._video: Video | None = None

    def read(self, image: Input) -> np.ndarray:
        """The pixels, uint8 (H, W, 3) RGB; DataError if they cannot be read."""
        _, path, frame = image
        if frame is None:
            return read_image(path)
        if self._video is None or self._video.path != path or self._video.next > frame:
            self._video = Video(path)
        return self._video.read(frame)


class Video:
    """The frames of a video, read by OpenCV from the first to the last.

    Attributes:
        path: the file.
        next: the number of the next frame.
    """

    def __init__(self, path: str) -> None:
        import cv2

        self.path, self.next = path, 0
        self._capture = cv2.VideoCapture(path)

    def read(self, number: int) -> np.ndarray:
        """The pixels of a frame that was not read yet, uint8 (H, W, 3) RGB; those before it are passed over.

        Raises:
            DataError: it cannot be read.
        """
        while self.next < number and self._capture.grab():
            self.next += 1
        good, pixels = self._capture.read()
        if not good or self.next != number:
            raise DataError(f"{self.path}: frame {number} cannot be read")
        self.next += 1
        return np.ascontiguousarray(pixels[..., ::-1])
