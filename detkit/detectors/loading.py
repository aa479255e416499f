"""From a run's folder or a checkpoint to a detector that is ready to predict."""

from __future__ import annotations

from os import PathLike
from typing import Any

from detkit.detectors.base import Detector
from detkit.engine.checkpoints import find_checkpoint, read_checkpoint
from detkit.errors import CheckpointError


def load(path: str | PathLike[str], device: str = "cpu") -> Detector:
    """The detector of a run's folder (its best checkpoint, else its last) or of a checkpoint file.

    Nothing else is needed: architecture, classes and preprocessing are in the checkpoint.

    Args:
        path: such as ``runs/demo`` or ``runs/demo/version_0/checkpoints/best.ckpt``.
        device: where to put it.

    Returns:
        the detector in eval mode; see `Detector.predict`.

    Raises:
        CheckpointError: if there is no checkpoint, it cannot be read, or it is not one of a detector.
    """
    file = find_checkpoint(path).path
    return restore(read_checkpoint(file), source=str(file)).to(device).eval()


def restore(checkpoint: dict[str, Any], source: str) -> Detector:
    """The detector of a checkpoint that was read.

    Raises:
        CheckpointError: if its class is unknown, or its arguments or weights do not fit this version.
    """
    import detkit.detectors as detectors

    name = checkpoint["detkit"]["class"]
    detector = getattr(detectors, name, None)
    if not (isinstance(detector, type) and issubclass(detector, Detector)):
        raise CheckpointError(f"{source}: holds a {name}, which is not a detector of this version")
    try:
        # The weights come from the checkpoint: those the backbone began with are not read (or downloaded) again.
        model = detector(**{**checkpoint["hyper_parameters"], "weights": None})
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    except (TypeError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{source}: does not fit {name} of this version ({str(error).strip().splitlines()[0]})"
        ) from error
    return model
