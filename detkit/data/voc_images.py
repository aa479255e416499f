"""The image of a VOC annotation file, found by the file's own name and by what it says."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from urllib.parse import unquote

from detkit.data.input_files import is_inside, short_repr, spelling
from detkit.data.voc_files import VOCEntry, image_files, is_image_name
from detkit.errors import DataError


class ImageIndex:
    """The images below a folder, found by the names that annotation files give them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_spelling: dict[str, list[str]] = defaultdict(list)
        for file in image_files(folder):
            name = os.path.relpath(file, folder).replace(os.sep, "/")
            stem = os.path.splitext(name)[0]
            self._by_path[stem].append(name)
            self._by_stem[stem.rpartition("/")[2]].append(name)
            self._by_spelling[spelling(stem.rpartition("/")[2])].append(name)

    def find(self, entry: VOCEntry) -> str | None:
        """The image of an entry; None where there is none.

        Images of the annotation file's own name, in its own folder, come first, then those of this name anywhere, then
        those that differ by upper and lower case or the Unicode form of accents; where there are several, `<filename>`
        decides. It comes last for an image of another name, anywhere below the folder, because it is often out of date.

        Raises:
            DataError: two images fit, and <filename> names neither; or <filename> leads out of the folder.
        """
        filename = entry.image.filename
        stem = entry.image_id.rpartition("/")[2]
        if found := self._choose(self._by_path.get(entry.image_id, []), filename, entry.source):
            return found
        for names in (self._by_stem.get(stem, []), self._by_spelling.get(spelling(stem), [])):
            if found := self._choose(_nearest(names, entry.image_id), filename, entry.source):
                return found
        if not filename:
            return None
        name = re.split(r"[/\\]", unquote(filename))[-1]
        places = self._by_spelling.get(spelling(os.path.splitext(name)[0] if is_image_name(name) else name), [])
        places = [place for place in places if spelling(place).endswith(spelling(name)) or not is_image_name(name)]
        if len(places) == 1:
            return os.path.join(self.folder, places[0])
        if not is_inside(filename):
            raise DataError(f"{entry.source}: <filename> {short_repr(filename)} leaves the data set's folder; refused")
        beside = os.path.join(os.path.dirname(entry.image_id), filename)
        named = (name for name in (beside, filename, unquote(beside), unquote(filename)) if is_inside(name))
        paths = (os.path.join(self.folder, name) for name in named)
        return next((path for path in paths if os.path.isfile(path)), None)

    def named_instead(self, entry: VOCEntry, found: str) -> str | None:
        """The other image that `<filename>` names, where there is such an image and it was not taken."""
        name = re.split(r"[/\\]", entry.image.filename)[-1]
        places = self._by_stem.get(os.path.splitext(name)[0], [])
        others = (place for place in places if os.path.basename(place) == name)
        return None if name == os.path.basename(found) else next(others, None)

    def _choose(self, names: list[str], filename: str, source: str) -> str | None:
        if len(names) > 1:
            named = [name for name in names if name.rpartition("/")[2] == re.split(r"[/\\]", filename)[-1]]
            if len(named) != 1:
                raise DataError(
                    f"{source}: its image may be {names[0]} or {names[1]} (in {self.folder}), and <filename> "
                    f"{filename!r} is neither; write there which one it is, or remove the other"
                )
            names = named
        return os.path.join(self.folder, names[0]) if names else None


def _nearest(names: list[str], image_id: str) -> list[str]:
    """Those of the names that have the most folders in common with an id."""
    wanted = image_id.split("/")

    def shared(name: str) -> int:
        pairs = zip(wanted[:-1], name.split("/"), strict=False)
        return next((depth for depth, (one, other) in enumerate(pairs) if one != other), len(wanted) - 1)

    most = max(map(shared, names), default=0)
    return [name for name in names if shared(name) == most]
