"""The errors that a user can correct.

Each message names the file, the object and the fix. The command line prints it without a traceback and exits with code
2. This file imports nothing, so that every other one can import it.
"""

from __future__ import annotations


class DetkitError(Exception):
    """Base class of detkit's errors."""

    def __str__(self) -> str:
        # A DataLoader raises a worker's error again, with the worker's traceback in front of the message.
        text = super().__str__()
        prefix = f"{type(self).__qualname__}: "
        return text.rpartition(prefix)[2].strip() if text.startswith("Caught ") and prefix in text else text


class DataError(DetkitError):
    """A data set, an annotation or an image is missing or invalid."""


class ConfigError(DetkitError, ValueError):
    """An option, or a combination of options, is invalid."""


class CheckpointError(DetkitError):
    """A checkpoint is missing, unreadable or of another model."""


class WeightsError(DetkitError):
    """The keys or shapes of a weights file do not fit the network."""


class TrainingError(DetkitError):
    """Training cannot continue, for example after a loss that is not finite."""


class ImageTypeError(DetkitError, TypeError):
    """An image is not a uint8 tensor of shape (3, H, W)."""
