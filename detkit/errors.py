"""The errors detkit raises for what a user can mend.

Each message names the file, the object and the fix. The command line prints it
without a traceback and exits with code 2.
"""

from __future__ import annotations


class DetkitError(Exception):
    """Base of every error of detkit's own."""

    def __str__(self) -> str:
        # A DataLoader hands on what a worker raised with the worker's traceback before it.
        text, own = super().__str__(), f"{type(self).__qualname__}: "
        return text.rpartition(own)[2].strip() if text.startswith("Caught ") and own in text else text


class DataError(DetkitError):
    """A data set, an annotation or an image that cannot be used as it is."""


class ConfigError(DetkitError, ValueError):
    """An option, or a combination of options, that cannot work."""


class CheckpointError(DetkitError):
    """A checkpoint that is missing, unreadable or of another model."""


class WeightsError(DetkitError):
    """A weights file whose keys or shapes do not fit the network."""


class TrainingError(DetkitError):
    """Training that cannot go on, for example after a loss that is not finite."""


class ImageTypeError(DetkitError, TypeError):
    """An image that is not a uint8 tensor of shape (3, H, W)."""
