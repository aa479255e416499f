"""How good detections are: precision against recall as each protocol sums it up, and what errors cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from detkit.evaluation.coco import RECALL_THRESHOLDS
from detkit.evaluation.voc import ELEVEN_POINTS, average
from detkit.settings import check_choice
from detkit.show.canvas import BLUE, INK, ORANGE, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from detkit.evaluation.analysis import Analysis
    from detkit.evaluation.curves import ClassCurve

NAMES = {"voc07": "VOC07: mean of 11 points", "voc10": "VOC10: area", "coco": "COCO: mean of 101 points"}


def precision_recall(curve: ClassCurve, protocol: str, ax: Axes | None = None) -> Axes:
    """Draw a curve of precision against recall, and what a protocol makes of it: its AP at this IoU threshold.

    At each recall the protocols take the best precision at that recall or beyond, 0 where it is not reached. VOC10
    takes the area below; VOC07 and COCO take the mean at 11 and at 101 recalls.

    Args:
        curve: of a class that has objects; from `detkit.evaluation.curves.precision_recall`.
        protocol: voc07, voc10 or coco.
        ax: where to draw; None: on a new figure.

    Raises:
        ConfigError: an unknown protocol.
    """
    check_choice("protocol", protocol, NAMES)
    hits = np.flatnonzero(np.diff(np.append(0, curve.recall)) > 0)
    at_hits = curve.precision[hits]
    if protocol == "coco":
        recalls = np.asarray(RECALL_THRESHOLDS)
        ap = float(curve.best_precision(recalls).mean())
    else:
        recalls = ELEVEN_POINTS if protocol == "voc07" else ELEVEN_POINTS[:0]
        ap = float(average(at_hits.copy(), len(hits), curve.num_objects, recalls))
    ax = axes_or_new(ax, 3.8)
    best = np.maximum.accumulate(at_hits[::-1])[::-1]
    steps_x = np.append(0, np.repeat(curve.recall[hits], 2))
    steps_y = np.append(np.repeat(best, 2), 0)
    ax.fill_between(steps_x, steps_y, color=BLUE, alpha=0.2 if protocol == "voc10" else 0.07, linewidth=0)
    ax.plot(steps_x, steps_y, color=BLUE, linewidth=1.2, label="best precision at this recall or beyond")
    if len(recalls):
        size = 28 if len(recalls) < 20 else 6
        ax.scatter(recalls, curve.best_precision(recalls), s=size, color=BLUE, zorder=3, label=f"{len(recalls)} points")
    ax.plot(curve.recall, curve.precision, "o", markersize=6, mfc="white", mec=ORANGE, mew=1.8, label="detections")
    ax.set(xlim=(-0.03, 1.03), ylim=(0, 1.05))
    ax.set_xlabel("recall: share of the objects found", fontsize=9)
    ax.set_ylabel("precision: share of the detections right", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
    ax.set_title(f"{NAMES[protocol]}\nAP {ap:.4f}", fontsize=10)
    return ax


def errors(analysis: Analysis, ax: Axes | None = None) -> Axes:
    """Draw what each kind of error costs in AP, and how many there are (TIDE's six kinds).

    Args:
        analysis: from `detkit.evaluation.analysis.analyse`.
        ax: where to draw; None: on a new figure.
    """
    ax = axes_or_new(ax, 3.2)
    names = list(analysis.error_ap)
    costs = [analysis.error_ap[name] for name in names]
    ax.barh(names, costs, color=BLUE)
    ax.invert_yaxis()
    for position, (name, cost) in enumerate(zip(names, costs, strict=True)):
        count = analysis.error_counts[name]
        text = f" {cost:.3f} ({count:,} error{'s' if count != 1 else ''})"
        ax.text(cost, position, text, va="center", fontsize=9, color=INK)
    ax.set_xlim(0, max(max(costs) * 1.4, 0.01))
    ax.set_xlabel(f"AP at IoU {analysis.foreground:g} that would be added without them", fontsize=9)
    ax.tick_params(labelsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"What errors cost; AP at IoU {analysis.foreground:g} is {analysis.base_ap:.3f}", fontsize=10)
    return ax
