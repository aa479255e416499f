"""Writing a store of proposals: all at once, beside its place, and renamed."""

from __future__ import annotations

import os
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from detkit.__about__ import __version__
from detkit.errors import DataError

from .store_format import MAGIC, VERSION, Images, aligned, encode, finest_scale, layout, pack_header, pack_ids

#: Ends the name of a file that is being written, and after so many seconds one that was killed meanwhile.
NEW, ABANDONED = ".new", 86400.0


def write_store(
    path: str | os.PathLike[str], images: Images, boxes: Iterable[Any], method: str, parameters: Mapping[str, Any]
) -> None:
    """Write proposals that are in memory.

    Args:
        path: the file; one that is there is replaced.
        images: ids and sizes.
        boxes: for each image (P, 4) in pixels, best first.
        method: how they were made.
        parameters: with which options; plain JSON values.

    Raises:
        DataError: boxes that are none, or the file cannot be written.
    """
    scale = finest_scale(images)
    sizes = zip(images.widths.tolist(), images.heights.tolist(), strict=True)
    units = [encode(each, size, scale) for each, size in zip(boxes, sizes, strict=True)]
    counts = np.array([len(each) for each in units], np.int64)
    checksums = np.array([zlib.crc32(each) for each in units], np.uint32)
    write_units(path, images, method, parameters, scale, counts, checksums, lambda row: units[row].tobytes())


def write_units(
    path: str | os.PathLike[str],
    images: Images,
    method: str,
    parameters: Mapping[str, Any],
    scale: int,
    counts: np.ndarray,
    checksums: np.ndarray,
    units_of: Callable[[int], bytes],
) -> None:
    """Write boxes that are encoded: counts and checksums (I,), and the bytes of each image, asked for in order."""
    offsets = np.zeros(len(images.ids) + 1, "<i8")
    np.cumsum(counts, out=offsets[1:])
    arrays = {
        "offsets": offsets,
        "widths": images.widths.astype("<i4"),
        "heights": images.heights.astype("<i4"),
        "checksums": checksums.astype("<u4"),
        **pack_ids(images.ids),
    }
    id_bytes = len(arrays["id_bytes"]) if "id_bytes" in arrays else None
    table, _ = layout(len(images.ids), int(offsets[-1]), id_bytes)
    index = bytearray(table["boxes"]["start"])
    for name, array in arrays.items():
        start = table[name]["start"]
        index[start : start + array.nbytes] = array.tobytes()
    header = pack_header(
        MAGIC,
        {
            "version": VERSION,
            "method": method,
            "parameters": parameters,
            "scale": scale,
            "detkit": __version__,
            "index_crc32": zlib.crc32(index),
            "arrays": table,
        },
    )
    place = Path(path)
    # No other machine's, where one folder is shared: locks do not hold on every network drive.
    part = place.with_name(f".{place.name}.{socket.gethostname()}.{os.getpid()}{NEW}")
    try:
        _remove_old(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(header.ljust(aligned(len(header)), b"\0"))
            file.write(index)
            for row in range(len(images.ids)):
                file.write(units_of(row))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, place)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise DataError(f"{path}: the proposals cannot be written ({error}); make room, or choose another place") from (
            error
        )


def _remove_old(place: Path) -> None:
    """Remove what kills left beside a store; younger ones may be another process's, at work."""
    names = os.listdir(place.parent) if place.parent.is_dir() else []
    for name in names:
        if name.startswith(f".{place.name}.") and name.endswith(NEW):
            with suppress(OSError):
                if time.time() - (place.parent / name).stat().st_mtime > ABANDONED:
                    (place.parent / name).unlink()
