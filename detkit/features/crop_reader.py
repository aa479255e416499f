"""Features of any number of boxes of an image: warped, and put through the network in passes that fit a memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detkit.errors import ConfigError
from detkit.features.crop_network import CropFeatures, CropNetwork
from detkit.features.layers import output_for_zeros
from detkit.features.warping import MODES, warp
from detkit.settings import check_choice, check_range

#: More crops in a pass gain nothing.
MOST_CROPS = 256
#: GB of a pass, by default. On a CPU, glibc returns larger blocks to the system after each layer and requests them
#: again in the next: passes of 1 GB take twice as long (benchmarks/results/warping.md).
MEMORY, MEMORY_CPU = 1.0, 0.05


@dataclass(frozen=True)
class CropSettings:
    """How a box becomes a crop, and how crops go through the network.

    Args:
        size: pixels a side of a crop; 227 for the paper's AlexNet, 224 for most networks, 32 for lenet5.
        mode: warp (each axis by itself), square (the smallest square around the box), or square_masked (the same
            square, without the image around the box and its context in it).
        context: pixels of context around the box, in the crop; 16 in the paper, for 227.
        memory: GB that the crops of one pass through the network, and what it makes of them, may take; null: 1, on a
            CPU 0.05, where larger passes take longer.
        bf16: compute features in bfloat16, or in the weights' type, whatever the trainer's precision; null: in bfloat16
            where the device has it, elsewhere in the trainer's precision. Fine-tuning always has the trainer's.
    """

    size: int = 224
    mode: str = "warp"
    context: int = 16
    memory: float | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        check_choice("crop.mode", self.mode, MODES)
        check_range("crop.size", self.size, 1)
        check_range("crop.memory", self.memory, 0, open_low=True)
        if not 0 <= 2 * self.context < self.size:
            raise ConfigError(f"crop.context: twice {self.context} must be at least 0 and below crop.size {self.size}")


class CropReader:
    """Reads boxes of an image through a `CropNetwork`; it holds no weights of its own.

    Args:
        network: to read with, for crops of ``settings.size``.
        settings: see `CropSettings`.
        channels_last: memory format of the crops.
    """

    def __init__(self, network: CropNetwork, settings: CropSettings, channels_last: bool = False) -> None:
        self.network = network
        self.settings = settings
        self.channels_last = channels_last
        self._bytes = _bytes_per_crop(network)

    def crops(self, image: Tensor, boxes: Tensor) -> Tensor:
        """The boxes (N, 4) of a normalised image (3, H, W) as crops (N, 3, S, S), of the type of the weights."""
        s = self.settings
        crops = warp(image, boxes, s.size, s.context, s.mode, self.channels_last)
        return crops.to(next(self.network.parameters()).dtype)

    def crops_per_pass(self, device: torch.device) -> int:
        """How many crops go through the network together."""
        memory = self.settings.memory or (MEMORY_CPU if device.type == "cpu" else MEMORY)
        return max(1, min(MOST_CROPS, int(memory * 1e9 / self._bytes)))

    def read(self, image: Tensor, boxes: Tensor) -> CropFeatures:
        """Features of boxes (N, 4) of a normalised image (3, H, W), in float32; N may be 0."""
        if not len(boxes):
            sizes = (self.network.pool5_features, self.network.fc7_features)
            return CropFeatures(*(image.new_zeros(0, size, dtype=torch.float32) for size in sizes))
        passes = []
        for some in boxes.split(self.crops_per_pass(image.device)):
            with self._precision(image.device):
                features = self.network(self.crops(image, some))
            passes.append([part.float() for part in features])
        return CropFeatures(*(torch.cat(parts) for parts in zip(*passes, strict=True)))

    def _precision(self, device: torch.device) -> AbstractContextManager[None]:
        if self.settings.bf16 is None and not has_bf16(device):
            return nullcontext()
        # Within a trainer's autocast the cache would hand out weights that were cast to that one's type.
        return torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16 is not False, cache_enabled=False)


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, and not only imitates it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return False


def _bytes_per_crop(network: CropNetwork) -> int:
    """Bytes a crop takes on its way through the network: itself, and the largest layer's input and output."""
    largest = 0

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        tensors = [t for t in (*inputs, output) if isinstance(t, Tensor)]
        largest = max(largest, sum(t.numel() * t.element_size() for t in tensors))

    leaves = [layer for layer in network.modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(measure) for layer in leaves]
    output_for_zeros(network, network.crop_size)
    for hook in hooks:
        hook.remove()
    return 4 * 3 * network.crop_size**2 + largest
