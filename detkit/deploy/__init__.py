"""Detectors as one graph that other programs run: written to files, and read again without torch.

`load` is `detkit.load`: a detector to predict with, from any file that holds one.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from detkit.deploy.description import is_exported

if TYPE_CHECKING:
    from detkit.deploy.runtime import ExportedModel
    from detkit.detectors import Detector


def load(path: str | PathLike[str], device: str = "cpu", optimize: bool = False) -> Detector | ExportedModel:
    """The detector of a run's folder or of a file, ready for `predict`.

    Args:
        path: what `detkit.detectors.load` takes (a run, a checkpoint, ``torchvision:NAME``), or a file that
            `detkit export` has written, which is run without torch.
        device: where to put it.
        optimize: make it faster on a CPU, see `detkit.detectors.optimize_for_inference`; it cannot be trained then. An
            exported file stays as it is.

    Raises:
        CheckpointError: if there is no checkpoint, it cannot be read, or it is not one of a detector.
        ConfigError: torchvision has no detector of that name, or no runtime for the file is installed.
    """
    if is_exported(path):
        from detkit.deploy.runtime import ExportedModel

        return ExportedModel(path, device)
    from detkit.detectors import load as load_detector
    from detkit.detectors import optimize_for_inference

    detector = load_detector(path, device)
    if optimize:
        optimize_for_inference(detector)
    return detector
