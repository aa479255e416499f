"""The simulated device itself: what it refuses, what it counts, and what stays as on the CPU."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detkit.boxes import suppression

from .simulated_device import DEVICE, Simulated, SimulatedDevice, counted_waits, waits_at_most

X = torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(4, 3),
        lambda x: torch.cat([x, torch.ones(1, 3)]),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: torch.ones(4, 3)[x[:, 0] > 1],
        lambda x: nn.Linear(3, 2)(x),
        lambda x: x.numpy(),
    ],
    ids=["add", "cat", "number", "index", "layer", "numpy"],
)
@pytest.mark.parametrize("inference", [False, True], ids=["plain", "inference"])
def test_mixed_devices_fail(mix: Callable[[Tensor], Tensor], inference: bool) -> None:
    with SimulatedDevice(), torch.inference_mode(inference):
        x = X.to(DEVICE)
        with pytest.raises(RuntimeError, match=r"device: .* in tests/device/check_simulated|not supported for tensor"):
            mix(x)


WAITS: dict[str, tuple[str, Callable[[Tensor], object]]] = {
    "item": ("_local_scalar_dense", lambda x: x.sum().item()),
    "branch": ("_local_scalar_dense", lambda x: bool((x > 1).any())),
    "index by a number": ("_local_scalar_dense", lambda x: x[x[:, 0].argmax()]),
    "tolist": ("copy to the host", lambda x: x.tolist()),
    "cpu": ("copy to the host", lambda x: x.cpu()),
    "mask": ("indexing by a mask", lambda x: x[x > 1]),
    "where": ("nonzero", lambda x: torch.where(x > 1)),
    "unique": ("_unique2", lambda x: x.unique()),
    "repeat": ("repeat_interleave", lambda x: x[0].long().repeat_interleave(x[1].long())),
    "nms": ("kept_by_nms", lambda x: suppression.nms(torch.cat([x, x[:, :1]], 1), x[:, 0], 0.5)),
    "upload": ("copy to the device", lambda x: torch.ones(3).to(DEVICE)),
    "new": ("copy to the device", lambda x: x.new_tensor([1.0, 2.0])),
    "factory": ("copy to the device", lambda x: torch.tensor([1.0, 2.0], device=DEVICE)),
    "list of indices": ("copy to the device", lambda x: x[[0, 1]]),
    "indices of the host": ("copy of indices to the device", lambda x: x[torch.tensor([0, 1])]),
}


@pytest.mark.parametrize("name", WAITS)
@pytest.mark.parametrize("inference", [False, True], ids=["plain", "inference"])
def test_waits_are_counted_with_their_line(name: str, inference: bool) -> None:
    operation, wait = WAITS[name]
    with SimulatedDevice(), torch.inference_mode(inference):
        x = X.to(DEVICE)
        with counted_waits() as waits:
            wait(x)
    ((found, line),) = waits.elements()
    assert found == operation
    assert line.startswith("detkit/boxes/suppression.py:" if name == "nms" else "tests/device/check_simulated_device")


def test_what_needs_no_value_does_not_wait() -> None:
    with SimulatedDevice(), waits_at_most(0):
        x = X.to(DEVICE, non_blocking=True)
        x[x > 1] = 0
        x[0] = 5.0
        x = torch.where(x > 1, x, 0.0).masked_fill(x < 0, 1) + torch.tensor(1.0)
        x[x[:, 0].long().clamp(0, 3)].sort().values.topk(2).indices.split([2, 2])
        torch.zeros(3, device=DEVICE), torch.full((3,), 2.0, device=DEVICE), torch.rand(3, device=x.device)


def test_too_many_waits_are_told_by_line() -> None:
    with SimulatedDevice():
        x = X.to(DEVICE)
        with pytest.raises(AssertionError) as error, waits_at_most(2):
            for _ in range(3):
                x.sum().item()
    assert "3 waits, at most 2 are allowed:\n3 x _local_scalar_dense in tests/device/check_simulated" in str(
        error.value
    )


def test_a_network_learns_the_same_as_on_the_cpu() -> None:
    results = []
    for device in (torch.device("cpu"), DEVICE):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten())
        network.append(nn.Linear(144, 2))
        with SimulatedDevice():
            network.to(device)
            optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
            with waits_at_most(0):
                for _ in range(3):
                    optimizer.zero_grad()
                    network(torch.rand(2, 3, 8, 8, device=device)).square().sum().backward()
                    optimizer.step()
            assert {each.device.type for each in network.state_dict().values()} == {device.type}
            assert {parameter.grad.device.type for parameter in network.parameters()} == {device.type}
            file = io.BytesIO()
            torch.save(network.state_dict(), file)
        file.seek(0)
        results.append(torch.load(file, weights_only=True))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_views_and_changes_in_place_reach_the_same_numbers() -> None:
    with SimulatedDevice():
        x = X.to(DEVICE)
        assert isinstance(x, Simulated) and x.device == DEVICE and x.add_(1) is x
        x[1:].mul_(0)
        torch.add(x, 1, out=x)
        values, indices = torch.empty(0, device=DEVICE), torch.empty(0, dtype=torch.int64, device=DEVICE)
        assert torch.sort(x.flatten(), out=(values, indices))[0] is values
        assert x.cpu().tolist() == [[2, 3, 4], *[[1, 1, 1]] * 3]


def test_suppression_on_a_device_is_the_cpus_and_waits_once() -> None:
    corners, scores = torch.rand(60, 2) * 50, torch.rand(60)
    boxes, groups = torch.cat([corners, corners + 5 + torch.rand(60, 2) * 30], dim=1), torch.arange(60) % 3
    expected = suppression.one_by_one(boxes, scores, groups, 0.3)
    assert 3 < len(expected) < 60
    with SimulatedDevice():
        inputs = [each.to(DEVICE) for each in (boxes, scores, groups)]
        with waits_at_most(1):
            kept = suppression.together(*inputs, 0.3)
        assert torch.equal(kept.cpu(), expected)


def test_parameters_are_indexed_and_viewed_in_inference_mode() -> None:
    with SimulatedDevice():
        parameter = nn.Parameter(X).to(DEVICE)
        with torch.inference_mode():
            rows = torch.tensor([0, 1]).to(DEVICE)
            assert parameter[rows, None].shape == (2, 1, 3)
            assert parameter.view(3, 4).mul(2).sum().item() == 2 * X.sum()
