"""Where the files of a data set in YOLO's layout lie: its class names, its images and their label files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from detkit.data.annotations import Finding
from detkit.data.input_files import short_repr, spelling, walk
from detkit.data.text_files import read_start, read_text
from detkit.data.voc_files import SPLIT_NAMES, SPLIT_OF, image_files, in_no_set, is_image_name
from detkit.errors import DataError

#: Files with a class name a line, also in subfolders; Roboflow writes the last one.
CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
#: How YAML says that there is nothing.
NOTHING = ("", "~", "null", "None")


class YOLOFiles(NamedTuple):
    """A data set's files.

    Attributes:
        root: its folder.
        class_names: in the order of their numbers, from 0.
        images: split -> image files; "all" where there is no split.
        labels: image file -> label file, or None.
        findings: what was found.
        keypoints: lines go on with keypoints after the box.
    """

    root: str
    class_names: list[str]
    images: dict[str, list[str]]
    labels: dict[str, str | None]
    findings: list[Finding]
    keypoints: bool = False


def find_files(path: str) -> YOLOFiles:
    """Find what belongs to a data set in YOLO's layout.

    Args:
        path: data.yaml, obj.data, or the folder of them.

    Raises:
        DataError: neither class names nor images are found there, or a file in between is missing or malformed.
    """
    findings: list[Finding] = []
    description = _description(Path(path))
    if description is None:
        root, content = Path(path), dict[str, Any]()
        names = _class_names_below(path)
        images = _images_of_folders(root)
    else:
        root, content = description[0], dict(description[1])
        places = _Places(root, path)
        names = _class_names(content.get("names"), places)
        images = _images_of_entries(content, places, findings) or _images_of_folders(root)
        findings += places.findings()
    if list(images) == ["train"]:
        images = {"all": images["train"]}
    files = [file for split in images.values() for file in split]
    if not files:
        raise DataError(f"{path}: no image there")
    if any(not Path(file).is_relative_to(root) for file in files):  # data.yaml in a folder beside that of the images
        root = Path(os.path.commonpath([root.absolute(), *map(os.path.abspath, files)]))
        images = {split: [os.path.abspath(file) for file in found] for split, found in images.items()}
    labels = _label_files(root, [file for split in images.values() for file in split], findings)
    return YOLOFiles(str(root), names, images, labels, findings, "kpt_shape" in content)


# -- class names -----------------------------------------------------------------------------------


def _description(path: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """The folder and the content of data.yaml or obj.data; None where there is neither."""
    files = [path] if path.is_file() else [*sorted(path.glob("*.y*ml")), *sorted(path.glob("*.data"))]
    files += [] if path.is_file() else sorted(path.glob("data/*.data"))
    for file in files:
        text = read_text(file)
        if file.suffix == ".data":
            pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
            return path if path.is_dir() else path.parent, {key.strip(): value.strip() for key, _, value in pairs}
        try:
            # All values are texts: to YAML, a class called `no` were False.
            content = yaml.load(text, Loader=yaml.BaseLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DataError(f"{file}: not YAML ({str(error).splitlines()[0]})") from None
        if isinstance(content, dict) and "names" in content:
            return file.parent, content
    if path.is_file():
        raise DataError(f"{path}: holds no `names:` with the classes")
    return None


def _class_names_below(path: str) -> list[str]:
    """The class names in classes.txt or the like; the same file may be in several folders."""
    files = [file for file in walk(path, hidden=False) if os.path.basename(file).lower() in CLASS_FILES]
    files.sort(key=lambda file: (file.count(os.sep), file))
    if not files:
        raise DataError(f"{path}: no data.yaml, obj.data, classes.txt or obj.names, which name the classes")
    names = _class_lines(files[0])
    for file in files[1:]:
        if _class_lines(file) != names:
            raise DataError(f"{path}: {files[0]} and {file} name other classes; make them the same")
    return names


def _class_names(names: Any, places: _Places) -> list[str]:
    path = places.source
    if isinstance(names, str) and "," in names:
        names = [name.strip() for name in names.split(",")]
    if isinstance(names, str) and names not in NOTHING and not names.isdecimal():
        return _class_lines(places.find(places.root, names))
    if isinstance(names, dict):
        numbers = {int(number): name for number, name in names.items() if number.isdecimal()}
        if sorted(numbers) != list(range(len(names))):
            raise DataError(
                f"{path}: the numbers of `names` are to be 0, 1, ..., {len(names) - 1}, not {short_repr(list(names))}"
            )
        names = [numbers[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: `names` is to be a list of the classes, or of number: class")
    return names


def _class_lines(path: Path | str) -> list[str]:
    """A class name a line; an empty line in between would shift the numbers."""
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if "" in lines:
        number = lines.index("") + 1
        raise DataError(f"{path}: line {number} is empty, so the numbers of the classes are unclear; name that class")
    return lines


# -- images ----------------------------------------------------------------------------------------


def _images_of_entries(content: Mapping[str, Any], places: _Places, findings: list[Finding]) -> dict[str, list[str]]:
    """The images that the entries of data.yaml or obj.data name; a val or test set that is missing is told."""
    root, path = places.root, places.source
    given = content.get("path")
    base = Path(os.path.normpath(root / given)) if isinstance(given, str) and given not in NOTHING else root
    if not base.is_dir():
        base, places.moved[str(given)] = root, "."  # a path of the machine where the file was written
    images: dict[str, list[str]] = {}
    for split, names in SPLIT_NAMES.items():
        entry = next((content[name] for name in names if content.get(name, "") not in NOTHING), None)
        for each in [] if entry is None else entry if isinstance(entry, list) else [entry]:
            if not isinstance(each, str):
                raise DataError(f"{path}: `{split}` is to be a folder or a list of them")
            try:
                found = _images_of(base, each, places)
            except DataError as error:
                if split == "train":
                    raise
                findings.append(Finding("no_such_set", path, None, f"{error}: there is no {split} set"))
            else:
                images.setdefault(split, []).extend(found)
    return images


def _images_of_folders(root: Path) -> dict[str, list[str]]:
    """The images below folders that are named as splits are, in any of YOLO's orders; else all images."""
    images: dict[str, list[str]] = {}
    for name, split in SPLIT_OF.items():
        folders = (root / part for part in (f"{name}/images", f"images/{name}", name))
        if folder := next((folder for folder in folders if folder.is_dir()), None):
            images.setdefault(split, []).extend(image_files(str(folder)))
    return images or {"all": image_files(str(root))}


def _images_of(base: Path, entry: str, places: _Places) -> list[str]:
    """The images of an entry: a folder, a file that lists images, or an image."""
    found = places.find(base, entry, outside=True)
    if found.is_dir():
        if not (images := image_files(str(found))):
            raise DataError(f"{places.source}: {short_repr(entry)} has no images")
        return images
    if is_image_name(str(found)):
        return [str(found)]
    lines = (line.strip() for line in read_text(found).splitlines())
    return [str(places.find(found.parent, line, str(found))) for line in lines if line]


class _Places:
    """Finds the files and folders that data.yaml, obj.data and the lists they name speak of.

    A name is taken as it is written, from the folder of the file or from `path`. Where nothing is there, its first
    folders, which may be those of another machine, are left out, but never one that is called as a split is: what is
    left would be another set.

    Args:
        root: the folder of data.yaml or obj.data.
        source: that file, for messages.
    """

    def __init__(self, root: Path, source: str) -> None:
        self.root = root
        self.source = source
        self.moved: dict[str, str] = {}  # what was found elsewhere than it says

    def find(self, folder: Path, name: str, source: str | None = None, outside: bool = False) -> Path:
        """The path that a name means.

        Args:
            folder: where to search before the root.
            name: the path, of any system.
            source: the file that names it, for messages.
            outside: it may lie beside the folder or the root, too.

        Raises:
            DataError: there is no such path, or it is elsewhere.
        """
        plain = name.replace("\\", "/")
        bases = list(dict.fromkeys((folder, self.root)))
        for base in bases:
            path = Path(os.path.abspath(base / plain))
            top = Path(os.path.abspath(base))
            top = top.parent if outside else top
            if path != top and path.is_relative_to(top) and os.path.exists(path):
                return base / plain if ".." not in PurePosixPath(plain).parts else path
        parts = [part for part in PurePosixPath(plain).parts if part != "/"]
        for base in bases:
            for start in range(len(parts)):
                if SPLIT_OF.keys() & set(parts[:start]):
                    break
                path = base.joinpath(*parts[start:])
                if ".." not in parts[start:] and os.path.exists(path):
                    if set(parts[:start]) != {".."}:  # Roboflow writes "../train/images" of a folder beside data.yaml
                        self.moved[name] = os.path.relpath(path, self.root)
                    return path
        raise DataError(f"{source or self.source}: {short_repr(name)} is not there (searched below {folder})")

    def findings(self) -> list[Finding]:
        """One finding on the names that were found without their first folders."""
        if not self.moved:
            return []
        name, path = next(iter(self.moved.items()))
        text = (
            f"{len(self.moved):,} paths, perhaps of another machine, are not there and are taken without their first "
            f"folders, such as {short_repr(name)}: {path}"
        )
        return [Finding("other_name", self.source, None, text, len(self.moved))]


# -- label files -----------------------------------------------------------------------------------


def _label_files(root: Path, images: Sequence[str], findings: list[Finding]) -> dict[str, str | None]:
    """Image -> label file: in the folder labels beside images, beside the image, or anywhere if the name is unique.

    Names may differ by upper and lower case, or by the Unicode form of accents.
    """
    files = list(walk(str(root), hidden=False))
    texts = [file for file in files if file.lower().endswith(".txt")]
    texts = [file for file in texts if os.path.basename(file).lower() not in CLASS_FILES]
    by_path: dict[str, list[str]] = defaultdict(list)
    by_name: dict[str, list[str]] = defaultdict(list)
    for file in sorted(texts):
        by_path[spelling(os.path.relpath(file, root))].append(file)
        by_name[spelling(os.path.basename(file))].append(file)
    names = defaultdict(set)
    for image in images:
        names[spelling(Path(image).with_suffix(".txt").name)].add(image)
    labels: dict[str, str | None] = {}
    for image in images:
        candidates = _label_candidates(image, root)
        exact = (file for file in candidates if os.path.isfile(os.path.join(root, file)))
        if found := next(exact, None):
            labels[image] = os.path.join(root, found)
            continue
        alike = [file for candidate in candidates for file in by_path[spelling(candidate)]]
        name = spelling(Path(image).with_suffix(".txt").name)
        alike = alike or (by_name[name] if len(names[name]) == 1 else [])
        labels[image] = alike[0] if len(alike) == 1 else None
    images_of: dict[str, list[str]] = defaultdict(list)
    for image, label in labels.items():
        if label is not None and image not in images_of[label]:
            images_of[label].append(image)
    for label, owners in images_of.items():
        if len(owners) > 1:
            raise DataError(
                f"{label}: may be of {owners[0]} or of {owners[1]}; remove one of them, or give it another name"
            )
    used = {os.path.abspath(file) for file in labels.values() if file}
    rest = {path: file for file in texts if (path := os.path.abspath(file)) not in used and _is_label_file(file)}
    known = set(map(os.path.abspath, images))
    others = []
    for image in filter(is_image_name, files):
        places = (os.path.abspath(os.path.join(root, file)) for file in _label_candidates(image, root))
        label = None if os.path.abspath(image) in known else next((place for place in places if place in rest), None)
        if label is not None:
            others.append(image)
            del rest[label]
    if others:
        findings.append(in_no_set(str(root), others, "images with a label file"))
    if rest:
        some = os.path.relpath(min(rest.values()), root)
        text = f"{len(rest):,} label files have no image, such as {some}: left out"
        findings.append(Finding("no_image", str(root), None, text, len(rest)))
    return labels


def _label_candidates(image: str, root: Path) -> list[str]:
    """The paths, relative to the root, where the label file of an image may be."""
    path = Path(os.path.relpath(image, root))
    places = [path.parent]
    if "images" in path.parts[:-1]:
        last = len(path.parts) - 1 - path.parts[::-1].index("images")
        places.insert(0, Path(*path.parts[:last], "labels", *path.parts[last + 1 : -1]))
    return [str(place / name) for name in (f"{path.name}.txt", f"{path.stem}.txt") for place in places]


def _is_label_file(file: str) -> bool:
    """Whether a text begins with a line of numbers, as label files do."""
    fields = read_start(file, 1024).partition("\n")[0].split()
    try:
        return len([float(field) for field in fields]) >= 5
    except ValueError:
        return False
