"""`detkit evaluate`: mAP and report of detections in files, without a model: COCO's JSON or the VOC devkit's text."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from detkit.__about__ import __version__
from detkit.errors import ConfigError

if TYPE_CHECKING:
    from detkit.evaluation.from_files import EvaluationFiles
    from detkit.evaluation.protocol import Protocol

EXAMPLES = """examples:
  detkit evaluate --detections predictions.json --annotations instances_val2017.json --images val2017/
  detkit evaluate --detections results/VOC2007/Main --annotations VOCdevkit/VOC2007 --split test
  detkit evaluate --detections new.json --annotations instances.json --baseline old/report/metrics.json
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n`detkit evaluate --help` shows all options.")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    result = _Parser(
        "detkit evaluate",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add(
        "--detections", required=True, metavar="PATH",
        help="COCO's results (JSON), or a folder or pattern of VOC's result files such as comp4_det_test_CLASS.txt; "
        "files packed by gzip will do",
    )  # fmt: skip
    add(
        "--annotations", required=True, metavar="PATH",
        help="the ground truth: COCO's annotations (JSON), or a folder in VOC's layout",
    )  # fmt: skip
    add("--split", metavar="NAME", help='VOC: image set, such as "test" or "2007/test" (default: test)')
    add(
        "--protocol", choices=("coco", "voc07", "voc10"),
        help="of the mAP (default: coco for COCO's files, for VOC's voc07 up to 2009 and voc10 after)",
    )  # fmt: skip
    add(
        "--iou-thresholds", type=float, nargs="+", metavar="IOU",
        help="least IoU of a hit, in 0..1; the mean is taken over several (default: the protocol's)",
    )  # fmt: skip
    add(
        "--max-detections", type=int, nargs="+", metavar="N",
        help="protocol coco: numbers of detections of an image and class; AP counts the largest (default: 1 10 100)",
    )  # fmt: skip
    add(
        "--hit-rule", choices=(">", ">="),
        help="protocols voc07 and voc10: what the IoU of a hit is to its threshold (default: >; MATLAB's devkit: >=)",
    )  # fmt: skip
    add(
        "--difficult", choices=("ignore", "count"), default="ignore",
        help="difficult objects are neither hits nor misses, or count as others do (default: ignore)",
    )  # fmt: skip
    for owners, what in (("images", "the annotations do not list"), ("classes", "the annotations do not know")):
        add(
            f"--other-{owners}", choices=("error", "drop"), default="error",
            help=f"what to do with {owners} that {what}: refuse them, or leave them out (default: error)",
        )  # fmt: skip
    add("--images", metavar="DIR", help="folder of the images, for the pictures in the report")
    add("--output", metavar="DIR", help="folder of the report (default: report, beside the detections)")
    add("--baseline", metavar="FILE", help="metrics.json of another report, or the folder it is in, to compare with")
    add(
        "--score-threshold", type=float, metavar="SCORE",
        help="least score in the report's confusion matrix (default: that of the best F1)",
    )  # fmt: skip
    add("--no-report", action="store_true", help="only the table, and with --output its metrics.json")
    return result


def main(args: Sequence[str]) -> int:
    """Read, evaluate, print and report.

    Args:
        args: the arguments after ``evaluate``; see ``detkit evaluate --help``.

    Raises:
        DetkitError: an option or a file that cannot be used.
    """
    began = time.monotonic()
    # Other commands' options have underscores: either will do.
    options = parser().parse_args([_hyphens(each) for each in args])
    from detkit.evaluation.tables import baseline_text, metrics_text, read_baseline
    from detkit.files import overwrite_note

    if options.score_threshold is not None and not 0 <= options.score_threshold <= 1:
        raise ConfigError(f"--score_threshold {options.score_threshold:g}: scores go from 0 to 1")
    baseline = None if options.baseline is None else read_baseline(options.baseline)
    if options.images is not None and not os.path.isdir(options.images):
        raise ConfigError(f"--images {options.images}: folder does not exist")

    from detkit.compiled import has_compiled
    from detkit.evaluation.protocol import Protocol

    files = read(options)
    protocol = Protocol(
        options.protocol or files.protocol,
        iou_thresholds=options.iou_thresholds,
        max_detections=options.max_detections,
        hit_rule=options.hit_rule,
        difficult=options.difficult,
    )
    has_read = time.monotonic()
    numbers = protocol.evaluate(files.evaluation_set, len(files.class_names))
    has_evaluated = time.monotonic()
    metrics = to_metrics(numbers, protocol, files, options)
    data = f"{files.data} ({files.split})" if files.split else files.data
    print(metrics_text(metrics, f"evaluate: {options.detections} on {data}, {metrics['num_images']} images"))
    for line in summary(files):
        print(line)
    once = " (this first time most of it compiling, which is kept)" if has_compiled() else ""
    print(f"read in {has_read - began:.2f} s, evaluated in {has_evaluated - has_read:.2f} s{once}", flush=True)
    folder = Path(options.output or Path(options.detections).parent / "report")
    earlier = overwrite_note(folder / "metrics.json", "--output")
    try:
        path = _write(folder, files, protocol, metrics, options, baseline)
    except OSError as error:
        raise ConfigError(f"the report cannot be written ({error}); choose a folder with --output") from None
    if baseline is not None:
        print(baseline_text(metrics, baseline))
    if path is not None:
        print(f"{'metrics' if options.no_report else 'report'}: {path}{earlier}", flush=True)
    return 0


def read(options: argparse.Namespace) -> EvaluationFiles:
    """The files, by their layout: a folder of annotations is VOC's, a file COCO's."""
    choices = {name: getattr(options, name) for name in ("other_images", "other_classes")}
    if os.path.isdir(options.annotations):
        if options.detections.endswith((".json", ".json.gz")):
            raise ConfigError(
                f"--detections {options.detections} is COCO's and --annotations {options.annotations} VOC's: give "
                "COCO's annotations, or VOC's result files"
            )
        from detkit.evaluation.voc_result_files import read_voc_results

        return read_voc_results(options.detections, options.annotations, options.split or "test", **choices)
    if options.split is not None:
        raise ConfigError(f"--split is for VOC's layout, and {options.annotations} is no folder")
    from detkit.evaluation.coco_files import read_coco_results

    return read_coco_results(options.detections, options.annotations, **choices)


def to_metrics(
    numbers: dict[str, Any], protocol: Protocol, files: EvaluationFiles, options: argparse.Namespace
) -> dict[str, Any]:
    """What is printed and written: the numbers, and what they are of."""
    per_class = dict(zip(files.class_names, numbers["map_per_class"].tolist(), strict=True))
    return {
        **{name: value for name, value in numbers.items() if isinstance(value, float)},
        "map_per_class": per_class,
        "num_images": len(files.evaluation_set),
        "num_over_limit": numbers["num_over_limit"],
        "max_detections": protocol.max_detections[-1] if protocol.max_detections else None,
        "protocol": protocol.description,
        "detections": options.detections,
        "data": files.data,
        **({"split": files.split} if files.split else {}),
        "detkit": __version__,
    }


def summary(files: EvaluationFiles) -> list[str]:
    """What was read, and what a user should know of it, a line each."""
    s = files.evaluation_set
    crowd, difficult = int(s.crowd.sum()), int((s.difficult & ~s.crowd).sum())
    kinds = ", ".join(f"{count:,} {kind}" for count, kind in ((crowd, "crowd"), (difficult, "difficult")) if count)
    objects = f"{len(s.boxes):,} objects{f' ({kinds})' if kinds else ''}"
    lines = [f"{len(s):,} images, {objects}, {len(s.scores):,} detections, {len(files.class_names)} classes"]
    if not len(s.scores):
        lines.append("note: there is no detection at all")
    return lines + [f"note: {each}" for each in files.findings]


def image_paths(files: EvaluationFiles, images: str | None, annotations: str) -> dict[int | str, str]:
    """Where each image is; for COCO's annotations the folder is guessed if it is not given."""
    from detkit.data.voc_files import is_inside

    ids = files.evaluation_set.image_ids
    if os.path.isdir(annotations):  # VOC's reader has found them
        names = files.image_files if images is None else [os.path.basename(name) for name in files.image_files]
        return {i: os.path.join(images or "", name) for i, name in zip(ids, names, strict=True) if name}
    if images is None:
        images = _guess_folder(Path(annotations).resolve(), [name for name in files.image_files if name][:10])
    return {i: os.path.join(images, name) for i, name in zip(ids, files.image_files, strict=True) if is_inside(name)}


def _guess_folder(annotations: Path, some: Sequence[str]) -> str:
    """Where some of the images are: beside annotations/instances_val2017.json in val2017/, or nearby; else ""."""
    name = re.sub(r"^(instances|annotations)?_?|\.json(\.gz)?$", "", annotations.name)
    root = annotations.parent.parent
    for folder in (root / name, root / "images" / name, annotations.parent / "images", annotations.parent):
        if any((folder / each).is_file() for each in some):
            return str(folder)
    return ""


def _write(
    folder: Path,
    files: EvaluationFiles,
    protocol: Protocol,
    metrics: dict[str, Any],
    options: argparse.Namespace,
    baseline: dict[str, Any] | None,
) -> Path | None:
    """Writes the report, or only metrics.json, or nothing."""
    if options.no_report:
        if options.output is None:
            return None
        from detkit.files import write_json

        write_json(folder / "metrics.json", metrics)
        return folder / "metrics.json"
    from detkit.evaluation.analysis import analyse
    from detkit.evaluation.report import write_report

    most = {} if protocol.max_detections is None else {"max_detections": protocol.max_detections[-1]}
    seen = protocol.seen(files.evaluation_set)
    analysis = analyse(seen, files.class_names, options.score_threshold, **most)
    title = f"{Path(options.detections).name} on {files.data}"
    images = image_paths(files, options.images, options.annotations)
    return write_report(folder, metrics, seen, analysis, images, title, baseline)


def _hyphens(argument: str) -> str:
    """--iou-thresholds for --iou_thresholds."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument
