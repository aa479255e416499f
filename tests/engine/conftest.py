"""The small detector, its data and its trainer, which the tests of the detectors have too."""

from tests.detectors.conftest import drawn, shapes, small, trainer

__all__ = ["drawn", "shapes", "small", "trainer"]
