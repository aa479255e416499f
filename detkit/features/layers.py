"""Layers: how those without weights begin, batch norm with fixed statistics, and the normalisation of a map.

The layers that a detector adds (RPN, predictors) begin as the papers did, by `normal_`: normal with deviation 0.01, and
0.001 for box regression (papers.md 2.2 and 2.3). The convolutions and linear layers of a backbone or of a box head
begin by a rule that the user names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detkit.settings import check_choice

#: ``he``: He et al. 2015, for ReLU (fan-out for convolutions, fan-in for linear layers); ``xavier``: Glorot and Bengio
#: 2010.
RULES = ("he", "xavier")


def initialize(modules: Iterable[nn.Module], rule: str) -> None:
    """Initialise convolutions and linear layers below ``modules`` by one of `RULES`, else ConfigError; biases to 0."""
    check_choice("initialization", rule, RULES)
    for root in modules:
        for layer in root.modules():
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                continue
            if rule == "he":
                mode = "fan_out" if isinstance(layer, nn.Conv2d) else "fan_in"
                nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def normal_(layer: nn.Conv2d | nn.Linear, deviation: float) -> None:
    """Normal weights with that deviation and zero biases, in place."""
    nn.init.normal_(layer.weight, std=deviation)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class FrozenBatchNorm(FrozenBatchNorm2d):
    """Batch norm as a fixed scale and shift: torchvision's, but as one operation and in the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same, normalised by the stored statistics."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.to(x.dtype).view(1, -1, 1, 1), x, scale.to(x.dtype).view(1, -1, 1, 1))


def freeze_batch_norms(root: nn.Module, path: str = "") -> None:
    """Replace batch norms by a `FrozenBatchNorm` of the same scale, shift and statistics, in place.

    ``path`` is that of the part of ``root`` in which they are replaced, which may be a batch norm; "": everywhere.
    """
    for name, layer in list(root.get_submodule(path).named_modules(prefix=path)):
        if isinstance(layer, nn.BatchNorm2d):
            frozen = FrozenBatchNorm(layer.num_features, eps=layer.eps)
            frozen.load_state_dict(layer.state_dict())
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, frozen)


@torch.no_grad()
def output_for_zeros(network: nn.Module, side: int) -> Any:
    """What a network makes of an image of zeros (1, 3, side, side); its mode and its statistics stay as they are."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    output = network(torch.zeros(1, 3, side, side))
    for module, training in modes.items():
        module.training = training
    return output


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same, normalised."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
