"""Convolution and max pooling with their numbers: which cells of the input make a cell of the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from detkit.errors import ConfigError
from detkit.show.canvas import COLOURS, ORANGE, draw_box, hide_axes, new_row, write_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SIDE = 12  # cells a side that are drawn with their values
MAX_TERMS = 9  # products that are written as a sum


def convolution(values: Tensor, kernel: Tensor, cell: tuple[int, int] = (0, 0), stride: int = 1) -> Figure:
    """Draw a convolution without padding: its input, its kernel and its output, and how one cell of it is computed.

    Args:
        values: (H, W), one channel of at most 12 cells a side.
        kernel: (h, w). As in networks it is not flipped.
        cell: (row, column) of the output's cell; it and the cells that it is computed from are outlined.
        stride: cells from one window to the next.

    Returns:
        a figure of three Axes; below them the sum, where the kernel has at most 9 cells.

    Raises:
        ConfigError: other shapes, a kernel larger than the input, or a cell outside the output.
    """
    _check_side(values)
    if kernel.ndim != 2 or kernel.shape[0] > values.shape[0] or kernel.shape[1] > values.shape[1]:
        raise ConfigError(f"a kernel {tuple(kernel.shape)} does not fit into values {tuple(values.shape)}")
    values, kernel = values.detach().float().cpu(), kernel.detach().float().cpu()
    output = F.conv2d(values[None, None], kernel[None, None], stride=stride)[0, 0]
    row, column = cell
    if not (0 <= row < output.shape[0] and 0 <= column < output.shape[1]):
        raise ConfigError(f"cell {cell} is not on an output of {output.shape[0]} x {output.shape[1]}, counted from 0")
    sides = [values.shape[1], kernel.shape[1], output.shape[1]]
    figure = new_row(3, 3.0, widths=[max(side, 2) for side in sides])
    for ax, each, name in zip(figure.axes, (values, kernel, output), ("input", "kernel", "output"), strict=True):
        _draw_cells(ax, each, name)
    height, width = kernel.shape
    top, left = row * stride, column * stride
    draw_box(figure.axes[0], (left, top, left + width, top + height), ORANGE, 3.0)
    draw_box(figure.axes[2], (column, row, column + 1, row + 1), ORANGE, 3.0)
    if kernel.numel() <= MAX_TERMS:
        window = values[top : top + height, left : left + width]
        pairs = zip(window.flatten().tolist(), kernel.flatten().tolist(), strict=True)
        terms = " + ".join(f"{value:.3g}·{_factor(weight)}" for value, weight in pairs)
        figure.supxlabel(f"{terms} = {output[row, column]:.3g}", fontsize=9)
    return figure


def max_pooling(values: Tensor, size: int = 2, stride: int | None = None) -> Figure:
    """Draw max pooling: the windows of the input, each with its largest value circled, and the output.

    Args:
        values: (H, W), one channel of at most 12 cells a side.
        size: cells a side of a window.
        stride: cells from one window to the next; None: ``size``, so that they do not overlap.

    Returns:
        a figure of two Axes. What is left over at the right and lower border is in no window, as in PyTorch.

    Raises:
        ConfigError: other shapes, or a window larger than the input.
    """
    from matplotlib.patches import Circle

    _check_side(values)
    if not 1 <= size <= min(values.shape):
        raise ConfigError(f"a window of {size} x {size} does not fit into values {tuple(values.shape)}")
    stride = stride or size
    values = values.detach().float().cpu()
    pooled, index = F.max_pool2d(values[None, None], size, stride, return_indices=True)
    figure = new_row(2, 3.2, widths=[values.shape[1], max(pooled.shape[3], 2)])
    left, right = figure.axes
    _draw_cells(left, values, "input")
    _draw_cells(right, pooled[0, 0], "output: the largest of each window")
    for number, best in enumerate(index.flatten().tolist()):
        colour = COLOURS[number % len(COLOURS)]
        row, column = divmod(number, pooled.shape[3])
        x, y = column * stride, row * stride
        draw_box(left, (x + 0.06, y + 0.06, x + size - 0.06, y + size - 0.06), colour, 2.5)
        draw_box(right, (column + 0.06, row + 0.06, column + 0.94, row + 0.94), colour, 2.5)
        y_best, x_best = divmod(best, values.shape[1])
        left.add_patch(Circle((x_best + 0.5, y_best + 0.5), 0.36, fill=False, edgecolor=colour, linewidth=2))
    return figure


def _check_side(values: Tensor) -> None:
    if values.ndim != 2 or not values.numel() or max(values.shape) > MAX_SIDE:
        raise ConfigError(f"one channel (H, W) of at most {MAX_SIDE} cells a side is drawn, not {tuple(values.shape)}")


def _factor(weight: float) -> str:
    return f"({weight:.3g})" if weight < 0 else f"{weight:.3g}"


def _draw_cells(ax: Axes, values: Tensor, name: str) -> None:
    """Cells from white to dark grey, with their values; and their number in the title."""
    height, width = values.shape
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-6)
    # Only the lighter half of the greys: black numbers are read on all of them.
    ax.imshow(values.numpy(), extent=(0, width, height, 0), cmap="Greys", vmin=low, vmax=low + 2 * span)
    for x in range(width + 1):
        ax.axvline(x, color="white", linewidth=0.8, zorder=0.9)
    for y in range(height + 1):
        ax.axhline(y, color="white", linewidth=0.8, zorder=0.9)
    write_values(ax, values, "black", ".3g")
    hide_axes(ax)
    ax.set_title(f"{name}, {height} x {width}" if ":" not in name else name, fontsize=10)
