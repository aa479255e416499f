"""The device that the checks of the detectors run on: the simulated one, or a real one that DETKIT_TEST_DEVICE names.

    DETKIT_TEST_DEVICE=cuda python -m pytest tests/device/check_detectors.py

On CUDA, PyTorch's own warnings count the waits (`torch.cuda.set_sync_debug_mode`), and losses are not compared with the
CPU's: they depend on random numbers, which a GPU draws in its own way.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from .waits import Waits, check_waits, project_line

REAL = os.environ.get("DETKIT_TEST_DEVICE", "")
WAIT = "called a synchronizing CUDA operation"

if REAL:
    DEVICE = torch.empty(0, device=REAL).device
    torch.backends.cudnn.allow_tf32 = False  # convolutions are compared with the CPU's
else:  # it makes room in PyTorch for its backend, of which there can be one
    from . import simulated_device
    from .simulated_device import DEVICE


def on_device() -> AbstractContextManager[Any]:
    """Within it `DEVICE` can be used."""
    return nullcontext() if REAL else simulated_device.SimulatedDevice()


@contextmanager
def counted_waits() -> Iterator[Waits]:
    """Counts the waits within: how many, by what the host waited for and the line of code; complete at the end."""
    if not REAL:
        with simulated_device.counted_waits() as found:
            yield found
        return
    within = Waits()

    def count(message: Warning | str, *_: Any, **__: Any) -> None:
        if WAIT in str(message):
            within[WAIT, project_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield within
        finally:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def waits_at_most(limit: int) -> Iterator[None]:
    """An AssertionError with a table of the waits where there are more within."""
    with counted_waits() as found:
        yield
    check_waits(found, limit)


class SimulatedAccelerator(Accelerator):
    """The simulated device, for Lightning."""

    def setup_device(self, device: torch.device) -> None:
        assert device == DEVICE

    def teardown(self) -> None:
        pass

    parse_devices = staticmethod(lambda devices: devices)
    get_parallel_devices = staticmethod(lambda devices: [DEVICE])
    auto_device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    name = staticmethod(lambda: "simulated")


def trainer(**options: Any) -> L.Trainer:
    """One on `DEVICE` that prints and writes nothing."""
    own: dict[str, Any] = {"accelerator": "gpu"}
    if not REAL:
        own = {"accelerator": SimulatedAccelerator(), "strategy": SingleDeviceStrategy(device=DEVICE)}
    return L.Trainer(
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **own,
        **options,
    )
