"""A detector in a file that other programs run: ONNX, OpenVINO, or PyTorch's own."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from detkit.errors import ConfigError
from detkit.settings import check_choice


@dataclass(frozen=True)
class ExportResult:
    """What `export` returns.

    Attributes:
        path: the file; OpenVINO's weights lie beside it.
        text: what was written, and how it is used.
    """

    path: Path
    text: str


def export(
    ckpt_path: str | Path,
    format: Literal["onnx", "openvino", "torch_export"] = "onnx",
    output: str | Path | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
) -> ExportResult:
    """Write a detector as one graph, from uint8 images of any size to boxes in their pixels; it runs without detkit.

    Args:
        ckpt_path: A run's folder, whose best checkpoint it means, a checkpoint file, or torchvision:NAME.
        format: onnx (one file), openvino (an .xml and a .bin file) or torch_export (for torch.export.load).
        output: The new file; by default NAME.onnx, .xml or .pt2 beside the checkpoint.
        score_threshold: The detections' least score, in 0..1; by default the checkpoint's.
        max_detections: At most so many detections of an image; by default the checkpoint's.

    Raises:
        DetkitError: a checkpoint or an argument that cannot be used, or a package that is not installed.
    """
    from detkit.__about__ import __version__
    from detkit.deploy.description import Description
    from detkit.deploy.graph import DetectionGraph, trace
    from detkit.deploy.writers import FORMATS
    from detkit.detectors import FastRCNN, load
    from detkit.engine.checkpoints import find_checkpoint
    from detkit.engine.torchvision_detectors import name_in
    from detkit.files import check_output, overwrite_note, staged

    check_choice("format", format, tuple(FORMATS))
    write, suffix = FORMATS[format]
    name = name_in(ckpt_path)
    source = Path(f"{name}.ckpt") if name is not None else find_checkpoint(ckpt_path).path
    path = source.with_suffix(suffix) if output is None else Path(output)
    if path.suffix.lower() != suffix:
        raise ConfigError(f"output {path}: a file of {format} ends in {suffix}; name it {path.with_suffix(suffix)}")
    if path.is_dir():
        raise ConfigError(f"output {path}: is a folder; name a file")
    check_output(path.parent)
    detector = load(ckpt_path)
    graph = DetectionGraph(detector)
    given = {"score_threshold": score_threshold, "max_detections": max_detections}
    heads: Any = detector.roi_heads
    heads.detection = replace(heads.detection, **{k: v for k, v in given.items() if v is not None})
    description = Description(
        type(detector).__name__,
        list(detector.class_names),
        list(detector.category_ids or range(1, detector.num_classes + 1)),
        heads.detection.score_threshold,
        heads.detection.max_detections,
        detector.given.settings.max_boxes[1] or 0 if isinstance(detector, FastRCNN) else 0,
        source.name,
        __version__,
    )
    began, replaces = time.monotonic(), path.exists()
    program = trace(graph)
    with staged(path.parent) as part:
        write(program, description, part / path.name)
        size = sum(file.stat().st_size for file in part.iterdir())
    note = overwrite_note(replaces, "--output", "FILE")
    lines = [f"exported: {path}{note} ({size / 1e6:.1f} MB, in {time.monotonic() - began:.0f} s)"]
    if format == "torch_export":
        lines.append(f'next: torch.export.load("{path}").module()(images), after import torchvision')
    elif isinstance(detector, FastRCNN):
        lines.append(f'next: detkit.load("{path}").predict("photo.jpg", proposals=boxes) in Python')
    else:
        lines += [f"next: detkit predict {path} PHOTOS", f'      in Python detkit.load("{path}").predict("photo.jpg")']
    return ExportResult(path, "\n".join(lines))
