"""What a fit has drawn of itself, for the report of a test: its curves, and its validation pictures."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Iterable, Mapping
from pathlib import Path


def as_data_uris(pictures: Mapping[str, Path]) -> dict[str, str]:
    """Caption -> the picture in a form that a page can hold as an image; files that cannot be read are left out.

    A browser runs no script in an SVG that is shown as an image.
    """
    return dict(_read(pictures.items()))


def _read(pictures: Iterable[tuple[str, Path]]) -> Iterable[tuple[str, str]]:
    for caption, path in pictures:
        try:
            content = base64.b64encode(path.read_bytes()).decode("ascii")
        except OSError:
            continue
        yield caption, f"data:{mimetypes.guess_type(path.name)[0]};base64,{content}"
