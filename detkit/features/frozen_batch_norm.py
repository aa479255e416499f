"""Batch norm as a fixed scale and shift."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's module as one operation, in the input's type (under autocast that is bfloat16 or float16)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same, normalised by the kept statistics."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.to(x.dtype).view(1, -1, 1, 1), x, scale.to(x.dtype).view(1, -1, 1, 1))
