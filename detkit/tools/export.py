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
    int8: str | None = None,
    half: bool = False,
) -> ExportResult:
    """Write a detector as one graph, from uint8 images of any size to boxes in their pixels; it runs without detkit.

    Args:
        ckpt_path: A run's folder, whose best checkpoint it means, a checkpoint file, or torchvision:NAME.
        format: onnx (one file), openvino (an .xml and a .bin file) or torch_export (for torch.export.load).
        output: The new file; by default NAME.onnx, .xml or .pt2 beside the checkpoint.
        score_threshold: The detections' least score, in 0..1; by default the checkpoint's.
        max_detections: At most so many detections of an image; by default the checkpoint's.
        int8: A folder of photographs such as the detector will see, at most 50 of which are read: convolutions and
            linear layers become 8-bit integers. It is quicker, and some accuracy is lost: measure it by `detkit test`.
        half: Of OpenVINO: weights in float16, which halves the file.

    Raises:
        DetkitError: a checkpoint or an argument that cannot be used, or a package that is not installed.
    """
    from detkit.data.inputs import find_inputs
    from detkit.deploy.graph import DetectionGraph, describe, trace
    from detkit.deploy.writers import FORMATS, Numbers
    from detkit.detectors import FastRCNN, load
    from detkit.detectors.inference import fold_batch_norms
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
    if (half and format != "openvino") or (int8 is not None and format == "torch_export"):
        raise ConfigError(f"format {format}: half goes with openvino, int8 with onnx and openvino")
    if path.is_dir():
        raise ConfigError(f"output {path}: is a folder; name a file")
    check_output(path.parent)
    numbers = Numbers([image.path for image in find_inputs(int8).images] if int8 is not None else (), half)
    detector = load(ckpt_path)
    graph = DetectionGraph(detector)
    given = {"score_threshold": score_threshold, "max_detections": max_detections}
    heads: Any = detector.roi_heads
    heads.detection = replace(heads.detection, **{k: v for k, v in given.items() if v is not None})
    description = describe(detector, source.name)
    fold_batch_norms(detector)  # those of a head cannot be traced, and 8 bits lose accuracy with them
    began, replaces = time.monotonic(), path.exists()
    program = trace(graph)
    with staged(path.parent) as part:
        write(program, description, part / path.name, numbers)
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
