"""fit: the run's folder, the checkpoints, resuming, and who wins where words contradict."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.cli import fakes

Detkit = Callable[..., Any]
RUN = Path("runs/toy/version_0")


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def weights(path: Path) -> torch.Tensor:
    return state(path)["state_dict"]["linear.weight"]


def test_a_run_has_its_layout(detkit: Detkit) -> None:
    result = detkit("fit", "--config", "toy.yaml")
    assert result.code == 0
    assert result.err == ""
    names = {p.relative_to(RUN).as_posix().split(".tfevents")[0] for p in RUN.rglob("*") if p.is_file()}
    assert names >= {"config.yaml", "metrics.csv", "events.out", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert not [n for n in names if "part" in n]
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["model"]["init_args"]["optim"]["lr"] == 0.05
    assert config["trainer"]["default_root_dir"] == os.path.abspath("runs/toy")
    rows = list(csv.DictReader((RUN / "metrics.csv").open()))
    assert [float(r["val/map"]) for r in rows if r["val/map"]] == pytest.approx([0.1, 0.5])


def test_the_output_is_one_line_an_epoch(detkit: Detkit) -> None:
    lines = detkit("fit", "--config", "toy.yaml").out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert lines[0] == f"run: {RUN}"
    assert lines[3].startswith(f"checkpoint: {RUN}/checkpoints/best.ckpt (best, val/map 0.5000")
    assert lines[4:] == [f"next: detkit test {RUN}"]  # of a detector, predict too


def test_memory_is_kept_on_a_cpu(detkit: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("detkit.cli.lightning_cli.keep_freed_memory", lambda: asked.append(""))
    detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1")
    detkit("test", "--ckpt_path", "runs/toy")
    assert len(asked) == 2
    monkeypatch.setattr("detkit.cli.lightning_cli.CPUAccelerator", type(None))
    detkit("test", "--ckpt_path", "runs/toy")
    assert len(asked) == 2


def test_versions_count_up_and_names_come_from_config_or_model(detkit: Detkit) -> None:
    for _ in range(2):
        detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1")
    detkit("fit", "--model", "Tiny", "--data", "Numbers", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu")
    detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1", "--trainer.default_root_dir", "here")
    assert sorted(str(p) for p in Path().rglob("version_*")) == [
        "here/version_0",
        "runs/Tiny/version_0",
        "runs/toy/version_0",
        "runs/toy/version_1",
    ]


def test_an_map_that_is_not_a_number_does_not_stop_a_run(detkit: Detkit) -> None:
    assert detkit("fit", "--config", "toy.yaml", "--model.nan_map", "true").code == 0
    assert state(RUN / "checkpoints/last.ckpt")["epoch"] == 1
    assert (RUN / "checkpoints/best.ckpt").is_file()


def test_without_a_validation_the_last_epoch_is_kept(detkit: Detkit) -> None:
    result = detkit("fit", "--config", "toy.yaml", "--trainer.limit_val_batches", "0")
    assert (result.code, result.err) == (0, "")
    assert f"checkpoint: {RUN}/checkpoints/last.ckpt (last; no validation" in result.out
    assert [p.name for p in (RUN / "checkpoints").glob("*.ckpt")] == ["last.ckpt"]


def test_patience_ends_a_run_that_gets_no_better(detkit: Detkit) -> None:
    """The mAPs of the epochs are 0.1, 0.5, 0.3, 0.2, 0.2, ..."""
    result = detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "9", "--patience", "2")
    assert (result.code, result.err) == (0, "")
    assert "stopped early: val/map was not better in the last 2 validations" in result.out
    assert state(RUN / "checkpoints/last.ckpt")["epoch"] == 3
    assert state(RUN / "checkpoints/best.ckpt")["epoch"] == 1
    whole = detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "3", "--patience=2")
    assert whole.code == 0 and "stopped early" not in whole.out
    words = detkit("fit", "--config", "toy.yaml", "--patience", "five")
    assert words.code == 2 and words.err.startswith("detkit: --patience must be a whole number, not five\n")
    Path("five.yaml").write_text("checkpoint: {patience: five}\n")
    in_file = detkit("fit", "--config", "toy.yaml", "--config", "five.yaml")
    assert in_file.err.startswith("detkit: five.yaml: checkpoint.patience must be a whole number, not five\n")
    wrong = detkit("fit", "--config", "toy.yaml", "--patience", "0")
    assert wrong.code == 2 and "patience: 0 must be at least 1" in wrong.err


def test_a_resumed_run_has_the_patience_it_is_given(detkit: Detkit) -> None:
    """The best mAP is that of the second of the epochs."""
    stopped = detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "9", "--patience", "1")
    assert "in the last 1 validations" in stopped.out
    resumed = detkit("fit", "--ckpt_path", "runs/toy", "--trainer.max_epochs", "9", "--patience", "4")
    assert (resumed.code, resumed.err) == (0, "")
    assert "in the last 4 validations" in resumed.out
    assert state(Path("runs/toy/version_1/checkpoints/last.ckpt"))["epoch"] == 5
    longer = detkit("fit", "--ckpt_path", "runs/toy", "--trainer.max_epochs", "7", "--patience", "40")
    assert longer.code == 0 and "stopped early" not in longer.out


def test_patience_is_not_for_fits_of_several_stages(detkit: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes.Tiny, "has_stages", True)
    result = detkit("fit", "--config", "toy.yaml", "--patience", "2")
    assert result.code == 2 and "patience: a fit of several stages" in result.err


def test_a_metric_that_does_not_exist_is_an_error(detkit: Detkit) -> None:
    result = detkit("fit", "--config", "toy.yaml", "--checkpoint.monitor", "val/mapp")
    assert result.code == 2
    assert "val/mapp" in result.err


def test_a_finished_run_says_so_and_leaves_no_folder(detkit: Detkit) -> None:
    detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "3")
    best, last = (state(RUN / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    assert (best["epoch"], last["epoch"]) == (1, 2)
    for options in (["--ckpt_path", "runs/toy"], ["--config", "toy.yaml", "--ckpt_path", "last"]):
        result = detkit("fit", *options, "--trainer.max_epochs", "3")
        assert (result.code, result.err) == (0, "")
        assert "the run has ended with epoch 3, step 6; nothing was trained" in result.out
        command = "detkit fit --ckpt_path runs/toy/version_0/checkpoints/last.ckpt --trainer.max_epochs 6"
        assert f"to train longer: {command}\n" in result.out and result.out.endswith(f"next: detkit test {RUN}\n")
        assert [path.name for path in Path("runs/toy").iterdir()] == ["version_0"]
    by_steps = detkit("fit", "--ckpt_path", "runs/toy", "--trainer.max_steps", "6", "--trainer.max_epochs", "9")
    assert "--trainer.max_steps 12\n" in by_steps.out
    assert detkit(*command.split()[1:]).code == 0
    assert state(Path("runs/toy/version_1/checkpoints/last.ckpt"))["epoch"] == 5


def test_the_users_callbacks_are_added_and_replace_their_own_kind(detkit: Detkit) -> None:
    callbacks = [
        {"class_path": "EarlyStopping", "init_args": {"monitor": "val/map", "mode": "max", "patience": 1}},
        {"class_path": "ModelCheckpoint", "init_args": {"monitor": "train/loss", "filename": "mine"}},
    ]
    Path("more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks, "max_epochs": 9}}))
    assert detkit("fit", "--config", "toy.yaml", "--config", "more.yaml").code == 0
    assert sorted(p.name for p in (RUN / "checkpoints").glob("*.ckpt")) == ["last.ckpt", "mine.ckpt"]
    assert state(RUN / "checkpoints/last.ckpt")["epoch"] == 2  # stopped after the first epoch without a better one


def test_what_is_switched_off_stays_off(detkit: Detkit) -> None:
    off = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--checkpoint.monitor", "val/x"]
    result = detkit("fit", "--config", "toy.yaml", *off, "--trainer.enable_progress_bar", "false")
    assert result.code == 0
    assert "epoch" not in result.out
    kept = sorted(p.name for p in RUN.rglob("*") if p.is_file() and p.suffix != ".ckpt")
    assert kept == ["config.yaml", "network.txt"]
    assert not (RUN / "checkpoints/best.ckpt").exists()


@pytest.mark.parametrize("how", [["--config", "toy.yaml", "--ckpt_path", "last"], ["--ckpt_path", "runs/toy"]])
def test_a_resumed_run_equals_an_uninterrupted_one(detkit: Detkit, how: list[str]) -> None:
    detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "4", "--trainer.default_root_dir", "whole")
    detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "2")
    result = detkit("fit", *how, "--trainer.max_epochs", "4")
    assert result.code == 0
    assert f"checkpoint: {RUN}/checkpoints/last.ckpt (last)\ngoes on after epoch 2, step 4\n" in result.out
    second = Path("runs/toy/version_1/checkpoints")
    assert torch.equal(weights(second / "last.ckpt"), weights(Path("whole/version_0/checkpoints/last.ckpt")))
    # The best epoch was in the first part: the second run's folder has it all the same.
    assert state(second / "best.ckpt")["epoch"] == 1


@pytest.mark.filterwarnings("ignore:.*ended before the epoch ended")  # the toy loader cannot go on within one
def test_going_on_within_an_epoch_is_told(detkit: Detkit) -> None:
    often = ["--config", "toy.yaml", "--data.size", "8", "--trainer.val_check_interval", "2"]  # of 4 batches
    assert "goes on" not in detkit("fit", *often).out
    result = detkit("fit", *often, "--ckpt_path", "best")
    assert result.code == 0 and "goes on within epoch 2, after step 6\n" in result.out


def test_going_on_without_a_checkpoint_is_an_error(detkit: Detkit) -> None:
    Path("runs/toy/version_0").mkdir(parents=True)
    result = detkit("fit", "--config", "toy.yaml", "--ckpt_path", "last")
    assert result.code == 2
    assert "no last.ckpt found" in result.err
    assert not Path("runs/toy/version_1").exists()


@pytest.mark.parametrize(
    ("options", "asked", "used", "lr"),
    [(["--model.optim.lr", "0.5"], "0.5", "command line", 0.5), (["--config", "toy.yaml"], "0.7", "checkpoint", 0.05)],
)
def test_the_command_line_beats_the_checkpoint_which_beats_a_config(
    detkit: Detkit, options: list[str], asked: str, used: str, lr: float
) -> None:
    detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1")
    Path("toy.yaml").write_text(Path("toy.yaml").read_text().replace("0.05", "0.7"))
    out = detkit("fit", "--ckpt_path", "runs/toy", *options, "--trainer.max_epochs", "2").out
    row = next(line for line in out.splitlines() if "model.optim.lr" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["model.optim.lr", "0.05", asked, used]
    assert state(Path("runs/toy/version_1/checkpoints/last.ckpt"))["hyper_parameters"]["optim"]["lr"] == lr


def test_nothing_is_said_where_nothing_is_contradicted(detkit: Detkit) -> None:
    detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1", "--model.window", "[5, 7]")
    again = ["--model.window", "[5, 7]", "--model.optim.lr", "5e-2"]
    out = detkit("fit", "--config", "toy.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2", *again).out
    assert "differ" not in out


def test_the_model_is_told_what_overrides_the_checkpoint(detkit: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cli import fakes

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(fakes.Tiny, "apply_overrides", lambda self, changed, fit: told.append(changed))
    detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1")
    detkit("fit", "--ckpt_path", "runs/toy", "--model.optim.lr", "0.5", "--trainer.max_epochs", "2")
    assert told == [{"optim.lr": 0.5}]


def test_a_checkpoint_of_another_model_is_refused(detkit: Detkit) -> None:
    detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1")
    other = detkit("fit", "--ckpt_path", "runs/toy", "--model", "Other", "--data", "Numbers")
    assert other.code == 2
    assert "is of a Tiny" in other.err
    wider = detkit("fit", "--ckpt_path", "runs/toy", "--model.width", "7")
    assert wider.code == 2
    assert "linear.weight: (4, 4) in the file, (7, 4) in the model" in wider.err


def test_classes_of_the_data_and_options_before_a_file_reach_the_checkpoint(detkit: Detkit) -> None:
    options = ["--model.optim.lr", "0.25", "--config", "toy.yaml", "--trainer.max_epochs", "1"]
    detkit("fit", *options, "--data.class_names", "[x, y]")
    kept = state(RUN / "checkpoints/last.ckpt")["hyper_parameters"]
    assert kept["optim"]["lr"] == 0.25  # an option wins over a file wherever it stands
    assert (kept["class_names"], kept["category_ids"]) == (["x", "y"], [3, 17])


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "toy.yaml").write_text("model: Tiny\ndata: Numbers\ntrainer: {accelerator: cpu, max_epochs: 100000}\n")
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have it ignored
        "from tests.cli import fakes; from detkit.cli import lightning_cli as cli\n"
        "cli.base_classes = lambda: (fakes.Model, fakes.Data)\n"
        "from detkit.cli.main import main; sys.exit(main(['fit', '--config', 'toy.yaml']))"
    )
    options: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(root)}, "text": True}
    command = [sys.executable, "-c", code]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("epoch 2 of"):
            break
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "detkit fit --ckpt_path runs/toy/version_0" in err
    assert "Traceback" not in err
    assert state(tmp_path / RUN / "checkpoints/last.ckpt")["epoch"] >= 0
