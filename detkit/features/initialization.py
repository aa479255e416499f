"""How layers without weights begin, by name.

``he``: He et al. 2015, for ReLU (fan-out for convolutions, fan-in for linear layers); ``xavier``: Glorot and Bengio
2010. The layers that a detector adds (RPN, predictors) begin as the papers did: normal with deviation 0.01, and 0.001
for box regression (papers.md 2.2 and 2.3); their modules call `normal_` themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from detkit.errors import ConfigError

RULES = ("he", "xavier")


def initialize(modules: Iterable[nn.Module], rule: str) -> None:
    """Initialise every convolution and linear layer below ``modules`` by that rule; biases to 0.

    Raises:
        ConfigError: if the rule is not one of `RULES`.
    """
    if rule not in RULES:
        raise ConfigError(f"unknown initialization {rule!r}; the known ones are {', '.join(RULES)}")
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
