"""mAP and a report of detections in files, without a model: COCO's JSON or the VOC devkit's text."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detkit.__about__ import __version__
from detkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from detkit.evaluation.bootstrap import Resamples
    from detkit.evaluation.evaluation_files import EvaluationFiles
    from detkit.evaluation.evaluation_set import EvaluationSet
    from detkit.evaluation.protocol import Protocol


#: The numbers of the bootstrap's resamples, for a later comparison.
RESAMPLES_FILE = "resamples.npz"
REPORT_FILES = ("index.html", "metrics.json", "per_class.csv", "label_suspects.csv", RESAMPLES_FILE)


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` returns.

    Attributes:
        metrics: as `metrics.json` holds them: numbers by torchmetrics' names (in 0..1), `map_per_class` by class name,
            `protocol`, and what was evaluated.
        path: the page of the report, or `metrics.json` where there is none; None if nothing was written.
        text: the table, what was read, and where the report is.
    """

    metrics: dict[str, Any]
    path: Path | None
    text: str


def evaluate(
    detections: str | Path,
    annotations: str | Path,
    split: str | None = None,
    protocol: Literal["coco", "voc07", "voc10"] | None = None,
    iou_thresholds: list[float] | float | None = None,
    max_detections: list[int] | int | None = None,
    hit_rule: Literal[">", ">="] | None = None,
    difficult: Literal["ignore", "count"] = "ignore",
    other_images: Literal["error", "drop"] = "error",
    other_classes: Literal["error", "drop"] = "error",
    images: str | Path | None = None,
    output: str | Path | None = None,
    baseline: str | Path | None = None,
    score_threshold: float | None = None,
    intervals: int = 1000,
    report: bool = True,
) -> EvaluationResult:
    """Compute the mAP of detections in files, and write a report on them.

    Args:
        detections: COCO's results (JSON), or a folder or pattern of VOC's result files such as
            comp4_det_test_CLASS.txt. Files may be compressed by gzip. COCO's may stand in an object
            ({"predictions": [...]}), have segmentations in the place of boxes, and file names in the place of image
            ids, as `detkit predict` writes them for a folder.
        annotations: The ground truth: COCO's annotations (JSON), or a folder in VOC's layout.
        split: VOC only: the image set, such as "test" or "2007/test"; by default test.
        protocol: The protocol of the mAP; by default coco for COCO's files, for VOC's voc07 up to 2009, then voc10.
        iou_thresholds: Least IoU of a hit, in 0..1; the AP is the mean over several. By default the protocol's.
        max_detections: Protocol coco only: numbers of detections of an image and class. AP counts the largest; by
            default [1, 10, 100].
        hit_rule: Protocols voc07 and voc10 only: how the IoU of a hit compares with its threshold. By default ">"; the
            MATLAB devkit has ">=".
        difficult: Whether difficult objects are ignored (neither hit nor miss) or count as any other.
        other_images: Detections of images that the annotations do not list: an error, or dropped.
        other_classes: Detections of classes that the annotations do not have: an error, or dropped.
        images: Folder of the images, for the pictures in the report; by default looked for beside the annotations.
        output: Folder of the report; by default "report", beside the detections.
        baseline: metrics.json of another report, or the folder of a report or a run, to compare with.
        score_threshold: Least score in the report's confusion matrix, in 0..1; by default that of the best F1.
        intervals: Number of the bootstrap's resamples, for 95 % intervals; 0 for none.
        report: Whether to write the report. Without it only metrics.json (and resamples.npz, of the intervals) is
            written, and that only into an `output` that is given.

    Raises:
        DetkitError: an argument or a file that cannot be used.
    """
    began = time.monotonic()
    from detkit.evaluation.protocol import Protocol
    from detkit.evaluation.tables import baseline_text, find_baseline, metrics_text, read_baseline
    from detkit.files import check_output, keep_inputs, overwrite_note, publish, staged, write_json
    from detkit.system import has_compiled

    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise ConfigError(f"score_threshold {score_threshold:g}: scores go from 0 to 1")
    if intervals < 0:
        raise ConfigError(f"intervals {intervals}: the number of resamples must be 0 or more")
    earlier, resampled = (None, None) if baseline is None else (read_baseline(baseline), read_resampled(baseline))
    if images is not None and not os.path.isdir(images):
        raise ConfigError(f"images {images}: folder does not exist")
    folder = Path(output or Path(detections).parent / "report") if report or output is not None else None
    if folder is not None:
        check_output(folder)
        read = [detections, annotations, None if baseline is None else find_baseline(baseline)]
        keep_inputs([folder / name for name in (REPORT_FILES if report else ("metrics.json", RESAMPLES_FILE))], read)
    files = _read(str(detections), str(annotations), split, other_images=other_images, other_classes=other_classes)
    settings = Protocol(
        protocol or files.protocol,
        iou_thresholds=_as_list(iou_thresholds),
        max_detections=_as_list(max_detections),
        hit_rule=hit_rule,
        difficult=difficult,
    )
    has_read = time.monotonic()
    numbers = settings.evaluate(files.evaluation_set, len(files.class_names))
    has_evaluated = time.monotonic()
    metrics = _metrics(numbers, settings, files, str(detections))
    resamples = None
    if intervals:
        from detkit.evaluation.bootstrap import bootstrap

        resamples = bootstrap(files.evaluation_set, files.class_names, settings, intervals)
        metrics |= with_intervals(resamples, files.evaluation_set, earlier, resampled)
    has_resampled = time.monotonic()
    compiled = " (most of it compiling, which is needed once)" if has_compiled() else ""
    data = f"{files.data} ({files.split})" if files.split else files.data
    lines = [
        metrics_text(metrics, f"evaluate: {detections} on {data}, {metrics['num_images']} images"),
        *_summary(files),
        f"read in {has_read - began:.2f} s, evaluated in {has_evaluated - has_read:.2f} s"
        + (f", intervals in {has_resampled - has_evaluated:.2f} s" if intervals else "")
        + compiled,
    ]
    if earlier is not None:
        lines.append(baseline_text(metrics, earlier))
    path = None
    if folder is not None:
        with staged(folder) as part:
            if report:
                paths = _image_paths(files, images, str(annotations))
                page = report_of(
                    files.evaluation_set,
                    files.class_names,
                    settings,
                    folder=part,
                    metrics=metrics,
                    image_paths=paths,
                    title=f"{Path(detections).name} on {files.data}",
                    score_threshold=score_threshold,
                    baseline=earlier,
                )
                path = folder / page.name
            else:
                path = folder / "metrics.json"
                write_json(part / path.name, metrics)
            if resamples is not None:
                resamples.save(part / RESAMPLES_FILE)
            note = overwrite_note(publish(part, folder), "--output")
        lines.append(f"{'report' if report else 'metrics'}: {path}{note}")
    return EvaluationResult(metrics, path, "\n".join(lines))


def _read(detections: str, annotations: str, split: str | None, **choices: Any) -> EvaluationFiles:
    """Read the files: a folder of annotations is in VOC's layout, a file in COCO's."""
    if detections.endswith(".csv") or os.path.isfile(os.path.join(detections, "classes.txt")):
        raise ConfigError(
            f"detections {detections}: are a table or YOLO's text files, which are not evaluated; predict with "
            "--format coco or --format voc"
        )
    if os.path.isdir(annotations):
        _refuse_coco_folder(annotations)
    if os.path.isdir(annotations):
        if detections.endswith((".json", ".json.gz")):
            raise ConfigError(
                f"detections {detections} are COCO's and annotations {annotations} are VOC's: give COCO's annotations, "
                "or VOC's result files, which `detkit predict --format voc` writes"
            )
        from detkit.evaluation.voc_result_files import read_voc_results

        return read_voc_results(detections, annotations, split or "test", **choices)
    if split is not None:
        raise ConfigError(f"split {split} is for VOC's layout, and {annotations} is no folder")
    from detkit.evaluation.coco_files import read_coco_results

    return read_coco_results(detections, annotations, **choices)


def _refuse_coco_folder(annotations: str) -> None:
    """Tell a folder in COCO's layout from one in VOC's."""
    from detkit.data.layouts import find_layout
    from detkit.data.voc_files import find_folders

    if find_folders(annotations) or not glob.glob(os.path.join(annotations, "**", "*.json"), recursive=True):
        return
    try:
        layout = find_layout(annotations)
    except DataError:  # the reader says what is wrong
        return
    if layout.class_name == "COCO":
        raise ConfigError(f"annotations {annotations}: is a folder in COCO's layout; give a file of it ({layout.why})")


def _as_list(values: list[Any] | float | None) -> list[Any] | None:
    return values if values is None or isinstance(values, list) else [values]


def _metrics(numbers: dict[str, Any], protocol: Protocol, files: EvaluationFiles, detections: str) -> dict[str, Any]:
    """The content of `metrics.json`."""
    per_class = dict(zip(files.class_names, numbers["map_per_class"].tolist(), strict=True))
    return {
        **{name: value for name, value in numbers.items() if isinstance(value, float)},
        "map_per_class": per_class,
        "num_images": len(files.evaluation_set),
        "num_over_limit": numbers["num_over_limit"],
        "max_detections": protocol.max_detections[-1] if protocol.max_detections else None,
        "protocol": protocol.description,
        "detections": detections,
        "data": files.data,
        **({"split": files.split} if files.split else {}),
        "detkit": __version__,
    }


def _summary(files: EvaluationFiles) -> list[str]:
    """How much was read, and a note on each thing that the user should know."""
    s = files.evaluation_set
    counts = {"crowd": int(s.crowd.sum()), "difficult": int((s.difficult & ~s.crowd).sum())}
    special = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    objects = f"{len(s.boxes):,} objects{f' ({special})' if special else ''}"
    lines = [f"{len(s):,} images, {objects}, {len(s.scores):,} detections, {len(files.class_names)} classes"]
    if not len(s.scores):
        lines.append("note: there are no detections")
    return lines + [f"note: {finding}" for finding in files.findings]


def _image_paths(files: EvaluationFiles, images: str | Path | None, annotations: str) -> dict[int | str, str]:
    """The path of each image; for COCO's annotations the folder is guessed if it is not given."""
    from detkit.data.input_files import is_inside

    ids: Sequence[Any] = files.evaluation_set.image_ids
    if os.path.isdir(annotations):  # VOC's reader knows the full paths
        names = files.image_files if images is None else [os.path.basename(name) for name in files.image_files]
        return {i: os.path.join(images or "", name) for i, name in zip(ids, names, strict=True) if name}
    if images is None:
        images = _guess_folder(Path(annotations).resolve(), [name for name in files.image_files if name][:10])
    return {i: os.path.join(images, name) for i, name in zip(ids, files.image_files, strict=True) if is_inside(name)}


def _guess_folder(annotations: Path, names: Sequence[str]) -> str:
    """The folder of images beside the annotations, or "": val2017/ for annotations/instances_val2017.json."""
    split = re.sub(r"^(instances|annotations)?_?|\.json(\.gz)?$", "", annotations.name)
    root = annotations.parent.parent
    for folder in (root / split, root / "images" / split, annotations.parent / "images", annotations.parent):
        if any(os.path.isfile(folder / name) for name in names):
            return str(folder)
    return ""


def report_of(
    evaluated: EvaluationSet,
    class_names: Sequence[str],
    protocol: Protocol,
    *,
    folder: Path,
    metrics: dict[str, Any],
    image_paths: Mapping[int | str, str],
    title: str,
    score_threshold: float | None,
    baseline: dict[str, Any] | None,
    training: Mapping[str, Path] | None = None,
) -> Path:
    """Analyse what was evaluated, and write the report into a folder; see `write_report`."""
    # Imported here: numba and the templates take a second.
    from detkit.evaluation.analysis import analyse
    from detkit.evaluation.report import write_report

    limit = {} if protocol.max_detections is None else {"max_detections": protocol.max_detections[-1]}
    seen = protocol.seen(evaluated)
    analysis = analyse(seen, list(class_names), score_threshold, **limit)
    return write_report(folder, metrics, seen, analysis, image_paths, title, baseline, training)


def read_resampled(baseline: str | Path) -> Resamples | None:
    """The resamples of an earlier report, which lie beside its metrics; None where it has none.

    Raises:
        DataError: they cannot be read.
    """
    from detkit.evaluation.bootstrap import read_resamples
    from detkit.evaluation.tables import find_baseline

    path = find_baseline(baseline).with_name(RESAMPLES_FILE)
    return read_resamples(path) if path.is_file() else None


def with_intervals(
    resamples: Resamples,
    evaluated: EvaluationSet,
    baseline: Mapping[str, Any] | None,
    before: Resamples | None,
) -> dict[str, dict[str, Any]]:
    """What metrics.json holds of the bootstrap: `intervals` and, with a baseline, `differences` from it.

    Args:
        evaluated: what was resampled; of a small set `intervals` has a `note`.
        baseline: the content of the baseline's metrics.json.
        before: the baseline's resamples.
    """
    from detkit.evaluation.bootstrap import difference, few_note

    note = few_note(len(evaluated), int((~evaluated.ignored).sum()))
    result = {"intervals": resamples.intervals() | ({"note": note} if note else {})}
    if baseline is None:
        return result
    if before is None or not baseline.get("intervals"):  # a file of another report
        reason = f"the baseline has no {RESAMPLES_FILE}: evaluate it again with this version"
        return result | {"differences": {"unpaired": reason}}
    try:
        return result | {"differences": difference(resamples, before)}
    except ValueError as error:
        return result | {"differences": {"unpaired": str(error)}}
