"""Benchmarks on the user's own machine: `generations` compares R-CNN, Fast R-CNN and Faster R-CNN."""

from detkit.tools.benchmark.compare import generations

__all__ = ["generations"]
