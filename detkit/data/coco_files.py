"""COCO's instances JSON, read as it is written: what training and evaluation both begin with.

No number is changed here: no box is clipped, rounded or dropped. data/coco.py makes the annotations of a training or
test split from it, evaluation/coco_files.py the ground truth of `detkit evaluate`.
"""

from __future__ import annotations

import gc
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter
from os import PathLike
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from detkit.data.annotations import Finding
from detkit.data.input_files import FLAGS, LARGEST, read_bytes, short_repr
from detkit.data.run_lengths import box_of_runs
from detkit.data.text_files import decode_text, encoding_of
from detkit.errors import DataError
from detkit.system import available_cores, in_processes

# Numbers come as floats, too, from programs that keep ids in tables of floats: 7.0 is 7 to COCOeval. Floats above 2^53
# are no ids: two of them may be written differently and be equal. numpy keeps the ids, as 64 bits or as strings that
# all take the room of the longest.
WholeNumber = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Annotated[float, Meta(ge=-(2.0**53), le=2.0**53)]
ImageId = WholeNumber | Annotated[str, Meta(max_length=1000)]
CategoryId = WholeNumber
Flag = bool | int | float | str | None
Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Box = tuple[Number, Number, Number, Number]

T = TypeVar("T")

#: Bytes of JSON that are decoded at once, and where a list of objects can be cut. Objects of so few reuse their memory.
PART = 2**17
#: Bytes for which another process is worth its start, and how many there are at most.
SHARE, MOST_PROCESSES = 2**23, 8
BETWEEN_OBJECTS = re.compile(rb"\}[ \t\n\r]*,[ \t\n\r]*\{")

# Only what is needed is decoded. `gc=False`: none of these is ever part of a cycle.


class Image(msgspec.Struct, gc=False):
    """An image as COCO's annotations have it."""

    id: ImageId
    file_name: Any = None
    width: Any = None
    height: Any = None


class Category(msgspec.Struct, gc=False):
    """A category as COCO's annotations have it."""

    id: CategoryId
    name: Any = None
    supercategory: Any = None


class Annotation(msgspec.Struct, gc=False):
    """An object as COCO's annotations have it; its id is for messages only."""

    image_id: ImageId
    category_id: CategoryId
    bbox: Box | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")  # decoded only where there is no box
    id: Any = None
    area: Annotated[float, Meta(ge=-(LARGEST**2), le=LARGEST**2)] | None = None
    iscrowd: Flag = 0
    ignore: Flag = 0
    difficult: Flag = 0


class _InstancesFile(msgspec.Struct, gc=False):
    images: list[Image]
    categories: list[Category]
    annotations: list[Annotation] | None = None


class Instances(NamedTuple):
    """COCO's annotations: ids are int or str, and unique, each annotation has a box, and flags are no strings.

    Attributes:
        annotated: whether the file has a list of annotations; that of a test set has none.
        findings: what was found.
    """

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]
    annotated: bool
    findings: list[Finding]


class Result(msgspec.Struct, gc=False):
    """A detection as COCO's results have it."""

    image_id: ImageId
    category_id: CategoryId
    bbox: Box
    score: Number


class _PlainResult(msgspec.Struct, gc=False):
    """A detection whose ids are numbers, before they are checked."""

    image_id: float
    category_id: float
    bbox: tuple[float, float, float, float]
    score: float


_COLUMNS = ["image_id", "category_id", "x", "y", "width", "height", "score"]
_EXAMPLE = msgspec.msgpack.encode(_PlainResult(1.0, 2.0, (3.0, 4.0, 5.0, 6.0), 7.0))
#: A `_PlainResult` in MessagePack, which takes as many bytes whatever its numbers are, for NumPy.
_PACKED = np.dtype(
    {
        "names": _COLUMNS,
        "formats": [">f8"] * len(_COLUMNS),
        "offsets": [_EXAMPLE.index(struct.pack(">d", number)) for number in range(1, 8)],
        "itemsize": len(_EXAMPLE),
    }
)


class Results(NamedTuple):
    """N detections as COCO's results have them."""

    image_ids: Sequence[int | float | str] | np.ndarray  # N
    category_ids: Sequence[int | float] | np.ndarray  # N
    boxes: np.ndarray  # (N, 4) float64, x y width height
    scores: np.ndarray  # (N,) float64


class _OutlinedResult(msgspec.Struct, gc=False):
    """A detection that may have an outline in the place of a box, as pycocotools takes it."""

    image_id: ImageId
    category_id: CategoryId
    score: Number
    bbox: Box | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _ResultsFile(msgspec.Struct, gc=False):
    """Detections in an object, as some programs write them."""

    predictions: list[_OutlinedResult] | None = None
    detections: list[_OutlinedResult] | None = None
    results: list[_OutlinedResult] | None = None


def read_instances(path: str | PathLike[str]) -> Instances:
    """Read COCO's annotations; gzip may have packed them.

    Raises:
        DataError: the file is missing, no JSON or of another form, has no images or no categories, an id of an
            image or a category is given twice or is no whole number of 64 bits (or, of an image, string), an
            annotation has neither a box nor an outline, or a flag is a string that says neither yes nor no.
    """
    instances, findings = _decode_instances(path)
    for name, of, rows in (("images", "image", instances.images), ("categories", "category", instances.categories)):
        if not rows:
            raise DataError(f"{path}: the list {name!r} is empty")
        for row in rows:
            if isinstance(row.id, float):
                if not row.id.is_integer():
                    raise DataError(f"{path}: {of} id {row.id} is no whole number")
                row.id = int(row.id)
            elif isinstance(row.id, str) and "\0" in row.id:
                raise DataError(f"{path}: {of} id {row.id!r} holds a NUL character")
    annotations = instances.annotations or []
    findings += _alike_ids(instances.images, annotations, path)
    images, categories = instances.images, instances.categories
    images, found = _unique(images, "image", path, lambda image: image.file_name)
    findings += found
    categories, found = _unique(categories, "category", path, lambda category: category.name)
    findings += [*found, *_read_flags(annotations, path), *_add_boxes(annotations, images, path, "annotation")]
    return Instances(images, annotations, categories, instances.annotations is not None, findings)


def _decode_instances(path: str | PathLike[str]) -> tuple[_InstancesFile, list[Finding]]:
    """The content of a file; where it has strings for numbers, or empty lists for missing boxes, they are read so."""
    wanted = "an object with images, annotations and categories"
    try:
        return decode(path, _InstancesFile, wanted), []
    except DataError as error:
        if not isinstance(error.__cause__, msgspec.ValidationError):
            raise
        content = decode(path, dict[str, Any], wanted)
        rows = content.get("annotations")
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict):
                row["bbox"] = row.get("bbox") or None
                row["segmentation"] = msgspec.Raw(msgspec.json.encode(row.get("segmentation")))
        try:
            instances = msgspec.convert(content, _InstancesFile, strict=False)
        except (msgspec.ValidationError, OverflowError):
            raise error from None
        text = f"not all is of the types that COCO has ({str(error).partition(': ')[2]}): read as what is meant"
        return instances, [Finding("type", str(path), None, text)]


def _alike_ids(images: Sequence[Image], rows: Sequence[Annotation], path: str | PathLike[str]) -> Iterator[Finding]:
    """Make all ids of images numbers, or all strings, where some are written as "7" and some as 7."""
    if len({isinstance(row.id, str) for row in images} | {isinstance(row.image_id, str) for row in rows}) < 2:
        return
    count = 0
    as_numbers = all(not isinstance(image.id, str) or (image.id.isdecimal() and len(image.id) < 19) for image in images)
    if not all(isinstance(image.id, str) for image in images) and as_numbers:
        for image in images:
            if isinstance(image.id, str):
                image.id, count = int(image.id), count + 1
        for row in rows:
            if isinstance(row.image_id, str) and row.image_id.isdecimal() and len(row.image_id) < 19:
                row.image_id, count = int(row.image_id), count + 1
    elif all(isinstance(image.id, str) for image in images):
        for row in rows:
            if not isinstance(row.image_id, str) and row.image_id == int(row.image_id):
                row.image_id, count = str(int(row.image_id)), count + 1
    else:
        raise DataError(f"{path}: ids of images are numbers and strings; write them alike")
    if count:
        text = f"{count:,} ids of images are strings in one place and numbers in another: taken for the same"
        yield Finding("id_type", str(path), None, text, count)


def _unique(
    rows: list[Any], of: str, path: str | PathLike[str], content: Callable[[Any], Any]
) -> tuple[list[Any], list[Finding]]:
    """The rows without those that say the same as an earlier one of the same id."""
    first: dict[int | str, Any] = {}
    for row in rows:
        if content(first.setdefault(row.id, row)) != content(row):
            raise DataError(f"{path}: {of} id {row.id!r} is given twice; ids must be unique")
    if len(first) == len(rows):
        return rows, []
    count = len(rows) - len(first)
    text = f"{count:,} of {len(rows):,} entries for {of} ids are given twice, with the same name: taken once"
    return list(first.values()), [Finding("duplicate", str(path), None, text, count)]


def _read_flags(rows: Sequence[Annotation], path: str | PathLike[str]) -> Iterator[Finding]:
    """Turn flags that are strings, which are true to Python even if they say "0", into what they say."""
    usual = {"iscrowd": {0, 1, None}, "ignore": {0, None}, "difficult": {0, 1, None}}
    if all({getattr(row, name) for row in rows} <= values for name, values in usual.items()):
        return  # as almost every file has them
    count = ignored = 0
    for number, row in enumerate(rows):
        for name in usual:
            value = getattr(row, name)
            if (isinstance(value, str) and (text := value.strip().lower()) in FLAGS) or value == "":
                setattr(row, name, bool(value) and FLAGS[text])
                count += 1
            elif value not in (0, 1, None):
                where = f"{path}: annotation {number} (counted from 0)"
                raise DataError(f"{where}: {name} is {short_repr(value)}; it must be 0 or 1")
        ignored += bool(row.ignore and not row.iscrowd)
    if count:
        text = f"{count:,} flags such as iscrowd are strings: read as what they say"
        yield Finding("flag", str(path), None, text, count)
    if ignored:
        text = (
            f"{ignored:,} objects are marked ignore: they count as ordinary ones, since COCOeval looks at iscrowd only"
        )
        yield Finding("ignore", str(path), None, text, ignored)


def _add_boxes(
    rows: Sequence[Annotation | _OutlinedResult], images: Sequence[Image], path: str | PathLike[str], what: str
) -> Iterator[Finding]:
    """Give annotations or detections without a box that of their outline (polygons or runs of pixels)."""
    missing = [(number, row) for number, row in enumerate(rows) if row.bbox is None]
    if not missing:
        return
    size_of = {image.id: (image.height, image.width) for image in images}
    for number, row in missing:
        try:
            outline = msgspec.json.decode(row.segmentation)
            if isinstance(outline, list):
                polygons = outline if outline and isinstance(outline[0], list) else [outline]
                points = np.array([value for polygon in polygons for value in polygon], np.float64).reshape(-1, 2)
                low, high = points.min(0), points.max(0)
            else:
                size = outline.get("size", size_of.get(row.image_id))
                x, y, width, height = box_of_runs(outline["counts"], size)
                low, high = np.array([x, y], np.float64), np.array([x + width, y + height], np.float64)
            row.bbox = (*low.tolist(), *(high - low).tolist())
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            why = f": {error}" if type(error) is ValueError else ""
            raise DataError(
                f"{path}: {what} {number} (counted from 0) has no bbox, and no segmentation to take it from{why}"
            ) from None
    text = f"{len(missing):,} {what}s have no bbox: that of their segmentation is taken"
    yield Finding("from_outline", str(path), None, text, len(missing))


def read_results(path: str | PathLike[str]) -> tuple[Results, list[Finding]]:
    """Read COCO's results, and say what was found; gzip may have packed them.

    They may stand in an object ({"predictions": [...]}, or detections, or results), and may have a
    segmentation in the place of a box, which is taken from it as pycocotools does.

    Raises:
        DataError: as `decode`, or a detection has neither a box nor an outline.
    """
    plain = _plain_results(read_bytes(path))
    if plain is not None:
        return plain, []
    wanted = "a list of {image_id, category_id, bbox, score}"
    try:
        return _columns(decode(path, list[Result], wanted)), []
    except DataError as error:
        if not isinstance(error.__cause__, msgspec.ValidationError):
            raise
        try:
            either: Any = list[_OutlinedResult] | _ResultsFile
            content = decode(path, either, wanted)
        except DataError:
            raise error from None
    rows, findings = content, []
    if isinstance(content, _ResultsFile):
        found = {name: rows for name in content.__struct_fields__ if (rows := getattr(content, name)) is not None}
        if len(found) != 1:
            names = " and ".join(map(repr, found)) or "no list 'predictions'"
            raise DataError(f"{path}: has {names}; wanted is {wanted}, or one such list in an object")
        [(name, rows)] = found.items()
        findings.append(Finding("wrapped", str(path), None, f"the detections are read from its list {name!r}"))
    findings += _add_boxes(rows, [], path, "detection")
    return _columns(rows), findings


def _columns(rows: Sequence[Result | _OutlinedResult]) -> Results:
    image_ids, category_ids = ([getattr(row, name) for row in rows] for name in ("image_id", "category_id"))
    scores = np.fromiter(map(attrgetter("score"), rows), np.float64, len(rows))
    return Results(image_ids, category_ids, boxes_of(rows), scores)


def _plain_results(content: bytes) -> Results | None:
    """Detections whose ids are whole numbers within 2^53, as COCO has them; None where there is anything else.

    A list that is cut at commas is valid where each of its parts, in brackets, is a list with entries; a comma within a
    string leaves a part that is none.
    """
    position, end = content.find(b"[") + 1, content.rfind(b"]")
    if content[: max(position - 1, 0)].strip() or content[end + 1 :].strip() or not 0 < position <= end:
        return None
    step = max(end // min(available_cores(), MOST_PROCESSES), SHARE)
    try:
        shares = in_processes(
            lambda share: _decode_parts(content, *share).data, list(_cuts(content, position, end, step))
        )
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    columns = [np.frombuffer(share).reshape(len(_COLUMNS), -1) for share in shares] or [np.zeros((len(_COLUMNS), 0))]
    image_ids, category_ids = (np.concatenate([each[row] for each in columns]).astype(np.int64) for row in (0, 1))
    boxes = np.ascontiguousarray(np.concatenate([each[2:6] for each in columns], axis=1).T)
    return Results(image_ids, category_ids, boxes, np.concatenate([each[6] for each in columns]))


def _cuts(content: bytes, position: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """Begin and end of parts of a list of objects of about `step` bytes, without the commas between them."""
    while position < end:
        between = BETWEEN_OBJECTS.search(content, min(position + step, end), end)
        stop, following = (between.start() + 1, between.end() - 1) if between else (end, end)
        yield position, stop
        position = following


def _decode_parts(content: bytes, begin: int, end: int) -> np.ndarray:
    """(7, N) float64: ids of image and category, box and score of each detection; in parts that stay in the cache.

    Raises:
        ValueError: an id is no whole number, or a number is out of range.
    """
    decoder = msgspec.json.Decoder(list[_PlainResult])
    cuts = _cuts(content, begin, end, PART)
    return np.concatenate([_numbers_of(decoder.decode(b"[%b]" % content[a:b])) for a, b in cuts], axis=1)


def _numbers_of(rows: list[_PlainResult]) -> np.ndarray:
    """(7, N) float64, of rows by MessagePack, which is faster than their attributes one by one; see `_decode_parts`."""
    packed = msgspec.msgpack.encode(rows)
    table = np.frombuffer(packed, _PACKED, len(rows), len(packed) - _PACKED.itemsize * len(rows))
    numbers = np.stack([table[name] for name in _COLUMNS], dtype=np.float64)
    ids, values = numbers[:2], numbers[2:]
    if (ids % 1).any() or (np.abs(ids) >= 2**53).any() or (np.abs(values) > LARGEST).any():
        raise ValueError("an id that is no whole number, or a number out of range")
    return numbers


def boxes_of(rows: Sequence[Any]) -> np.ndarray:
    """(N, 4) float64, x y width height as written."""
    values = chain.from_iterable(map(attrgetter("bbox"), rows))
    return np.fromiter(values, np.float64, 4 * len(rows)).reshape(-1, 4)


def areas_of(rows: Sequence[Annotation]) -> np.ndarray:
    """(N,) float64; NaN where none is given."""
    return np.fromiter((float("nan") if row.area is None else row.area for row in rows), np.float64, len(rows))


def flags_of(rows: Sequence[Annotation], name: str) -> np.ndarray:
    """(N,) bool, a flag of each row."""
    return np.fromiter(map(bool, map(attrgetter(name), rows)), bool, len(rows))


# -- JSON ----------------------------------------------------------------------------------------


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Turn garbage collection off: it would walk through a million tuples again and again, and free none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def decode(path: str | PathLike[str], form: type[T], wanted: str) -> T:
    """The content of a JSON file, which gzip may have packed, as `form` (msgspec's); `wanted` says it in words.

    Raises:
        DataError: the file is missing, no JSON or of another form; names the entry and what is wanted.
    """
    content = read_bytes(path)
    if encoding_of(content) != "utf-8":
        content = decode_text(content, path).encode()
    try:
        with no_garbage_collection():
            return msgspec.json.decode(content, type=form)
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: {_explain(str(error), wanted)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        decode_text(content, path)  # refuses another encoding, and names the likely one
        raise DataError(f"{path}: {_explain_syntax(str(error), content, wanted)}") from None


def _explain(message: str, wanted: str) -> str:
    """msgspec's message in words; it ends in a path such as `$.annotations[3].bbox[1]`."""
    wrong, _, path = message.partition(" - at ")
    wrong = (wrong[:1].lower() + wrong[1:]).replace("`", "'")
    match = re.fullmatch(r"`\$(?:\.(\w+))?(?:\[(\d+)\])?\.?(.*)`", path)
    if match is None or not (match[1] or match[2]):
        return f"{wrong}; the file is to hold {wanted}"
    entry = {"annotations": "annotation", "images": "image", "categories": "category"}.get(match[1] or "", "detection")
    where = f"{entry} {match[2]} (counted from 0)" if match[2] else f"the list {match[1]!r}"
    return f"{where}: {match[3] + ': ' if match[3] else ''}{wrong}"


def _explain_syntax(message: str, content: bytes, wanted: str) -> str:
    """What is wrong with a text that is no JSON; NaN and infinity, which Python writes into JSON, by name."""
    if not content.strip():
        return f"the file is empty; it is to hold {wanted} (a list without entries is [])"
    match = re.search(r"\(byte (\d+)\)", message)
    if match is None:
        return "the JSON is cut short: write the file again" if "truncated" in message else f"not JSON ({message})"
    position = int(match[1])
    before = content[:position]
    entry = before.count(b'"image_id"') - 1
    where = f"entry {entry} (counted from 0): " if entry >= 0 else ""
    special = re.match(rb"-?(?:NaN|Infinity)", content[position - before.endswith(b"-") :])
    if special:
        key = re.search(rb'"(\w+)"\s*:[^"]*$', before)
        name = key[1].decode() if key else "a number"
        return f"{where}{name} is {special[0].decode()}, which JSON does not have: correct it where it was computed"
    shown = content[max(position - 30, 0) : position + 10].decode(errors="replace")
    return f"{where}not JSON at byte {position:,}: {shown!r}"
