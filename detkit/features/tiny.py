"""A seven-convolution network for small images, quick enough to train from scratch on a CPU."""

from __future__ import annotations

from torch import nn


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class TinyCNN(nn.Module):
    """Four stages at strides 2, 4, 8 and 16 with 24, 48, 112 and 192 channels.

    It has the shape of a torchvision classification model (``features`` and ``classifier``), so that it is
    handled as they are. There are no published weights for it.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(3, 24, stride=2),
            nn.Sequential(_convolution(24, 48, stride=2), _convolution(48, 48)),
            nn.Sequential(_convolution(48, 112, stride=2), _convolution(112, 112)),
            nn.Sequential(_convolution(112, 192, stride=2), _convolution(192, 192)),
        )
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, num_classes))

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Class logits (N, num_classes) of a float batch (N, 3, H, W)."""
        return self.classifier(self.features(x))
