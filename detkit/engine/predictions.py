"""Predictions, written to disk while they are made: in one of several formats, with drawings and crops on request.

Neither torch nor Lightning is imported; `detkit.engine.prediction_writer` follows a Trainer.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detkit.data.image_io import open_image
from detkit.data.inputs import Input
from detkit.detections import Detections, Selection, plain_fields
from detkit.engine.prediction_formats import FORMATS, MARK, Classes, Predicted
from detkit.errors import ConfigError, DataError
from detkit.files import check_output, discard, overwrite_note, publish, stage, writing
from detkit.settings import check_choice

NAME, STOPPED = "predictions", "predictions.stopped"
PICTURES = ("predictions", "crops")  # the folders of the drawings and the crops
SHOWN = 0.5  # least score of what people look at, unless they say another
SKIPPED = 3  # an exit code
LISTED = 100  # images that could not be read
MAX_STEM = 220  # bytes; file systems take names of 255, of which numbers and ".jpg" are some
COMMENT = b"drawn by detkit"  # in their JPEG files
FormatName = Literal["coco", "voc", "yolo", "csv", "label_studio"]


class PredictionFiles:
    """What `detkit predict` writes: by default `predictions.json` in COCO's results format.

    Each process writes its part (`begin`, `write`, `close`), and one joins them (`join`).

    Args:
        output: the folder to write into; the folder of the checkpoint's run by default.
        format: coco (predictions.json), csv (predictions.csv), yolo (a text file an image, in predictions_yolo/), voc
            (comp4 files, in predictions_voc/) or label_studio (pre-annotations, in predictions_label_studio.json).
        classes: names of the classes to keep; all by default.
        score_threshold: least score, in 0..1. By default all that the detector gives are written, and those from 0.5
            are drawn, cropped and given to Label Studio.
        agnostic_nms: suppress across classes too, at an IoU of 0.5.
        draw: write each image with its detections drawn into `predictions/`.
        crops: write what is within each box into `crops/CLASS/`.
        on_bad_image: what to do with an image that cannot be read: "skip", and list it at the end, with exit code 3; or
            "error", to stop there.

    Attributes:
        skipped: image id -> why it could not be read.
        num_images, num_written: how many images were read, and how many detections of them were written.
        written: the file or folder that was written; None before.
    """

    def __init__(
        self,
        output: str | None = None,
        format: FormatName = "coco",
        classes: list[str] | None = None,
        score_threshold: float | None = None,
        agnostic_nms: bool = False,
        draw: bool = False,
        crops: bool = False,
        on_bad_image: Literal["error", "skip"] = "skip",
    ) -> None:
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ConfigError(f"predictions.score_threshold is {score_threshold}; scores go from 0 to 1")
        check_choice("predictions.format", format, tuple(FORMATS))
        check_choice("predictions.on_bad_image", on_bad_image, ("error", "skip"))
        shown = SHOWN if score_threshold is None else score_threshold
        least = shown if format == "label_studio" else score_threshold or 0.0
        self.selection = Selection(least, classes, agnostic_nms)
        self.output, self.draw, self.crops, self.shown_from = output, draw, crops, shown
        self.format, self.skips_unreadable = FORMATS[format], on_bad_image == "skip"
        self.folder = Path(output) if output else Path()
        self.written: Path | None = None
        self.skipped: dict[str | int, str] = {}
        self.num_images = self.num_written = 0
        self._file: Any = None

    def use_folder(self, folder: Path) -> None:
        """Write into this folder, the checkpoint's, unless the user names another."""
        if not self.output:
            self.folder = folder

    @property
    def paths(self) -> list[Path]:
        """What may be written, besides pictures."""
        return [self.folder / f"{name}{self.format.suffix}" for name in (NAME, STOPPED)]

    def check(self, class_names: list[str], category_ids: Sequence[int] | None) -> None:
        """Take the detector's classes, and the ids to write.

        Raises:
            ConfigError: a class that there is not, or an output that cannot be written or is not detkit's own.
        """
        check_output(self.folder)
        self.selection.labels(class_names)
        self._classes = Classes(class_names, category_ids)
        option = "choose another folder by --predictions.output"
        for folder in self._picture_folders():
            for path in [folder, *folder.rglob("*")]:
                if path.is_symlink() or (path.is_file() and not is_drawing(path)):
                    raise ConfigError(f"{path}: was not drawn by detkit and might be overwritten; {option}")
        for path in self.paths if self.format.is_folder else []:
            if path.is_dir() and any(path.iterdir()) and not (path / MARK).is_file():
                raise ConfigError(f"{path}: was not written by detkit and would be replaced; {option}")

    def _picture_folders(self) -> list[Path]:
        return [self.folder / name for name, wanted in zip(PICTURES, (self.draw, self.crops), strict=True) if wanted]

    def begin(self, parts: Path | None = None, rank: int = 0) -> Path:
        """Open the part of this process, in the stage of all; the first process makes it (None)."""
        self._drawn: set[str] = set()
        # Detections of this process, and those of them that are drawn.
        self.num_detections = 0
        self.num_drawn = 0
        self._parts = stage(self.folder) if parts is None else parts
        self._file = self._part(rank).open("w", encoding="utf-8")
        return self._parts

    def write(
        self, image_id: str | int, file: str, size: tuple[int, int], detections: Detections, pixels: np.ndarray | None
    ) -> None:
        """Write the detections of an image.

        Args:
            image_id: as in the data set.
            file: the name of its file.
            size: width and height.
            detections: of the image, in its pixels.
            pixels: uint8 (H, W, 3); needed where it `needs_pixels`.
        """
        with writing(self.folder):
            chosen = self.selection(detections, self._classes.names)
            if self.needs_pixels:
                self._write_pictures(image_id, pixels, chosen)
            self._file.write(json.dumps([image_id, [file, size, *plain_fields(chosen)]]) + "\n")

    def write_error(self, image_id: str | int, error: str) -> None:
        """Note why an image cannot be read."""
        with writing(self.folder):
            self._file.write(json.dumps([image_id, error]) + "\n")

    @property
    def needs_pixels(self) -> bool:
        """Whether something is drawn."""
        return self.draw or self.crops

    @property
    def is_open(self) -> bool:
        """Whether there is something to keep."""
        return self._file is not None

    def close(self) -> None:
        """Close the part of this process."""
        with writing(self.folder):
            self._file.close()

    def discard(self) -> None:
        """Delete all parts that are left."""
        discard(self._parts)

    def join(self, stem: str, processes: int = 1) -> None:
        """Join the closed parts of all processes to `NAME`, or `STOPPED` where the work has not come to its end."""
        with writing(self.folder):
            parts = [self._part(rank) for rank in range(processes)]
            name = f"{stem}{self.format.suffix}"
            self.format.write(self._images(parts), self._parts / name, self._classes)
            for part in parts:
                part.unlink()
            drawn = {path.relative_to(self._parts) for folder in PICTURES for path in (self._parts / folder).rglob("*")}
            replaced = self.format.is_folder and (self.folder / name / MARK).is_file()
            if replaced:  # its files may be of other images
                shutil.rmtree(self.folder / name)
        replaced |= publish(self._parts, self.folder)
        self.overwrite_note = overwrite_note(replaced, "--output")
        self.written = self.folder / name
        # Drawings of other images are of other predictions.
        for folder in self._picture_folders() if stem == NAME else []:
            for path in folder.rglob("*"):
                if path.is_file() and path.relative_to(self.folder) not in drawn and is_drawing(path):
                    path.unlink(missing_ok=True)

    def _part(self, rank: int) -> Path:
        return self._parts / f"{rank}.part"

    def _images(self, parts: Sequence[Path]) -> Iterator[Predicted]:
        """The images of all processes, each once: samplers repeat images so that every process has as many."""
        written: set[str | int] = set()
        for part in parts:
            with part.open(encoding="utf-8") as lines:
                for line in lines:
                    image_id, content = json.loads(line)
                    if image_id in written:
                        continue
                    written.add(image_id)
                    if isinstance(content, str):
                        self.skipped[image_id] = content
                    else:
                        found = Predicted(image_id, *content)
                        self.num_images += 1
                        self.num_written += len(found.scores)
                        yield found

    @property
    def exit_code(self) -> int:
        """Of the command: `SKIPPED` where images could not be read, else 0."""
        return SKIPPED if self.skipped else 0

    # -- what is said ----------------------------------------------------------------------------

    def how_to_go_on(self) -> str:
        """Where the predictions of a command that was stopped are; "" where none were kept."""
        kept = f"What was predicted is in {self.written}; the same command begins again with the first image."
        return "" if self.written is None else kept

    def report(self, processes: int = 1) -> str:
        """Where the predictions are and, where one process has counted them all, how many are drawn."""
        lines = [f"{self.num_images:,} images, {self.num_written:,} detections"]
        lines.append(f"predictions: {self.written}{self.overwrite_note}")
        share = f"{self.num_drawn:,} of {self.num_detections:,} detections"
        limit = f"those from a score of {self.shown_from:g} (--score_threshold)"
        counts = f" ({share}, {limit})" if processes == 1 else ""
        for verb, folder, wanted in zip(("drawn", "cropped"), PICTURES, (self.draw, self.crops), strict=True):
            if wanted:
                lines.append(f"{verb}: {self.folder / folder}{counts}")
        if self.skipped:
            errors = list(self.skipped.values())
            count = f"{len(errors):,} image{'s' if len(errors) > 1 else ''}"
            lines.append(f"skipped: {count} that cannot be read (--on_bad_image error stops at the first):")
            lines += [f"  {error}" for error in errors[:LISTED]]
            lines += [f"  and {len(errors) - LISTED:,} more"] if len(errors) > LISTED else []
        return "\n".join(lines)

    # -- pictures --------------------------------------------------------------------------------

    def _write_pictures(self, image_id: str | int, pixels: Any, detections: Detections) -> None:
        import detkit

        name, class_names = self._name(image_id), self._classes.names
        self.num_detections += len(detections["scores"])
        self.num_drawn += int((detections["scores"] >= self.shown_from).sum())
        if self.draw:
            picture = detkit.draw(pixels, detections, class_names=class_names, score_threshold=self.shown_from)
            self._save(picture, PICTURES[0], f"{name}.jpg")
        if self.crops:
            rows = zip(*(detections[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
            for number, (box, score, label) in enumerate(rows, 1):
                if score >= self.shown_from:
                    self._save(crop(pixels, box), PICTURES[1], _plain(class_names[label - 1]), f"{name}-{number}.jpg")

    def _save(self, picture: Any, *parts: str) -> None:
        path = self._parts.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90, comment=COMMENT)

    def _name(self, image_id: str | int) -> str:
        """The stem of an image's pictures, which no other image has, whatever the case of its letters."""
        stem = _plain(re.sub(r"(?i)\.jpe?g$", "", str(image_id)))
        stem = stem.encode()[:MAX_STEM].decode(errors="ignore")
        name, number = stem, 1
        while name.casefold() in self._drawn:  # upper and lower case are one to Windows and macOS
            number += 1
            name = f"{stem}-{number}"
        self._drawn.add(name.casefold())
        return name


def crop(pixels: np.ndarray, box: Sequence[float]) -> Any:
    """The pixels that a box (x1, y1, x2, y2) touches of a uint8 image (H, W, 3), at least one, as a PIL image."""
    from PIL import Image

    height, width = pixels.shape[:2]
    x1, y1 = (min(max(int(value), 0), side - 1) for value, side in zip(box[:2], (width, height), strict=True))
    x2, y2 = max(-int(-box[2] // 1), x1 + 1), max(-int(-box[3] // 1), y1 + 1)
    return Image.fromarray(np.ascontiguousarray(pixels[y1:y2, x1:x2]))


def is_drawing(path: str | Path) -> bool:
    """Whether a file is a picture of `PredictionFiles`."""
    try:
        with open_image(path) as picture:
            return picture.info.get("comment") == COMMENT
    except DataError:
        return False


def without_drawings(images: Iterable[Input], source: Any) -> list[Input]:
    """The images that detkit did not draw itself; ``source`` is what the user named.

    Raises:
        DataError: there is none.
    """
    kept = [each for each in images if not ({*Path(each.path).parts} & {*PICTURES} and is_drawing(each.path))]
    if not kept:
        raise DataError(f"{source}: has no image that detkit did not draw itself")
    return kept


def _plain(name: str) -> str:
    # Image ids come from annotation files of any origin: only plain characters reach the file system.
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "image"
