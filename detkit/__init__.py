"""detkit: R-CNN, Fast R-CNN and Faster R-CNN as LightningModules that share one set of parts.

Importing it is quick: what a name needs is imported when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.__about__ import __version__ as __version__
from detkit.errors import DetkitError as DetkitError
from detkit.lazy import lazy_names

if TYPE_CHECKING:
    from detkit import boxes as boxes
    from detkit import data as data
    from detkit import evaluation as evaluation
    from detkit import proposals as proposals
    from detkit import show as show
    from detkit.classification import ImageClassifier as ImageClassifier
    from detkit.deploy import load as load
    from detkit.detectors import RCNN as RCNN
    from detkit.detectors import FasterRCNN as FasterRCNN
    from detkit.detectors import FastRCNN as FastRCNN
    from detkit.drawing import draw as draw
    from detkit.tools import benchmark as benchmark
    from detkit.tools.compress import compress as compress
    from detkit.tools.convert import convert as convert
    from detkit.tools.demo import demo as demo
    from detkit.tools.doctor import doctor as doctor
    from detkit.tools.evaluate import evaluate as evaluate
    from detkit.tools.export import export as export
    from detkit.tools.propose import propose as propose
    from detkit.tools.recipe import recipe as recipe
    from detkit.tools.split import split as split

_PACKAGES = (
    "boxes",
    "classification",
    "data",
    "detectors",
    "evaluation",
    "features",
    "heads",
    "proposals",
    "show",
    "training",
)

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "detkit.__about__": ["__version__"],
        "detkit.errors": ["DetkitError"],
        "detkit.detectors": ["RCNN", "FastRCNN", "FasterRCNN"],
        "detkit.classification": ["ImageClassifier"],
        "detkit.drawing": ["draw"],
        "detkit.deploy": ["load"],
        "detkit.tools.compress": ["compress"],
        "detkit.tools.convert": ["convert"],
        "detkit.tools.demo": ["demo"],
        "detkit.tools.doctor": ["doctor"],
        "detkit.tools.evaluate": ["evaluate"],
        "detkit.tools.export": ["export"],
        "detkit.tools.propose": ["propose"],
        "detkit.tools.recipe": ["recipe"],
        "detkit.tools.split": ["split"],
    },
    [*(f"detkit.{name}" for name in _PACKAGES), "detkit.tools.benchmark"],
)
