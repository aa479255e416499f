"""From pooled features to class scores and boxes: the layers behind RoI pooling.

Layer names (fc6, fc7, cls_score, bbox_pred) are those of the papers' code and of torchvision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.errors import ConfigError
from detkit.features.initialization import initialize, normal_
from detkit.heads.svd import FactoredLinear, replace_layers

HEADS = ("mlp", "conv", "top")


class TwoMLPHead(nn.Module):
    """fc6 and fc7 with ReLU (and dropout), on the flattened region."""

    def __init__(self, inputs: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc6 = nn.Linear(inputs, channels)
        self.fc7 = nn.Linear(channels, channels)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, channels)."""
        x = F.dropout(F.relu(self.fc6(x.flatten(1))), self.dropout, self.training)
        return F.dropout(F.relu(self.fc7(x)), self.dropout, self.training)


class ConvHead(nn.Sequential):
    """Four 3x3 convolutions with batch norm and one fully connected layer (torchvision's v2 model)."""

    def __init__(self, inputs: int, pool_size: int, channels: int, convolutions: int = 4) -> None:
        blocks = [
            nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, padding=1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
            )
            for _ in range(convolutions)
        ]
        fully = [nn.Flatten(), nn.Linear(inputs * pool_size**2, channels), nn.ReLU(inplace=True)]
        super().__init__(*blocks, *fully)


class BoxPredictor(nn.Module):
    """Class logits (background first) and four deltas for each class."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(inputs, num_classes + 1)
        self.bbox_pred = nn.Linear(inputs, (num_classes + 1) * 4)
        normal_(self.cls_score, 0.01)
        normal_(self.bbox_pred, 0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C) -> logits (R, K + 1) and deltas (R, K + 1, 4), in float32."""
        return self.cls_score(x).float(), self.bbox_pred(x).float().unflatten(1, (-1, 4))


def build_box_head(
    kind: str,
    *,
    inputs: int,
    pool_size: int,
    channels: int,
    dropout: float = 0.0,
    top: nn.Module | None = None,
    initialization: str = "he",
    svd_ranks: dict[str, int] | None = None,
) -> tuple[nn.Module, int]:
    """The layers between RoI pooling and the predictor.

    Args:
        kind: ``mlp`` (`TwoMLPHead`), ``conv`` (`ConvHead`), or ``top`` (the rest of the backbone's own network).
        inputs: channels of the features.
        pool_size: cells a side of the pooled features.
        channels: width of the fully connected layers.
        dropout: of ``mlp``.
        top: from `build_backbone`, for ``top``.
        initialization: ``he`` or ``xavier``, for the new layers.
        svd_ranks: layers (fc6, fc7) that are products of two of this rank; see `detkit.heads.svd`.

    Returns:
        the head and the number of features it gives for each region.

    Raises:
        ConfigError: for an unknown kind, a backbone without a top, a pool size that the top does not take, or layers
            and ranks that the head cannot have.
    """
    if kind not in HEADS:
        raise ConfigError(f"unknown box head {kind!r}; the known ones are {', '.join(HEADS)}")
    if kind == "top":
        head, outputs = _check_top(top, inputs, pool_size)
    else:
        outputs = channels
        head = (
            TwoMLPHead(inputs * pool_size**2, channels, dropout)
            if kind == "mlp"
            else ConvHead(inputs, pool_size, channels)
        )
    if svd_ranks:
        replace_layers(head, svd_ranks, FactoredLinear.like)
    if kind != "top":
        initialize([head], initialization)
    return head, outputs


def _check_top(top: nn.Module | None, inputs: int, pool_size: int) -> tuple[nn.Module, int]:
    """The top and the number of features it gives."""
    if top is None:
        raise ConfigError("box_head: top needs a backbone with layers after its trunk, without fpn; use box_head: mlp")
    try:
        training = top.training
        with torch.no_grad():
            outputs = top.eval()(torch.zeros(1, inputs, pool_size, pool_size)).shape[1]
        top.train(training)
    except RuntimeError as error:
        raise ConfigError(
            f"box_head: top of this backbone does not take {pool_size}x{pool_size} features; its own pool_size is 7 "
            "for vgg16, 6 for alexnet and 8 for lenet5"
        ) from error
    return top, outputs
