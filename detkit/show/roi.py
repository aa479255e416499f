"""RoI pooling: which cells of a map, or which points, make the values of a region."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from detkit.errors import ConfigError
from detkit.features.roi_pooling import RoIPooler, pooled_cells, sampled_points
from detkit.show.canvas import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, draw_box, hide_axes, new_row, write_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_WRITTEN = 12  # cells a side up to which their values are written
BINS = (RED, SKY, PURPLE, GREEN, ORANGE, BLUE)


def pooling(
    feature: Tensor, box: Tensor, stride: int, output_size: int, kind: str = "max", sampling_ratio: int = 2
) -> Figure:
    """Draw one region on a feature map and, beside it, what `RoIPooler` makes of it.

    Max pooling: the region as it is (dashed), and for each bin the cells that it takes the largest value of; neighbours
    may share cells. The largest is circled. RoIAlign: the bins of the region, not rounded, and the points that each
    takes the mean of, half a cell to the lower right of the bins as `sampled_points` says.

    Args:
        feature: (H, W), one channel of a map.
        box: (4,), in the image's pixels.
        stride: pixels per cell.
        output_size: S bins a side.
        kind: max or align.
        sampling_ratio: points a side of a bin; of align.

    Returns:
        a figure of two Axes: the map, in cells, and the pooled values (S, S).

    Raises:
        ConfigError: a map that is not one channel, or an unknown kind.
    """
    if feature.ndim != 2:
        raise ConfigError(f"a feature map is drawn channel by channel: give (H, W), not {tuple(feature.shape)}")
    feature, box = feature.detach().float().cpu(), box.detach().float().cpu()
    rois = box.new_tensor([[0.0, *box.tolist()]])
    pooled = RoIPooler(kind, output_size, [stride], sampling_ratio)([feature[None, None]], rois)[0, 0]
    figure = new_row(2, 4.0, widths=(1.7, 1.0))
    left, right = figure.axes
    scale: dict[str, Any] = {"vmin": float(feature.min()), "vmax": float(feature.max()), "cmap": "Greys"}
    height, width = feature.shape
    left.imshow(feature.numpy(), extent=(0, width, height, 0), **scale)
    middle = (scale["vmin"] + scale["vmax"]) / 2

    def ink(value: float) -> str:
        return "white" if value > middle else "black"

    if max(feature.shape) <= MAX_WRITTEN:
        left.set_xticks(range(width + 1))
        left.set_yticks(range(height + 1))
        left.grid(color="white", linewidth=0.5)
        write_values(left, feature, ink)
    left.tick_params(labelsize=8)
    of_pixels = "" if stride == 1 else f" of {stride} pixels"
    left.set_xlabel(f"cells{of_pixels}; dark: large values", fontsize=9)
    own = (box / stride).tolist()
    if kind == "max":
        _draw_cells(left, feature, pooled_cells(box, stride, output_size))
        draw_box(left, own, "black", 1.5, linestyle="--", label="region")
        left.set_title("RoI max pooling: bins of whole cells", fontsize=10)
    else:
        _draw_points(left, own, sampled_points(box, stride, output_size, sampling_ratio), output_size)
        left.set_title(f"RoIAlign: {sampling_ratio} x {sampling_ratio} points a bin, not rounded", fontsize=10)
    right.imshow(pooled.numpy(), extent=(0, output_size, output_size, 0), **scale)
    write_values(right, pooled, ink)
    for row in range(output_size):
        for column in range(output_size):
            inset = (column + 0.04, row + 0.04, column + 0.96, row + 0.96)
            draw_box(right, inset, BINS[(row * output_size + column) % len(BINS)], 2.0)
    hide_axes(right)
    right.set_title(f"pooled: {output_size} x {output_size}", fontsize=10)
    return figure


def _draw_cells(ax: Axes, feature: Tensor, cells: Tensor) -> None:
    """Outline the cells of each bin, a little inside one another so that shared ones are seen, and circle the best."""
    from matplotlib.patches import Circle

    height, width = feature.shape
    for number, (x1, y1, x2, y2) in enumerate(cells.flatten(0, 1).tolist()):
        colour, inset = BINS[number % len(BINS)], 0.05 + 0.05 * (number % 4)
        draw_box(ax, (x1 + inset, y1 + inset, x2 - inset, y2 - inset), colour, 2.0)
        left, top = max(x1, 0), max(y1, 0)
        inside = feature[top : min(y2, height), left : min(x2, width)]
        if inside.numel():
            y, x = divmod(int(inside.argmax()), inside.shape[1])
            # Of several radii, as two bins may have the same largest value.
            circle = Circle((left + x + 0.5, top + y + 0.5), 0.32 + 0.06 * (number % 3), fill=False)
            circle.set(edgecolor=colour, linewidth=2)
            ax.add_patch(circle)


def _draw_points(ax: Axes, box: list[float], points: Tensor, bins: int) -> None:
    """Outline the bins, and draw the points of each in its colour."""
    x1, y1, x2, y2 = box
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)  # RoIAlign takes at least one cell
    wide, high = (x2 - x1) / bins, (y2 - y1) / bins
    for row in range(bins):
        for column in range(bins):
            colour = BINS[(row * bins + column) % len(BINS)]
            corner = (x1 + column * wide, y1 + row * high)
            draw_box(ax, (*corner, corner[0] + wide, corner[1] + high), "black", 0.8)
            x, y = points[row, column].reshape(-1, 2).T.tolist()
            ax.scatter(x, y, s=22, color=colour, edgecolors="white", lw=0.6)
    draw_box(ax, (x1, y1, x2, y2), "black", 1.5, linestyle="--", label="region")
