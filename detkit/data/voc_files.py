"""Files in PASCAL VOC's layout, or beside images without any layout: folders, image sets, annotations and images.

Training (data/voc.py) and evaluation (evaluation/voc_result_files.py) both begin with `read_voc`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from detkit.data.annotations import Finding
from detkit.data.collecting import one_item
from detkit.data.input_files import is_inside, list_folder, read_bytes, short_repr, spelling, walk
from detkit.data.text_files import decode_text, encoding_of
from detkit.data.voc_xml import VOCImage, parse_annotation
from detkit.errors import DataError

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
    ".avif",
)
#: The splits, and the names that people give to their folders and files.
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
#: Each of these names -> its split.
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
#: VOC folders are searched so many levels deep.
FOLDER_DEPTH = 4
#: The image set of all annotation files.
ALL = "all"
#: Where a division is kept, in the data set's folder or a run's.
SPLIT_FILE = "split.json"
EMPTY = (
    "if images without one have no objects, give missing_annotations: empty (on the command line "
    "--data.missing_annotations empty)"
)


def is_image_name(path: str) -> bool:
    """Whether a file is an image by its suffix, and not hidden."""
    return path.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(path).startswith(".")


def image_files(folder: str) -> list[str]:
    """The paths of the images below a folder, sorted; what is hidden is left out."""
    return sorted(filter(is_image_name, walk(folder, hidden=False)))


class VOCEntry(NamedTuple):
    """An image of an image set.

    Attributes:
        image_id: its name in the set.
        folder: the folder below which its image lies.
        source: its annotation file.
        image: what that holds; nothing where it is missing.
        annotated: whether it is there.
    """

    image_id: str
    folder: str
    source: str
    image: VOCImage
    annotated: bool = True


class VOCSet(NamedTuple):
    """An image set as written below `path`: the VOC folders it is in, its images in their order, and the findings."""

    path: str
    folders: list[str]
    entries: list[VOCEntry]
    findings: list[Finding]

    def class_names(self) -> set[str]:
        """The class names that occur."""
        return {item.name for entry in self.entries for item in entry.image.objects}

    @property
    def annotated(self) -> bool:
        """Whether there is any annotation file."""
        return any(entry.annotated for entry in self.entries)


def read_voc(path: str, image_set: str, missing_annotations: str = "error") -> VOCSet:
    """Read the annotations of an image set; the images themselves may be missing.

    Args:
        path: a VOC folder, a VOCdevkit, the folder around that, or a folder with annotation files anywhere in it.
        image_set: such as "train", "2007/trainval" or "2007/trainval+2012/trainval"; where there are no image sets,
            "train", "val" or "test" is the folder of this name (or valid, ...), and "all" is everything.
        missing_annotations: "empty" takes an image without annotation file as one without objects; "error" takes it
            so only if the whole set has none, which is then not annotated.

    Raises:
        DataError: anything missing, malformed or outside the folder.
    """
    folders = find_folders(path)
    if not folders:
        return _loose_set(path, image_set, missing_annotations)
    parts = _split_set_name(image_set, folders)
    entries: list[VOCEntry] = []
    findings: list[Finding] = []
    seen: dict[str, str] = {}
    for folder, name in parts:
        files = VOCFiles(folder)
        ids = files.read_image_set(name)
        sources = [files.source(image_id) for image_id in ids]
        present = [os.path.exists(source) for source in sources]
        empty = missing_annotations == "empty" or not any(present)
        for image_id, source, there in zip(ids, sources, present, strict=True):
            with one_item():
                if not there and not empty:
                    raise DataError(f"{source}: annotation file does not exist; {EMPTY}")
                if image_id not in seen:
                    seen[image_id] = folder
                    image = parse_annotation(source) if there else VOCImage(0, 0, "", [])
                    entries.append(VOCEntry(image_id, files.images, source, image, there))
                elif seen[image_id] == folder:
                    findings.append(Finding("duplicate", source, None, f"listed twice in {name}; taken once"))
                else:
                    raise DataError(f"{source}: image id {image_id!r} is also in {seen[image_id]}; ids must be unique")
    return VOCSet(path, [folder for folder, _ in parts], entries, findings)


def image_sets(path: str) -> dict[str, str | None]:
    """The default image sets of train, val and test, None where there is none; {"all": "all"} without a split.

    Raises:
        DataError: the folder does not exist, or has no annotation file.
    """
    folders = find_folders(path)
    if not folders:
        names = {split_of_path(path, source) for source in annotation_files(path)}
        return {split: split if split in names else None for split in SPLIT_NAMES} if names != {ALL} else {ALL: ALL}
    sets = {year: _set_names(folder) for year, folder in folders.items()}
    prefix = {year: f"{year}/" if len(folders) > 1 else "" for year in folders}
    found: dict[str, str | None] = {}
    for split, known in SPLIT_NAMES.items():
        names_of = {year: {name.lower(): name for name in names} for year, names in sets.items()}
        named = [prefix[year] + of[name] for year, of in names_of.items() for name in known if name in of]
        found[split] = "+".join(named) or None
    if not found["train"]:
        both = [prefix[year] + "trainval" for year, names in sets.items() if "trainval" in names]
        found["train"] = "+".join(both) or None
    # The devkit's sets for one class, CLASS_SET, say nothing that SET does not.
    single = next(iter(sets.values()))
    single = [name for name in single if not any(name.endswith(f"_{other}") for other in single)]
    if len(folders) == len(single) == 1 and (not found["train"] or found["train"] == "trainval"):
        return {ALL: single[0]}
    if not found["train"]:
        raise DataError(
            f"{path}: has the image sets {', '.join(single[:30])}, and none is called train or trainval; name those "
            "to use as train, val and test (on the command line --data.train SET, ...)"
        )
    return found


def annotation_files(path: str) -> list[str]:
    """All annotation files below a folder, sorted; DataError if there is none."""
    if not os.path.isdir(path):
        raise DataError(f"{path}: folder does not exist")
    files = sorted(filter(_is_xml, walk(path, hidden=False)))
    if not files:
        raise DataError(f"{path}: no annotation (*.xml) in this folder, nor below it")
    return files


def _loose_set(path: str, image_set: str, missing_annotations: str) -> VOCSet:
    """The annotation files of a folder without image sets."""
    split = SPLIT_OF.get(image_set.lower(), image_set.lower())
    split_of = {file: split_of_path(path, file) for file in annotation_files(path)}
    files = [file for file, own in split_of.items() if split in (ALL, own)]
    if not files:
        names = ", ".join(sorted(set(split_of.values())))
        raise DataError(f"{path}: no image set {image_set!r}, and no folder of this name (there are: {names})")
    entries = []
    for file in files:
        with one_item():
            entries.append(VOCEntry(_stem(file, path), path, file, parse_annotation(file)))
    taken = {entry.image_id for entry in entries} | {spelling(os.path.basename(entry.image_id)) for entry in entries}
    taken |= {spelling(os.path.splitext(re.split(r"[/\\]", entry.image.filename)[-1])[0]) for entry in entries}
    rest = [file for file in image_files(path) if split in (ALL, split_of_path(path, file))]
    rest = [file for file in rest if spelling(os.path.splitext(os.path.basename(file))[0]) not in taken]
    if missing_annotations == "empty":
        empty = VOCImage(0, 0, "", [])
        entries += [VOCEntry(_stem(file, path), path, file, empty, annotated=False) for file in rest]
        rest = []
    findings = []
    if rest:
        some = os.path.relpath(rest[0], path)
        text = f"{len(rest):,} images have no annotation file, such as {some}: left out; {EMPTY}"
        findings.append(Finding("not_annotated", path, None, text, len(rest)))
    others = [file for file, own in split_of.items() if own == ALL]
    first = next((name for name in SPLIT_NAMES if name in split_of.values()), None)
    if others and split == first:  # told once
        findings.append(in_no_set(path, others, "annotation files"))
    return VOCSet(path, [path], entries, findings)


def in_no_set(path: str, files: Sequence[str], what: str) -> Finding:
    """What is told of files below a path that are in none of the folders of its splits."""
    some = os.path.relpath(min(files), path)
    return Finding(
        "in_no_set", path, None, f"{len(files):,} {what} are in no set, such as {some}: left out", len(files)
    )


def split_of_path(path: str, file: str) -> str:
    """The split whose folder, by any of its names, a file below a path is in; else "all"."""
    folders = os.path.relpath(file, path).lower().split(os.sep)[:-1]
    return next((SPLIT_OF[folder] for folder in folders if folder in SPLIT_OF), ALL)


def find_folders(path: str) -> dict[str, str]:
    """Year or other name ("VOC2007" is called "2007") -> VOC folder: `path` itself, or those below it.

    Empty where there is none; DataError if the folder does not exist.
    """
    if not os.path.isdir(path):
        raise DataError(f"{path}: folder does not exist")
    level = [path]
    for _ in range(FOLDER_DEPTH):
        if found := [folder for folder in level if _is_voc(folder)]:
            names = [_short(os.path.basename(os.path.abspath(folder))) for folder in found]
            if len(set(names)) < len(names):  # such as VOC2007 from two archives
                names = [os.path.relpath(folder, path).replace(os.sep, "/") for folder in found]
            return dict(zip(names, found, strict=True))
        level = [folder for each in level for folder in _folders_in(each)]
    return {}


def _folders_in(folder: str) -> list[str]:
    names = [name for name in list_folder(folder) if not name.startswith(".")]
    return [path for name in names if os.path.isdir(path := os.path.join(folder, name))]


def _is_voc(path: str) -> bool:
    return os.path.isdir(os.path.join(path, "Annotations")) and bool(_set_names(path))


def _short(name: str) -> str:
    match = re.fullmatch(r"VOC(\d{4})", name)
    return match.group(1) if match else name


def _split_set_name(name: str, folders: dict[str, str]) -> list[tuple[str, str]]:
    """ "2007/trainval+2012/train" to [(folder, "trainval"), ...]."""
    parts = []
    for part in name.split("+"):
        year, _, image_set = part.strip().rpartition("/")
        if not image_set or (not year and len(folders) > 1):
            raise DataError(
                f"image set {name!r}: several folders ({', '.join(folders)}); write for example "
                f"'{next(iter(folders))}/{image_set or 'train'}'"
            )
        if year and _short(year) not in folders:
            raise DataError(f"image set {name!r}: no folder {year!r} (there are: {', '.join(folders)})")
        parts.append((folders[_short(year)] if year else next(iter(folders.values())), image_set))
    return parts


class VOCFiles:
    """The files of one VOC folder: its image sets, annotation files and images.

    Attributes:
        images: the folder of the images.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.annotations = os.path.join(folder, "Annotations")
        named = os.path.join(folder, "JPEGImages")
        self.images = named if os.path.isdir(named) else folder
        sources = filter(_is_xml, walk(self.annotations, hidden=False))
        self._sources = {_stem(file, self.annotations): file for file in sources}
        self._ids = set(self._sources) | {_stem(file, self.images) for file in image_files(self.images)}
        self._by_spelling: dict[str, list[str]] = defaultdict(list)
        for image_id in sorted(self._ids):
            self._by_spelling[spelling(image_id)].append(image_id)

    def source(self, image_id: str) -> str:
        """The annotation file of an image, which may be missing; its spelling may differ from the id's."""
        alike = [name for name in self._by_spelling.get(spelling(image_id), []) if name in self._sources]
        if image_id not in self._sources and len(alike) == 1:
            return self._sources[alike[0]]
        return self._sources.get(image_id) or os.path.join(self.annotations, f"{image_id}.xml")

    def read_image_set(self, image_set: str) -> list[str]:
        """The ids listed in ImageSets/Main/<image_set>.txt.

        A line may be the path of an image, also on another machine, or of its annotation file. In the devkit's sets for
        one class, CLASS_SET.txt, a second column (1, -1 or 0) is dropped: all images listed belong to the set.

        Raises:
            DataError: no such file, an empty one, one in another encoding, or an id that leaves the folder.
        """
        path = os.path.join(_set_folder(self.folder), f"{image_set}.txt")
        if not is_inside(f"{image_set}.txt") or not os.path.isfile(path):
            shown = ", ".join(_set_names(self.folder)[:30]) or "none"
            raise DataError(f"{path}: image set does not exist (available: {shown}); name one of these")
        content = read_bytes(path)
        # Names that are not UTF-8 are kept where files have them.
        is_utf8 = encoding_of(content) == "utf-8"
        text = content.decode("utf-8", "surrogateescape") if is_utf8 else decode_text(content, path)
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        if not lines:
            raise DataError(f"{path}: the image set is empty")
        ids = []
        for line in lines:
            image_id = self._id_of(line)
            if image_id is None and not is_inside(line):
                raise DataError(f"{path}: image id {short_repr(line)} leaves the data set's folder; refused")
            if image_id is None and not line.isprintable():
                decode_text(content, path)  # refuses it, and names the likely encoding
            ids.append(_candidates(line)[-1] if image_id is None else image_id)
        return ids

    def _id_of(self, line: str) -> str | None:
        """The id of a file that a line means; None where there is none."""
        candidates = [name for name in _candidates(line) if is_inside(name)]
        if found := next((name for name in candidates if name in self._ids), None):
            return found
        alike = (self._by_spelling.get(spelling(name), []) for name in candidates)
        return next((names[0] for names in alike if len(names) == 1), None)


def read_image_set(folder: str, image_set: str) -> list[str]:
    """The ids of an image set; see `VOCFiles.read_image_set`."""
    return VOCFiles(folder).read_image_set(image_set)


def _candidates(line: str) -> list[str]:
    """The ids that a line may mean; the last one is the likeliest where there is no such file."""
    plain = re.sub(r"\s+\S+\.xml$", "", line)
    whole = [plain, _without_suffix(plain), _without_suffix(re.sub(r"\s+(-1|0|1)$", "", plain))]
    paths = [name.replace("\\", "/") for name in whole[1:]]
    # A path on another machine is taken from VOC's own folders on.
    ends = [re.split(r"/(?:JPEGImages|Annotations)/", path)[-1] for path in paths]
    parts = [end.split("/") for end in ends if is_inside(end)]
    ends += ["/".join(part[start:]) for part in parts for start in range(1, len(part))]
    return list(dict.fromkeys([*whole[:1], *paths, *ends, whole[-1]]))


def _without_suffix(name: str) -> str:
    return os.path.splitext(name)[0] if is_image_name(name) or _is_xml(name) else name


def _is_xml(file: str) -> bool:
    return file.lower().endswith(".xml")


def _stem(file: str, folder: str) -> str:
    return os.path.splitext(os.path.relpath(file, folder))[0].replace(os.sep, "/")


def _set_folder(folder: str) -> str:
    """ImageSets/Main or, where that is missing, ImageSets."""
    main = os.path.join(folder, "ImageSets", "Main")
    return main if os.path.isdir(main) else os.path.dirname(main)


def _set_names(folder: str) -> list[str]:
    sets = _set_folder(folder)
    return [name[:-4] for name in list_folder(sets) if name.endswith(".txt")] if os.path.isdir(sets) else []
