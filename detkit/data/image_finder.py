"""Finding images by the names that annotation files give them, which are often those of another machine."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from urllib.parse import unquote

from detkit.data.annotations import Finding
from detkit.data.input_files import is_inside, short_repr, spelling
from detkit.data.voc_files import IMAGE_SUFFIXES, image_files
from detkit.errors import DataError

SHOWN = 3  # images that are named in a finding


class ImageFinder:
    """Finds images below a folder.

    A name is a path relative to the folder. Where no such file is there, it is searched without its first folders,
    which may be those of another machine, then with upper or lower case, accents in another Unicode form, or `%20` for
    a space; the suffix may be missing. Files outside the folder are never found.

    Args:
        root: the folder.
        option: how the user names another folder, for messages.
        whole_paths: names are meant as whole paths, so that one in another folder is told.
    """

    def __init__(self, root: str, option: str = "", whole_paths: bool = False) -> None:
        self.root = root
        self.option = option
        self.whole_paths = whole_paths
        self.files: list[str] | None = None  # all images below the root, once they are needed
        self._exact: dict[str, list[str]] = {}
        self._alike: dict[str, list[str]] = {}
        self._found: dict[str, str] = {}
        self._moved: dict[str, str] = {}

    def find(self, name: str, where: str) -> str:
        """The path of an image, relative to the root.

        Args:
            name: of the image, as the annotation file gives it.
            where: that file and the place in it, for messages.

        Raises:
            DataError: there is no such image, or several that fit equally.
        """
        if name not in self._found:
            self._found[name] = self._search(name, where)
        return self._found[name]

    def find_any(self, names: Sequence[str], where: str) -> str:
        """The first image that one of several names means; raises as `find` for the first name where none does."""
        first: DataError | None = None
        for name in names:
            try:
                return self.find(name, where)
            except DataError as error:
                first = first or error
        raise first or DataError(f"{where}: names no image")

    def all_files(self) -> list[str]:
        """The paths of all images, relative to the root."""
        if self.files is None:
            self.files = [os.path.relpath(file, self.root) for file in image_files(self.root)]
        return self.files

    def findings(self, source: str) -> list[Finding]:
        """One finding on the images that were found in another folder or under another name; ``source`` named them."""
        if not self._moved:
            return []
        some = ", ".join(f"{short_repr(name)} is {file}" for name, file in list(self._moved.items())[:SHOWN])
        text = f"{len(self._moved):,} images have another folder or spelling than their name says: {some}"
        return [Finding("other_name", source, None, text, len(self._moved))]

    def unnamed(self, source: str, told: Collection[str] = ()) -> list[Finding]:
        """One finding on the images below the root that nobody asked for; `told` are told otherwise, without suffix."""
        known = {os.path.normpath(file) for file in self._found.values()}
        rest = [file for file in self.all_files() if file not in known and os.path.splitext(file)[0] not in told]
        if not rest:
            return []
        text = f"{len(rest):,} images are not named there, such as {', '.join(rest[:SHOWN])}: left out"
        return [Finding("not_annotated", source, None, text, len(rest))]

    def _search(self, name: str, where: str) -> str:
        plain = name.replace("\\", "/")
        for candidates in ((name,), (plain,), [plain + suffix for suffix in IMAGE_SUFFIXES]):
            found = [each for each in candidates if is_inside(each) and os.path.isfile(os.path.join(self.root, each))]
            if len(found) > 1:
                raise self._ambiguous(name, found, where)
            if found:
                return os.path.normpath(found[0])
        if not self._exact:
            self._exact = _index(self.all_files(), str)
            self._alike = _index(self.all_files(), spelling)
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        ends = ["/".join(parts[start:]) for start in range(len(parts)) if ".." not in parts[start:]]
        for index, spell in ((self._exact, str), (self._alike, spelling), (self._alike, _unquoted)):
            for end in ends:
                places = index.get(spell(end), [])
                if len(places) > 1:
                    raise self._ambiguous(name, places, where)
                if places:
                    if self.whole_paths or end != plain or spell is not str:
                        self._moved[name] = places[0]
                    return places[0]
        if not is_inside(plain):
            raise DataError(f"{where}: file name {short_repr(name)} leaves the image folder; refused")
        hint = f"; name its folder{self.option}" if self.option else ""
        raise DataError(f"{where}: the image {short_repr(name)} is not below {self.root}{hint}")

    def _ambiguous(self, name: str, places: Sequence[str], where: str) -> DataError:
        return DataError(
            f"{where}: the image {short_repr(name)} may be {places[0]} or {places[1]} in {self.root}; write its folder "
            "and suffix, too"
        )


def _unquoted(name: str) -> str:
    return spelling(unquote(name))


def _index(files: list[str], spell: Callable[[str], str]) -> dict[str, list[str]]:
    """Each end of each path, with and without the suffix -> the paths that end so."""
    index: dict[str, list[str]] = defaultdict(list)
    for file in files:
        parts = file.replace(os.sep, "/").split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            for key in {spell(end), spell(os.path.splitext(end)[0])}:
                index[key].append(file)
    return dict(index)
