"""What is printed at the start of a fit about the maps: stride, receptive field and, beside them, the anchors."""

from __future__ import annotations

from torch import nn

from detkit.features import Backbone, CropNetwork
from detkit.features.receptive_field import extend, receptive_field
from detkit.proposals import RegionProposalNetwork


def field_lines(detector: nn.Module) -> list[str]:
    """One line for each map of a detector's backbone; of crops (R-CNN) one only if their size does not suit.

    With a region proposal network (``rpn``) the field is that of its anchors' scores, that is with its own
    convolutions: 228 pixels for VGG16, as in the paper (section 3.1). Anchors may be larger: the middle of an object
    often tells where it ends (section 3.3).
    """
    backbone, rpn = getattr(detector, "backbone", None), getattr(detector, "rpn", None)
    if isinstance(network := getattr(detector, "network", None), CropNetwork):
        return [line] if (line := network.size_line()) else []
    if not isinstance(backbone, Backbone):
        return []
    fields = receptive_field(backbone)
    ends = [""] * len(fields)
    if isinstance(rpn, RegionProposalNetwork):
        fields = [extend(field, rpn.head.conv) for field in fields]
        ends = [f", anchors {', '.join(f'{s:g}' for s in level)} px" for level in rpn.anchor_generator.sizes]
    note = " without the top-down path" if backbone.fpn is not None else ""
    return [
        f"map {field.name}: stride {field.stride} px, receptive field {field.size} px{note}{end}"
        for field, end in zip(fields, ends, strict=True)
    ]
