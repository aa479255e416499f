"""What numbers were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from detkit.__about__ import __version__
from detkit.threads import available_cores


def machine(device: torch.device) -> dict[str, Any]:
    """Plain facts: date, cpu, cores, threads, load (of the last minute, None where the system has none), device,
    python, torch, detkit."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detkit": __version__,
    }


def in_words(where: dict[str, Any]) -> str:
    """The facts of `machine` in one line."""
    load = "" if where["load"] is None else f" (load {where['load']:.1f} at the start)"
    threads = f"{where['threads']} thread{'s' * (where['threads'] != 1)}"
    device = "no GPU" if where["device"] == "cpu" else where["device"]
    return (
        f"{where['cpu']}, {where['cores']} cores{load}, {threads}, {device}; "
        f"Python {where['python']}, torch {where['torch']}, detkit {where['detkit']}; {where['date']}"
    )


def _cpu() -> str:
    """Its name, as the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
