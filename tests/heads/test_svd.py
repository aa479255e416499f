"""Truncated SVD: what a layer becomes, what it costs, and what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from detkit.errors import ConfigError
from detkit.heads import RoISettings, build_box_head
from detkit.heads.svd import (
    FactoredLinear,
    check_saving,
    costs,
    factorise,
    fully_connected,
    replace_layers,
)


def mlp() -> nn.Module:
    return build_box_head(RoISettings(pool_size=3, head_channels=12), 4)[0]


def top() -> nn.Module:
    """As AlexNet's: dropout, fc6, ReLU, dropout, fc7, ReLU."""
    own = nn.Sequential(
        nn.Flatten(), nn.Dropout(), nn.Linear(36, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 12), nn.ReLU()
    )
    return build_box_head(RoISettings(head="top", pool_size=3), 4, own)[0]


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_layer_becomes_the_best_product_of_that_rank(rank: int) -> None:
    layer = nn.Linear(20, 8)
    u, s, vt = np.linalg.svd(layer.weight.detach().double().numpy(), full_matrices=False)
    first, second = factorise(layer, rank)
    assert first.bias is None and first.weight.shape == (rank, 20) and second.weight.shape == (8, rank)
    np.testing.assert_allclose(
        (second.weight @ first.weight).detach(), (u[:, :rank] * s[:rank]) @ vt[:rank], rtol=0, atol=1e-6
    )
    # The second half is U itself, with the layer's bias: the singular values go to the first.
    np.testing.assert_allclose((second.weight.T @ second.weight).detach(), np.eye(rank), rtol=0, atol=1e-5)
    assert torch.equal(second.bias, layer.bias)


@pytest.mark.parametrize("layer", [nn.Linear(20, 8), nn.Linear(8, 20), nn.Linear(9, 9, bias=False)])
def test_full_rank_changes_nothing(layer: nn.Linear) -> None:
    x = torch.randn(50, layer.in_features)
    whole = factorise(layer, min(layer.in_features, layer.out_features))
    torch.testing.assert_close(whole(x), layer(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", [mlp, top])
def test_layers_are_known_by_the_papers_names(build: type) -> None:
    head = build().eval()
    layers = fully_connected(head)
    assert {name: (layer.in_features, layer.out_features) for name, layer in layers.items()} == {
        "fc6": (36, 12),
        "fc7": (12, 12),
    }
    x = torch.randn(6, 4, 3, 3)
    before = head(x)
    replace_layers(head, {"fc7": 12})
    assert fully_connected(head)["fc6"] is layers["fc6"]
    assert isinstance(fully_connected(head)["fc7"], FactoredLinear)
    torch.testing.assert_close(head(x), before, rtol=0, atol=1e-5)
    replace_layers(head, {"fc6": 2})
    assert (head(x) - before).abs().max() > 1e-2
    assert list(fully_connected(head)) == ["fc6", "fc7"]


def test_a_head_is_built_with_layers_of_given_ranks() -> None:
    head, features = build_box_head(RoISettings(pool_size=3, head_channels=12, svd_ranks={"fc6": 5}), 4)
    source = mlp()
    replace_layers(source, {"fc6": 5})
    head.load_state_dict(source.state_dict())
    x = torch.randn(6, 4, 3, 3)
    assert features == 12 and torch.equal(head(x), source(x))
    head, _ = build_box_head(RoISettings(head="conv", pool_size=3, head_channels=12, svd_ranks={"fc6": 5}), 4)
    assert head(x).shape == (6, 12)


def test_costs_are_the_papers() -> None:
    """VGG16's fc6 and fc7 with 1024 and 256 singular values: t(u + v) instead of uv."""
    layers = {"fc6": nn.Linear(25088, 4096, device="meta"), "fc7": nn.Linear(4096, 4096, device="meta")}
    found = costs(layers, {"fc6": 1024, "fc7": 256})
    assert [(each.before, each.after) for each in found] == [
        (102_760_448, 1024 * (25088 + 4096)),
        (16_777_216, 256 * 8192),
    ]
    check_saving(found)
    assert [each.after for each in costs(layers, {"fc7": 100})] == [102_760_448, 819_200]


def test_costs_are_those_of_the_layers_that_are_made() -> None:
    head = mlp()
    expected = costs(fully_connected(head), {"fc6": 5, "fc7": 2})
    replace_layers(head, {"fc6": 5, "fc7": 2})
    counted: list[int] = []
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda m, x, y: counted.append(x[0].shape[1] * y.shape[1]))
    head(torch.randn(1, 4, 3, 3))
    assert sum(counted) == sum(each.after for each in expected) == 5 * 48 + 2 * 24
    assert [each.before for each in costs(fully_connected(head), {})] == [5 * 48, 2 * 24]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"fc8": 3}, r"no layer 'fc8'; it has fc6, fc7"),
        ({"fc6": 0}, r"rank of fc6 \(36 x 12\) is 1 to 12, not 0"),
        ({"fc6": 13}, "1 to 12, not 13"),
    ],
)
def test_ranks_that_a_layer_cannot_have(ranks: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace_layers(mlp(), ranks)
    with pytest.raises(ConfigError, match=message):
        build_box_head(RoISettings(pool_size=3, head_channels=12, svd_ranks=ranks), 4)


def test_layers_that_cannot_be_factored() -> None:
    head = mlp()
    replace_layers(head, {"fc6": 3})
    with pytest.raises(ConfigError, match="fc6 is factored already, with rank 3"):
        replace_layers(head, {"fc6": 2})
    convolutions = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten())
    with pytest.raises(ConfigError, match="has no fully connected layers"):
        build_box_head(RoISettings(head="top", pool_size=3, svd_ranks={"fc6": 1}), 4, convolutions)


def test_ranks_that_save_nothing() -> None:
    """uv / (u + v) is 9 for 36 x 12: there nothing is saved, below it is."""
    layers = {"fc6": nn.Linear(36, 12)}
    check_saving(costs(layers, {"fc6": 8}))
    with pytest.raises(ConfigError, match=r"rank 9 needs 432 .* instead of 432.*at most 8"):
        check_saving(costs(layers, {"fc6": 9}))
    with pytest.raises(ConfigError, match="leave it as it is"):
        check_saving(costs({"fc6": nn.Linear(1, 5)}, {"fc6": 1}))
