"""Networks that classify the pixels themselves, without a convolution: no detector can have them as a backbone.

Both read crops of one size. They show what the convolutions of LeNet-5 are good for.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

HIDDEN = 100  # units of the hidden layer


class LinearClassifier(nn.Module):
    """Class scores that are weighted sums of all pixels: the weights of a class form a picture (3, S, S).

    Args:
        num_classes: K.
        crop_size: S, pixels a side.
    """

    def __init__(self, num_classes: int, crop_size: int) -> None:
        super().__init__()
        self.output = nn.Linear(3 * crop_size**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (N, K) of a float batch (N, 3, S, S)."""
        return self.output(x.flatten(1))


class MLP(nn.Module):
    """A multilayer perceptron: one hidden layer with ReLU between the pixels and the class scores.

    Args:
        num_classes: K.
        crop_size: S, pixels a side.
        hidden: units of the hidden layer.
    """

    def __init__(self, num_classes: int, crop_size: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * crop_size**2, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (N, K) of a float batch (N, 3, S, S)."""
        return self.output(self.relu(self.hidden(x.flatten(1))))


#: By name: what makes the network for that many classes and crops of that size.
PIXEL_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"linear": LinearClassifier, "mlp": MLP}
