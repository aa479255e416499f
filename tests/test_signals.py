"""The handler of SIGINT and SIGTERM by itself; tests/cli/test_signals.py stops whole commands."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from detkit.signals import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    handler = Signals()
    numbers = (signal.SIGINT, signal.SIGTERM)  # a program in the background may have Ctrl-C ignored
    earlier = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    handler.install()
    yield handler
    for number, before in earlier.items():
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_an_import_waits_for_its_end(
    signals: Signals, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"imported_while_signal_{number}_comes"
    tmp_path.joinpath(f"{name}.py").write_text(
        f"import signal, time\nsignal.raise_signal({number})\ntime.sleep(0.2)\nWHOLE = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(name)
        time.sleep(10)
    assert sys.modules.pop(name).WHOLE
    assert signals.received == number


def test_while_it_waits_the_second_signal_ends_at_once(signals: Signals, capfd: pytest.CaptureFixture[str]) -> None:
    signals.begin_item()
    signal.raise_signal(signal.SIGTERM)
    assert "a second signal ends it at once" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_a_postponed_signal_comes_at_the_end_of_the_outermost_block(signals: Signals) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), signals.postponed():
        with signals.postponed():
            signal.raise_signal(signal.SIGTERM)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
