"""How ONNX writes the operations that PyTorch's exporter does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision  # noqa: F401  its operators
from onnxscript.onnx_opset import opset18 as op

#: Scores of boxes outside of a group, and the least score of those that are within.
OUTSIDE, LEAST = -3e38, -2e38
#: ONNX's number of the type.
INT64 = 7


def kept_by_nms(boxes: Any, scores: Any, groups: Any, iou_threshold: float) -> Any:
    """`detkit.boxes.kept_by_nms`: NonMaxSuppression knows classes, each with scores of its own for the same boxes."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    first, last = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    count = op.Add(op.ReduceMax(op.Concat(groups, first, axis=0), keepdims=0), one)
    is_own = op.Equal(op.Unsqueeze(op.Range(zero, count, one), last), op.Unsqueeze(groups, first))  # (G, N)
    table = op.Where(is_own, op.Unsqueeze(scores, first), op.Constant(value_float=OUTSIDE))
    found = op.NonMaxSuppression(
        op.Unsqueeze(boxes, first),
        op.Unsqueeze(table, first),
        op.Shape(scores),
        op.Constant(value_float=float(iou_threshold)),
        op.Constant(value_float=LEAST),
    )
    rows = op.Squeeze(op.Slice(found, op.Constant(value_ints=[2]), op.Constant(value_ints=[3]), last), last)
    ascending, _ = op.TopK(rows, op.Shape(rows), largest=0, sorted=1)
    return ascending


def sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """``aten.sort``: of equal values TopK, too, gives the earlier one first."""
    size = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]), axis=0)
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


def roi_pool(maps: Any, rois: Any, scale: float, height: int, width: int) -> tuple[Any, Any]:
    """``torchvision::roi_pool``; its second output is for training only."""
    pooled = op.MaxRoiPool(maps, rois, pooled_shape=[height, width], spatial_scale=scale)
    return pooled, op.Identity(pooled)


def multiscale_roi_align(
    maps: Sequence[Any], rois: Any, level: Any, scales: Sequence[float], size: int, samples: int
) -> Any:
    """`detkit.features.roi_align.multiscale_roi_align`: RoiAlign of each map, and all of them in the old order."""
    image = op.Cast(op.Squeeze(_columns(rois, 0, 1), op.Constant(value_ints=[1])), to=INT64)
    boxes = _columns(rois, 1, 5)
    attributes = {
        "coordinate_transformation_mode": "output_half_pixel",
        "output_height": size,
        "output_width": size,
        "sampling_ratio": samples,
    }
    if len(maps) == 1:
        return op.RoiAlign(maps[0], boxes, image, spatial_scale=scales[0], **attributes)
    rows, pooled = [], []
    for number, (each, scale) in enumerate(zip(maps, scales, strict=True)):
        own = op.Equal(level, op.Constant(value_int=number))
        row = op.Squeeze(op.NonZero(own), op.Constant(value_ints=[0]))
        rows.append(row)
        of_image, of_boxes = op.Gather(image, row), op.Gather(boxes, row)
        pooled.append(op.RoiAlign(each, of_boxes, of_image, spatial_scale=scale, **attributes))
    order = op.Concat(*rows, axis=0)
    _, position = op.TopK(order, op.Shape(order), largest=0, sorted=1)
    return op.Gather(op.Concat(*pooled, axis=0), position)


def _columns(table: Any, first: int, end: int) -> Any:
    """The columns from ``first`` to before ``end`` of a table (N, C)."""
    return op.Slice(table, *(op.Constant(value_ints=[value]) for value in (first, end, 1)))


def as_symbol(size: Any) -> Any:
    """The same number."""
    return op.Identity(size)


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.detkit.kept_by_nms.default: kept_by_nms,
    torch.ops.aten.sort.stable: sort,
    torch.ops.torchvision.roi_pool.default: roi_pool,
    torch.ops.detkit.multiscale_roi_align.default: multiscale_roi_align,
    torch.ops.detkit.as_symbol.default: as_symbol,
}
