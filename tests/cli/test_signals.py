"""SIGTERM and Ctrl-C: the item in hand is finished, what is done is kept, and the user is told how to go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detkit.cli import lightning_cli
from detkit.cli import main as main_module
from detkit.engine import predictions
from tests.cli import fakes
from tests.cli.conftest import SMALL

Detkit = Callable[..., Any]
RUN = Path("runs/toy/version_0")
ROOT = Path(__file__).parents[2]
TOY = ["fit", "--config", "toy.yaml", "--data.size", "16", "--trainer.log_every_n_steps", "1"]  # of 8 batches
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
from tests.cli import fakes
from detkit.cli import lightning_cli, noise
from detkit.cli.main import main
from detkit.data.images import DetectionDataModule
data = DetectionDataModule if "ImageFolder" in sys.argv else fakes.Data
lightning_cli.base_classes = lambda: (fakes.Model, data)
def say(what, function):
    def told(*args, **options):
        print(what, flush=True)
        sys.stdin.readline()
        return function(*args, **options)
    return told
noise.quiet = say("start", noise.quiet)
fakes.Tiny.predict_step = say("item", fakes.Tiny.predict_step)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    """As in a program that was started by hand: one in the background may have Ctrl-C ignored."""
    earlier = {number: signal.signal(number, signal.default_int_handler) for number, _ in SIGNALS}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


def kill_in(
    monkeypatch: pytest.MonkeyPatch, name: str, at: int, number: int = signal.SIGTERM, times: int = 1, owner: Any = None
) -> None:
    """Let the process get a signal within the call of a function that is the `at`-th, counted from 0."""
    owner, calls = owner or fakes.Tiny, iter(range(10**6))
    before = getattr(owner, name)

    def function(*args: Any, **options: Any) -> Any:
        for _ in range(times if next(calls) == at else 0):
            os.kill(os.getpid(), number)
        return before(*args, **options)

    monkeypatch.setattr(owner, name, function)


def last(folder: str | Path) -> dict[str, Any]:
    return torch.load(Path(folder) / "checkpoints/last.ckpt", weights_only=True)


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["global_step"] == other["global_step"]
    assert all(value.equal(other["state_dict"][name]) for name, value in one["state_dict"].items())
    momenta = (checkpoint["optimizer_states"][0]["state"].items() for checkpoint in (one, other))
    for (_, a), (_, b) in zip(*momenta, strict=True):
        assert a["momentum_buffer"].equal(b["momentum_buffer"])


@pytest.mark.filterwarnings("ignore:.*ended before the epoch ended")  # the toy loader cannot go on within one
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_fit_goes_on_at_the_step_it_had_reached(
    detkit: Detkit, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    detkit(*TOY, "--trainer.default_root_dir", "whole")
    with monkeypatch.context() as patch:
        kill_in(patch, "training_step", 2, number)
        stopped = detkit(*TOY, "--trainer.num_sanity_val_steps", "1")
    assert stopped.code == code
    assert f"Stopped. Go on from step 3 with: detkit fit --ckpt_path {RUN}\n" in stopped.err
    again = detkit(*TOY, "--ckpt_path", "last")
    assert again.code == 0 and "goes on within epoch 1, after step 3\n" in again.out
    assert_equal(last("runs/toy/version_1"), last("whole/version_0"))
    logged = (Path("runs/toy/version_1/metrics.csv").read_text(), Path("whole/version_0/metrics.csv").read_text())
    assert logged[1].splitlines()[-4:] == logged[0].splitlines()[-4:]


def test_a_real_detector_goes_on_exactly(program: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    from detkit.detectors import FasterRCNN

    Path("small.yaml").write_text(SMALL)
    program("fit", "--config", "small.yaml", "--trainer.default_root_dir", "whole")
    with monkeypatch.context() as patch:
        kill_in(patch, "training_step", 1, owner=FasterRCNN)
        assert program("fit", "--config", "small.yaml").code == 143
    assert last("runs/small/version_0")["global_step"] == 2
    assert program("fit", "--config", "small.yaml", "--ckpt_path", "last").code == 0
    assert_equal(last("runs/small/version_1"), last("whole/version_0"))


@pytest.mark.filterwarnings("ignore:.*ended before the epoch ended")
@pytest.mark.parametrize(
    ("step", "at", "options", "reached"),
    [
        ("training_step", 7, [], "the last epoch that ended"),  # the epoch's last: it is validated
        ("validation_step", 3, [], "the last epoch that ended"),
        ("training_step", 15, [], "the last epoch that ended"),  # the last of all
        ("training_step", 4, ["--trainer.accumulate_grad_batches", "3"], "step 2"),
        ("training_step", 1, ["--trainer.val_check_interval", "2"], "the last epoch that ended"),
        ("training_step", 0, ["--trainer.val_check_interval", "1"], "the last epoch that ended"),
    ],
)
def test_a_fit_stops_where_it_can_go_on(
    detkit: Detkit, monkeypatch: pytest.MonkeyPatch, step: str, at: int, options: list[str], reached: str
) -> None:
    detkit(*TOY, *options, "--trainer.default_root_dir", "whole")
    with monkeypatch.context() as patch:
        kill_in(patch, step, at)
        stopped = detkit(*TOY, *options)
    assert stopped.code == 143 and f"Go on from {reached} with: " in stopped.err
    assert detkit(*TOY, *options, "--ckpt_path", "last").code == 0
    runs = sorted(Path("runs/toy").glob("version_*"))
    assert_equal(last(runs[-1] if (runs[-1] / "checkpoints/last.ckpt").is_file() else runs[0]), last("whole/version_0"))


def test_a_second_signal_ends_at_once(detkit: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_in(monkeypatch, "training_step", 2, times=2)
    result = detkit(*TOY)
    assert result.code == 143 and "No epoch had ended" in result.err
    assert not (RUN / "checkpoints").exists()


@pytest.mark.parametrize("command", ["fit", "test", "validate"])
def test_after_the_last_item_it_is_told_too(detkit: Detkit, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    detkit(*TOY)
    reports = {"fit": "report_fit", "test": "report_test", "validate": "report_metrics"}
    kill_in(monkeypatch, reports[command], 0, owner=lightning_cli)
    result = detkit(*TOY) if command == "fit" else detkit(command, "--ckpt_path", "runs/toy")
    hint = "Go on from the last epoch that ended with: detkit fit --ckpt_path runs/toy/version_1"
    assert result.code == 143
    assert f"Stopped. {hint if command == 'fit' else 'The same command begins again.'}\n" in result.err


def test_predict_keeps_what_is_done_and_what_was_there(detkit: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    detkit(*TOY)
    predict = ["predict", "--ckpt_path", "runs/toy", "--data.size", "8", "--predictions.draw", "true"]
    assert detkit(*predict).code == 0
    before = (RUN / "predictions.json").read_bytes()
    kill_in(monkeypatch, "predict_step", 1)
    result = detkit(*predict)
    path = RUN / "predictions.stopped.json"
    assert result.code == 143
    assert f"What was predicted is in {path}; the same command begins again with the first image.\n" in result.err
    assert [row["image_id"] for row in json.loads(path.read_text())] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (RUN / "predictions.json").read_bytes() == before and not list(RUN.glob(".*"))


def test_while_the_predictions_are_joined(detkit: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    detkit(*TOY)
    kill_in(monkeypatch, "_images", 0, owner=predictions.PredictionFiles)
    result = detkit("predict", "--ckpt_path", "runs/toy")
    assert result.code == 143 and f"Stopped. What was predicted is in {RUN}/predictions.json; " in result.err


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_test_ends_at_once(detkit: Detkit, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    detkit(*TOY)
    kill_in(monkeypatch, "test_step" if command == "test" else "validation_step", 1)
    result = detkit(command, "--ckpt_path", "runs/toy")
    assert result.code == 143 and "Stopped. The same command begins again.\n" in result.err
    assert not (RUN / "report").exists()


def stop_predict(moment: str, number: int, *args: str) -> tuple[int, str]:
    """Send a signal to the process group of a `predict` at "start" or in its first "item"; exit code and errors."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, "predict", "--ckpt_path", "runs/toy", *args]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=env, text=True, start_new_session=True, **pipes) as process:
        for line in process.stdout:
            if line.strip() == moment:
                break
            if line.strip() == "start":
                print(file=process.stdin, flush=True)
        os.killpg(process.pid, number)
        time.sleep(0.5)  # a worker that ends now would raise an error in the item
        _, err = process.communicate("\n", timeout=60)
    return process.returncode, err


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("moment", ["start", "item"])
def test_a_real_process(detkit: Detkit, moment: str, number: int, code: int) -> None:
    detkit(*TOY)
    returned, err = stop_predict(moment, number, "--data.size", "8")
    assert returned == code and "Traceback" not in err, err
    kept = f"What was predicted is in {RUN}/predictions.stopped.json" if moment == "item" else "The same command begins"
    assert f"Stopped. {kept}" in err


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_workers_finish_the_item_in_hand_too(detkit: Detkit, number: int, code: int) -> None:
    detkit(*TOY)
    Path("photos").mkdir()
    for name in "abcdefgh":  # more than a worker fetches ahead
        Image.new("RGB", (20, 30)).save(f"photos/{name}.png")
    data = ["--data", "ImageFolder", "--data.path", "photos", "--data.num_workers", "1", "--data.batch_size", "1"]
    returned, err = stop_predict("item", number, *data)
    assert returned == code and "Traceback" not in err, err
    assert f"Stopped. What was predicted is in {RUN}/predictions.stopped.json" in err
    rows = json.loads((RUN / "predictions.stopped.json").read_text())
    assert {row["image_id"] for row in rows} == {"a.png"}


def output_of(code: str) -> str:
    """What a program prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs sigwaitinfo")
def test_the_parent_can_still_end_a_worker() -> None:
    code = (
        "import os, subprocess, sys, time; from detkit.signals import let_parent_end_worker\n"
        "if not (worker := os.fork()):\n    let_parent_end_worker(); time.sleep(30)\n"
        "time.sleep(0.5); subprocess.run(['kill', str(worker)]); time.sleep(0.2)\n"
        "print(os.waitpid(worker, os.WNOHANG)[0])\n"
        "os.kill(worker, 15); print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))"
    )
    assert output_of(code) == "0\n0\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_workers_are_ended_by_their_own_process() -> None:
    code = (
        "import os, signal, time; from detkit.signals import SIGNALS\n"
        "SIGNALS.install()\n"
        "if not (worker := os.fork()):\n    time.sleep(30)\n"
        "time.sleep(0.2); os.kill(worker, signal.SIGINT); time.sleep(0.2)\n"
        "print(os.waitpid(worker, os.WNOHANG)[0], SIGNALS.received)\n"
        "os.kill(worker, signal.SIGTERM); print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))"
    )
    assert output_of(code) == "0 None\n143\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_interpreter_ends_changes_nothing(number: int) -> None:
    code = (
        "import atexit, runpy, signal, sys; from detkit.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "main._dispatch = lambda *_: print('done')\n"
        "atexit.register(lambda: (print('ends', file=sys.stderr, flush=True), sys.stdin.readline()))\n"
        "sys.argv = ['detkit', 'test']; runpy.run_module('detkit', run_name='__main__')"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], env=env, text=True, **pipes) as process:
        assert process.stderr.readline() == "ends\n"
        process.send_signal(number)
        assert process.communicate("\n", timeout=60) == ("done\n", "")
    assert process.returncode == 0


def test_a_signal_after_everything_is_done_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "_dispatch", lambda *_: 0)
    restore = signal.signal
    fires = iter([False, False, True])  # the first two calls install the handlers

    def restoring(number: int, handler: Any) -> Any:
        if next(fires, False):
            signal.raise_signal(signal.SIGTERM)
        return restore(number, handler)

    monkeypatch.setattr(signal, "signal", restoring)
    assert main_module.main(["test"]) == 0
    assert next(fires, None) is None


def test_a_signal_while_a_logger_is_closed_is_no_error(detkit: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(self: Any) -> None:
        lightning_cli.SIGNALS.received = signal.SIGTERM
        raise OSError("Writer is closed")

    monkeypatch.setattr(fakes.Tiny, "on_fit_end", closed)
    ended = detkit(*TOY)
    assert ended.code == 143 and "Go on from the last epoch that ended with: detkit fit --ckpt_path" in ended.err
