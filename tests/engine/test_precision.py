"""Precisions that a CPU only imitates."""

from __future__ import annotations

import pytest
import torch

from detkit.engine import precision
from detkit.engine.precision import check_precision
from detkit.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["bf16-mixed", "bf16-true"])
def test_bfloat16_needs_a_cpu_that_has_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    with pytest.raises(ConfigError, match=rf"{kind}: .*8 times slower than 32-true.*DETKIT_SLOW_PRECISION=1"):
        check_precision(kind, CPU)
    monkeypatch.setenv(precision.VARIABLE, "1")
    check_precision(kind, CPU)
    monkeypatch.delenv(precision.VARIABLE)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx512_bf16": True})
    check_precision(kind, CPU)


@pytest.mark.parametrize("kind", ["16-mixed", "16-true", 16])
def test_no_cpu_computes_in_float16(kind: str | int) -> None:
    with pytest.raises(ConfigError, match="float16"):
        check_precision(kind, CPU)
    check_precision(kind, torch.device("cuda"))


@pytest.mark.parametrize("kind", [None, "32-true", 32, "64-true"])
def test_others_are_let_through(kind: str | int | None) -> None:
    check_precision(kind, CPU)


def test_torch_tells_what_is_asked_for() -> None:
    assert "architecture" in torch.cpu.get_capabilities()
