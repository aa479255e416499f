"""Benchmarks on the user's own machine: `generations` compares R-CNN, Fast R-CNN and Faster R-CNN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.lazy import lazy_names

if TYPE_CHECKING:
    from detkit.tools.benchmark.compare import generations as generations

__getattr__, __dir__, __all__ = lazy_names(__name__, {"detkit.tools.benchmark.compare": ["generations"]})
