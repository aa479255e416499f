"""Small classification networks that torchvision does not have: LeNet-5, and one of seven convolutions.

They have the parts of a torchvision classification model, so that they are handled as those are. There are no published
weights for them.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B).

    For crops of 32 x 32 pixels; larger images are fine. Its layers have the paper's names: C1, S2, C3 and S4 make the
    features (16 channels at stride 4), C5, F6 and the output classify them.

    It differs from the paper's network in these points:
        - three input channels instead of one;
        - C1 and C3 are padded, so that cell i of a map lies over the pixels of its stride, which RoI pooling takes for
          granted; S4 has 8 x 8 cells at 32 pixels instead of 5 x 5, and C5 reads them all;
        - C3 reads all maps of S2, where the paper chose some for each (table I), to save time;
        - ReLU instead of the scaled tanh;
        - S2 and S4 take the largest of four values, where the paper took their sum with a factor and a bias that learn;
        - the output is a linear layer for a softmax, instead of distances to drawn digits.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                c1=nn.Conv2d(3, 6, 5, padding=2),
                relu1=nn.ReLU(inplace=True),
                s2=nn.MaxPool2d(2),
                c3=nn.Conv2d(6, 16, 5, padding=2),
                relu3=nn.ReLU(inplace=True),
                s4=nn.MaxPool2d(2),
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d(8)  # does nothing at 32 x 32
        self.classifier = nn.Sequential(
            OrderedDict(
                c5=nn.Linear(16 * 8 * 8, 120),
                relu5=nn.ReLU(inplace=True),
                f6=nn.Linear(120, 84),
                relu6=nn.ReLU(inplace=True),
                output=nn.Linear(84, num_classes),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (N, num_classes) of a float batch (N, 3, H, W)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class TinyCNN(nn.Module):
    """Seven convolutions for small images, quick enough to train from scratch on a CPU.

    Four stages at strides 2, 4, 8 and 16 with 24, 48, 112 and 192 channels.
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

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (N, num_classes) of a float batch (N, 3, H, W)."""
        return self.classifier(self.features(x))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
