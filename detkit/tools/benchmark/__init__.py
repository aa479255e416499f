"""Benchmarks on the user's own machine.

`generations` compares R-CNN, Fast R-CNN and Faster R-CNN; `speed` times one detector in every way in which it runs.
"""

from detkit.tools.benchmark.compare import generations
from detkit.tools.benchmark.detector_speed import speed

__all__ = ["generations", "speed"]
