"""What is wrong with a data set, before a run finds out: files, images, boxes, classes, sets, and the anchors' fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.boxes import AnchorSettings
from detkit.boxes.anchor_fit import AnchorFit, fit_anchors
from detkit.data.annotations import UNKNOWN_SIDE, Annotations, Finding
from detkit.data.checks import Check, check_annotations
from detkit.data.collecting import collect_errors
from detkit.data.datamodule import ALL, SPLITS, DetectionDataModule
from detkit.data.image_checks import check_files
from detkit.data.layouts import opened
from detkit.data.summary import DataSummary
from detkit.data.voc_files import is_image_name
from detkit.errors import DataError
from detkit.files import check_output, staged, to_json, write_json
from detkit.tools.finding_kinds import Kind, kind_of

EXAMPLES = 3  # of a kind
LEVELS = 5  # of a pyramid, whose default anchors are compared
UNREACHED = 0.05  # share of the objects that no anchor reaches, above which it is told
SMALL, SMALL_SHARE = 16.0, 0.1  # pixels of the resized image, and the share of the objects below it that is told
EFFECTS = {"stops": "stops a run", "loses": "is left out", "note": "to look at"}


@dataclass(frozen=True)
class DoctorResult:
    """What `doctor` returns.

    Attributes:
        checks: what was found.
        summary: what the sets hold.
        anchors: how the default anchors fit, and which would fit better; None without objects.
        min_size: a suggested `image.min_size`; None where the given one does.
        text: all of it, in words.
        exit_code: 1 where a run would stop or lose something.
    """

    checks: list[Check]
    summary: DataSummary
    anchors: tuple[AnchorFit, AnchorFit] | None
    min_size: int | None
    text: str
    exit_code: int


def doctor(
    data: DetectionDataModule,
    min_size: int = 800,
    max_size: int = 1333,
    max_detections: int = 100,
    json: str | Path | None = None,
    output: str | Path | None = None,
) -> DoctorResult:
    """Look for what is wrong with a data set; no model is needed.

    Every image is decoded once. Nothing is changed.

    Args:
        data: The data set, such as a folder; from Python also its path.
        min_size: Pixels of the shorter side that the detector resizes images to; anchors are compared at this size.
        max_size: Limit of the longer side.
        max_detections: How many objects the detector finds in an image.
        json: A file for everything that was found, as JSON.
        output: A folder for index.html, which shows some examples of each kind.

    Raises:
        DetkitError: there is no data set at all, or an output cannot be written.
    """
    for path in (json, output):
        if path is not None:
            check_output(Path(path).parent)
    with collect_errors() as errors:
        module = opened(data)
        splits = _read(module, errors)
    checks = [Check("", Finding("error", "", None, str(error))) for error in errors]
    checks += [Check(split, each) for split, part in splits.items() for each in part.findings]
    checks += check_annotations(splits, module.class_names, max_detections)
    checks += [*check_files(splits), *_not_listed(splits, errors)]
    checks = _once(checks)
    checks += _nothing_to_learn(splits)
    sides = resized_sides(splits.get("train", splits.get(ALL)), min_size, max_size)
    settings = AnchorSettings()
    anchors = fit_anchors(sides, np.ravel(settings.level_sizes(LEVELS)), settings.ratios) if len(sides) else None
    suggested = _suggest_min_size(sides, min_size, max_size)
    checks += _fit_checks(splits, anchors, sides, suggested, min_size)
    summary = DataSummary.of(splits, module.class_names, module.category_ids)
    effects = {kind_of(check.finding.kind).effect for check in checks}
    text = _text(checks, summary, anchors, suggested, min_size)
    result = DoctorResult(checks, summary, anchors, suggested, text, int(bool(effects & {"stops", "loses"})))
    if json is not None:
        write_json(Path(json), _as_dict(result))
    if output is not None:
        from detkit.evaluation.report.contact_sheet import write_contact_sheet

        groups = _groups(checks)
        kinds = {kind: (kind_of(kind).does, kind_of(kind).mend) for kind in groups}
        with staged(Path(output)) as part:
            write_contact_sheet(part / "index.html", groups, kinds, splits, f"Doctor: {_name(module)}")
        result = DoctorResult(**{**vars(result), "text": f"{text}\npictures: {Path(output) / 'index.html'}"})
    return result


def _read(module: DetectionDataModule, errors: list[DataError]) -> dict[str, Annotations]:
    """The sets; one that is called "all" where a fit would divide the data set, which needs images that can be read."""
    if ALL in module.sources and module.is_drawn:
        return {ALL: module.read(ALL)}
    splits = {}
    for split in SPLITS:
        if split == "test" and module.test_split == "val":
            continue
        try:
            annotations = module.annotations(split)
        except DataError as error:  # of the set as a whole
            errors.append(error)
            continue
        if annotations is not None:
            splits[split] = annotations
    if not splits and not errors:
        raise DataError(f"{_name(module)}: has no set to look at")
    return splits


def _name(module: DetectionDataModule) -> str:
    return str(getattr(module, "path", type(module).__name__))


def _once(checks: Sequence[Check]) -> list[Check]:
    """Without what two parts have found, such as an image that cannot be read."""
    unreadable = {check.finding.file for check in checks if check.finding.kind == "unreadable"}
    seen: set[tuple[str, str, int | None, str]] = set()
    kept = []
    for check in checks:
        finding = check.finding
        known = finding.kind == "error" and any(finding.message.startswith(f"{file}: ") for file in unreadable)
        key = (finding.kind, finding.file, finding.object, "" if finding.kind == "unreadable" else finding.message)
        if not known and key not in seen:
            seen.add(key)
            kept.append(check)
    return kept


def _nothing_to_learn(splits: Mapping[str, Annotations]) -> list[Check]:
    for split in ("train", ALL):
        if split in splits and not len(splits[split].boxes):
            text = "no box to learn from is left"
            return [Check(split, Finding("nothing_to_learn", splits[split].root, None, text))]
    return []


def _not_listed(splits: Mapping[str, Annotations], errors: Sequence[DataError]) -> list[Check]:
    """Images in the folders of the sets that are in no set, and of which no error says why."""
    wrong = {Path(str(error).partition(":")[0]).stem for error in errors}
    known = {os.path.realpath(part.path(index)) for part in splits.values() for index in range(len(part))}
    folders = {os.path.dirname(path) for path in known}
    told = [each for part in splits.values() for each in part.findings if each.kind in ("not_annotated", "in_no_set")]
    rest = sorted(
        os.path.join(folder, name)
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
        if is_image_name(name)
        and Path(name).stem not in wrong
        and os.path.realpath(os.path.join(folder, name)) not in known
    )
    if not rest or told:
        return []
    return [Check("", Finding("not_listed", path, None, "is in no set")) for path in rest]


# -- the detector's settings ----------------------------------------------------------------------------


def resized_sides(part: Annotations | None, min_size: int, max_size: int) -> np.ndarray:
    """(N, 2) widths and heights of the objects to train on, in pixels of the resized images."""
    if part is None:
        return np.zeros((0, 2))
    shorter = np.minimum(part.widths, part.heights).astype(np.float64)
    longer = np.maximum(part.widths, part.heights).astype(np.float64)
    scale = np.minimum(min_size / np.maximum(shorter, 1), max_size / np.maximum(longer, 1))
    rows = ~(part.crowd | part.difficult) & np.repeat(part.widths < UNKNOWN_SIDE, part.counts)
    sides = part.boxes[:, 2:].astype(np.float64) - part.boxes[:, :2]
    return (sides * np.repeat(scale, part.counts)[:, None])[rows]


def _suggest_min_size(sides: np.ndarray, min_size: int, max_size: int) -> int | None:
    """A size at which no more than `SMALL_SHARE` of the objects are small, as far as max_size allows."""
    if not len(sides):
        return None
    tenth = float(np.quantile(np.sqrt(sides.prod(1)), SMALL_SHARE))
    if tenth >= SMALL:
        return None
    wanted = min(int(np.ceil(min_size * SMALL / max(tenth, 1e-9) / 32)) * 32, max_size)
    return wanted if wanted > min_size else None


def _fit_checks(
    splits: Mapping[str, Annotations],
    anchors: tuple[AnchorFit, AnchorFit] | None,
    sides: np.ndarray,
    suggested: int | None,
    min_size: int,
) -> list[Check]:
    if anchors is None:
        return []
    split = "train" if "train" in splits else ALL
    root, found = splits[split].root, []
    size = f"in images resized to {min_size} px"
    if (missed := 1 - anchors[0].share) > UNREACHED:
        text = f"{missed:.1%} of the objects have no default anchor with an IoU of 0.5 or more, {size}"
        found.append(Check(split, Finding("anchors", root, None, text, round(missed * len(sides)))))
    small = int((np.sqrt(sides.prod(1)) < SMALL).sum())
    if suggested is not None:
        text = f"{small / len(sides):.1%} of the objects are smaller than {SMALL:g} x {SMALL:g} pixels, {size}"
        found.append(Check(split, Finding("small_objects", root, None, text, small)))
    return found


# -- what is told ---------------------------------------------------------------------------------------


def _groups(checks: Sequence[Check]) -> dict[str, list[Check]]:
    """Kind -> its findings; what stops a run comes first, then what is lost."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.finding.kind, []).append(check)
    order = list(EFFECTS)
    return dict(sorted(groups.items(), key=lambda item: order.index(kind_of(item[0]).effect)))


def _text(
    checks: Sequence[Check],
    summary: DataSummary,
    anchors: tuple[AnchorFit, AnchorFit] | None,
    suggested: int | None,
    min_size: int,
) -> str:
    lines = []
    for split, counts in summary.splits.items():
        lines.append(f"{split}: {counts.images:,} images ({counts.empty:,} without objects), {counts.boxes:,} boxes")
    for kind, group in _groups(checks).items():
        about = kind_of(kind)
        lines += ["", f"{kind.replace('_', ' ')}: {_count(group):,} ({EFFECTS[about.effect]})"]
        for check in group[:EXAMPLES]:
            where = f"{check.split}: " if check.split else ""
            lines.append(f"  {where}{check.finding if check.finding.file else check.finding.message}")
        if len(group) > EXAMPLES:
            lines.append(f"  and {len(group) - EXAMPLES:,} more")
        lines.append(f"  detkit: {about.does}; to mend it: {about.mend}")
    lines.append("")
    if anchors is not None:
        lines += _suggestion(*anchors, suggested, min_size)
    lines.append(_verdict(_groups(checks)))
    return "\n".join(lines)


def _suggestion(given: AnchorFit, better: AnchorFit, suggested: int | None, min_size: int) -> list[str]:
    reached = f"{given.share:.1%} of the objects at an IoU of 0.5"
    lines = [
        f"anchors: the default ones reach {reached} (images resized to {min_size} px; --min_size N for another size)"
    ]
    if better != given:
        sizes = ", ".join(f"[{size:g}]" for size in better.sizes)
        ratios = ", ".join(f"{ratio:g}" for ratio in better.ratios)
        lines.append(
            f"  suggested: --model.anchors.sizes '[{sizes}]' --model.anchors.ratios '[{ratios}]' "
            f"(with a pyramid) reach {better.share:.1%}"
        )
    if suggested is not None:
        lines.append(f"  suggested: --model.image.min_size {suggested}, so that small objects become larger")
    return lines


def _verdict(groups: Mapping[str, Sequence[Check]]) -> str:
    stops = [kind for kind in groups if kind_of(kind).effect == "stops"]
    loses = [kind for kind in groups if kind_of(kind).effect == "loses"]
    parts = [
        f"a run would stop ({', '.join(stops)})" if stops else "",
        f"something would be left out ({', '.join(loses)})" if loses else "",
    ]
    wrong = " and ".join(part for part in parts if part)
    if not groups:
        return "nothing found: the data set is ready"
    kinds = f"{len(groups)} kind{'s' if len(groups) > 1 else ''} of findings"
    return f"{kinds}; {wrong or 'nothing stops a run or is left out'}"


def _count(group: Sequence[Check]) -> int:
    return sum(check.finding.count for check in group)


def _as_dict(result: DoctorResult) -> dict[str, Any]:
    def one(check: Check, about: Kind) -> dict[str, Any]:
        finding = check.finding
        values: dict[str, Any] = {"kind": finding.kind, "effect": about.effect, "split": check.split or None}
        values |= {"file": finding.file or None, "object": finding.object, "message": finding.message}
        return values | {"count": finding.count, "detkit": about.does, "mend": about.mend}

    fits = {}
    if result.anchors is not None:
        fits = {name: fit._asdict() for name, fit in zip(("given", "suggested"), result.anchors, strict=True)}
    return to_json(
        {
            "splits": {name: vars(split) for name, split in result.summary.splits.items()},
            "findings": [one(check, kind_of(check.finding.kind)) for check in result.checks],
            "anchors": fits,
            "min_size": result.min_size,
            "exit_code": result.exit_code,
        }
    )
