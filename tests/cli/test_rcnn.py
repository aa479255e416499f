"""R-CNN by the command line: the config, a fit that is killed, and what a test tells of the four variants."""

from __future__ import annotations

import csv
import html
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from detkit.cli.main import main
from detkit.detectors.rcnn import stages as rcnn_stages
from detkit.engine.checkpoints import read_checkpoint
from detkit.evaluation.tables import ablation_table, metrics_text
from tests.detectors.rcnn.rcnn_fits import stage_of
from tests.evaluation.report.pages import random_set, report

ROOT = Path(__file__).parents[2]
CONFIG = """
model:
  class_path: RCNN
  init_args:
    {backbone: lenet5, crop: {size: 32, context: 4}, sampling: {batch_size: 32}, proposals: {max_boxes: [40, 25]},
     optim: {warmup_steps: 0, lr: 0.01}}
data:
  class_path: Shapes
  init_args: {path: shapes, num_train: 6, num_val: 3, num_test: 3, image_size: 64, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 1, default_root_dir: runs/small}
"""
#: `detkit` killed at the first call of a function.
KILLED = """
import os, signal, sys
from detkit.cli.main import main
from detkit.detectors.rcnn import stages as rcnn_stages
setattr(rcnn_stages, sys.argv[1], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
main(sys.argv[2:])
"""
NAN = math.nan
ROWS = [
    {"variant": "softmax", "map": 0.4, "map_50": 0.5, "svm_gain": NAN, "box_gain": NAN, "used": False},
    {"variant": "softmax + boxes", "map": 0.45, "map_50": 0.52, "svm_gain": NAN, "box_gain": 0.05, "used": False},
    {"variant": "SVM", "map": 0.375, "map_50": 0.61, "svm_gain": -0.025, "box_gain": NAN, "used": False},
    {"variant": "SVM + boxes", "map": 0.523, "map_50": 0.67, "svm_gain": 0.073, "box_gain": 0.148, "used": True},
]
NOTHING = [{**row, "map": NAN, "map_50": NAN, "svm_gain": NAN, "box_gain": NAN} for row in ROWS]


def detkit(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What a command prints, which succeeds and complains of nothing."""
    capsys.readouterr()
    code = main(list(args))
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    return printed.out


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    return tmp_path


def weights(version: str, name: str = "last") -> dict[str, Any]:
    return read_checkpoint(f"{version}/checkpoints/{name}.ckpt")


def numbers(version: str) -> dict[str, str]:
    """The last line of metrics.csv."""
    with open(f"{version}/metrics.csv") as file:
        return {name: value for name, value in list(csv.DictReader(file))[-1].items() if value}


def test_what_was_not_trained_is_not_tested_and_the_way_to_it_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["--model.classifier", "softmax", "--model.box_regression", "false"]
    detkit(capsys, "fit", "--config", "small.yaml", *plain)
    for option, lacks in (("classifier svm", "SVMs"), ("box_regression true", "box regressors")):
        asked = f"--model.{option}".split()
        assert main(["test", "--ckpt_path", "runs/small", *asked]) == 2
        told = capsys.readouterr().err
        assert f"no {lacks}; train them: detkit fit --ckpt_path RUN --model.{option}" in told
        assert f"{lacks}: " in detkit(capsys, "fit", "--ckpt_path", "runs/small", *asked)
        assert "(used)" in detkit(capsys, "test", "--ckpt_path", "runs/small")


def test_the_config_goes_through_every_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "temporary"))
    (folder / "temporary").mkdir()
    config = ["--config", str(ROOT / "configs/shapes/rcnn.yaml"), "--trainer.fast_dev_run", "true"]
    few = ["--data.num_train", "10", "--data.num_val", "2", "--data.num_test", "2", "--data.image_size", "64"]
    out = detkit(capsys, "fit", *config, *few)
    assert "features of all regions: 8 images" in out and "\nfeatures: 8 images read, in " in out
    for told in ("\nSVMs: ", "box regressors: ", "SVM + boxes"):
        assert told in out
    assert sorted(path.name for path in folder.iterdir()) == ["data", "small.yaml", "temporary"]
    assert not list((folder / "temporary").iterdir())


def test_killed_in_earnest_gone_on_with_and_tested_both_ways(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, "learn_boxes", "fit", "--config", "small.yaml"]
    killed = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    stopped = weights("runs/small/version_0")
    assert stage_of(stopped) == "SVMs" and len(list(folder.rglob("*.npy"))) == 2

    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(rcnn_stages, "learn_svms")  # it is not to be asked for again
        out = detkit(capsys, "fit", "--ckpt_path", "runs/small")
    assert "goes on after epoch 1, step 3 and stage SVMs\n" in out
    assert "box regressors: " in out and "SVMs: " not in out and "best, val/map" in out
    assert "features of all regions: 6 images" in out and "images read" not in out  # they are all there
    assert not list(folder.rglob("features"))
    detkit(capsys, "fit", "--config", "small.yaml", "--trainer.default_root_dir", "runs/whole")
    whole, gone_on = weights("runs/whole/version_0"), weights("runs/small/version_1")
    assert stage_of(gone_on) == "comparison" and gone_on["state_dict"].keys() == whole["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        assert value.equal(gone_on["state_dict"][name]), name
        assert value.equal(weights("runs/small/version_1", "best")["state_dict"][name]), name
    assert (folder / "runs/whole/version_0/svm_mining.csv").is_file()
    logged = [numbers("runs/whole/version_0"), numbers("runs/small/version_1")]
    assert logged[0] == logged[1] and logged[0]["step"] == "3"
    for name in ("map", "map_50"):
        assert logged[0][f"val/{name}"] == logged[0][f"val/{name}_svm_boxes"]
        values = [logged[0][f"val/{name}_{variant}"] for variant in ("softmax", "softmax_boxes", "svm", "svm_boxes")]
        assert all(0 <= float(value) <= 1 for value in values)
        assert all(f"{float(value):.3f}" in out.partition("variant")[2] for value in values)

    found = {}
    for used, option in (("SVM + boxes", []), ("softmax + boxes", ["--model.classifier", "softmax"])):
        out = detkit(capsys, "test", "--ckpt_path", "runs/small", *option)
        metrics = json.loads((folder / "runs/small/version_1/report/metrics.json").read_text())
        rows = metrics["ablation"]
        assert [row["variant"] for row in rows] == [row["variant"] for row in ROWS]
        (own,) = [row for row in rows if row["used"]]
        assert own["variant"] == used and (own["map"], own["map_50"]) == (metrics["map"], metrics["map_50"])
        assert re.search(re.escape(f"{used} (used)") + r".*" + f"{own['map']:.3f}", out)
        page = (folder / "runs/small/version_1/report/index.html").read_text(encoding="utf-8")
        assert f"{used} (used)" in html.unescape(page) and "anchors" not in page and "mode: quality" in page
        found[used] = [{**row, "used": None} for row in rows]
    assert found["SVM + boxes"] == found["softmax + boxes"]  # one checkpoint, one comparison
    assert detkit(capsys, "validate", "--ckpt_path", "runs/small", "--model.box_regression", "false")


def test_other_numbers_let_the_svms_learn_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detkit(capsys, "fit", "--config", "small.yaml")
    out = detkit(capsys, "fit", "--ckpt_path", "runs/small", "--model.svm.c", "0.1")
    assert "SVMs: " in out and "box regressors: " in out and "fine-tuning, epoch" not in out
    assert "goes on after epoch 1, step 3\n" in out  # and no stage
    before, after = (weights(f"runs/small/version_{n}")["state_dict"] for n in (0, 1))
    same = {name: value.equal(after[name]) for name, value in before.items()}
    assert not same["roi_heads.svms.weight"]
    assert all(equal for name, equal in same.items() if name.startswith(("network.", "roi_heads.box_regressors")))


@pytest.mark.slow
def test_two_processes_share_the_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.num_train", "7"]  # shared out unevenly
    command = [sys.executable, "-m", "detkit", "fit", "--config", "small.yaml", *two]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    drawn = "Shapes: shapes is not there; drawing it: 7 train, 3 val, 3 test, 64 px a side, drawing_seed 0\n"
    assert (result.returncode, result.stderr) == (0, drawn)
    assert result.stdout.count("SVM + boxes") == 1 and "features of all regions: 7 images" in result.stdout
    best = weights("runs/small/version_0", "best")
    assert stage_of(best) == "comparison" and best["state_dict"]["roi_heads.svms.trained"].any()
    assert sorted(path.name for path in Path("runs/small").iterdir()) == ["version_0"]
    assert "SVM + boxes (used)" in detkit(capsys, "test", "--ckpt_path", "runs/small")


def test_stopping_in_a_stage_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rcnn_stages, "learn_svms", stop)
    assert main(["fit", "--config", "small.yaml"]) == 130
    told = "Go on from the last stage or epoch that ended with: detkit fit --ckpt_path runs/small/version_0\n"
    assert told in capsys.readouterr().err
    assert stage_of(weights("runs/small/version_0")) == "fine-tuning"

    # Again in the first stage of the run that goes on: its own folder has no last.ckpt, only a best that was copied.
    again, path = ["fit", "--config", "small.yaml", "--ckpt_path", "last"], "runs/small/version_0/checkpoints/last.ckpt"
    for option, more in (([], ""), (["--model.svm.c", "0.1"], ", and this run's --model options again")):
        assert main([*again, *option]) == 130
        told = f"No stage or epoch of this run had ended; go on where it began: detkit fit --ckpt_path {path}{more}\n"
        assert told in capsys.readouterr().err
    assert not Path("runs/small/version_2/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize(("value", "wanted"), [("0", ", such as [1, 2]"), ("[1, 2, 3]", " of 2")])
def test_a_pair_that_is_none_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], value: str, wanted: str
) -> None:
    assert main(["fit", "--config", "small.yaml", "--model.proposals.max_boxes", value]) == 2
    told = capsys.readouterr().err
    assert f"model.proposals.max_boxes must be a list{wanted}, not {value}\n" in told


# -- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "numbers"),
    [
        (
            ROWS,
            ["0.400 0.500 n/a n/a", "0.450 0.520 n/a +0.050", "0.375 0.610 -0.025 n/a", "0.523 0.670 +0.073 +0.148"],
        ),
        (NOTHING, ["n/a n/a n/a n/a"] * 4),
    ],
    ids=["numbers", "nothing to find"],
)
def test_a_table_of_the_variants(rows: list[dict[str, Any]], numbers: list[str]) -> None:
    text = metrics_text({"map": rows[3]["map"], "protocol": "COCO", "ablation": rows}, "test")
    names = [row["variant"] for row in rows[:3]] + ["SVM + boxes (used)"]
    expected = ["variant AP AP50 SVM gain box gain", *(f"{name} {n}" for name, n in zip(names, numbers, strict=True))]
    table = text.splitlines()[-5:]
    assert [" ".join(line.split()) for line in table] == expected
    assert len({len(line) for line in table}) == 1
    assert text.endswith(ablation_table(rows))
    assert "variant" not in metrics_text({"map": 0.3, "protocol": "COCO"}, "test")


@pytest.mark.parametrize(
    ("rows", "told"),
    [(ROWS, ["0.400", "0.450", "+5.0", "\N{MINUS SIGN}2.5", "+7.3", "+14.8"]), (NOTHING, ["n/a"])],
    ids=["numbers", "nothing to find"],
)
def test_the_report_has_the_variants(tmp_path: Path, rows: list[dict[str, Any]], told: list[str]) -> None:
    names = ["circle", "star"]
    page, _ = report(tmp_path, random_set(0, 2), names, ablation=rows)
    section = page.partition("Classifiers and box regression</h3>")[2].partition("</table>")[0]
    cells = [re.sub("<[^>]+>", "|", line) for line in section.splitlines() if line.startswith("<tr><th")]
    assert len(cells) == 4 and all(row["variant"] in html.unescape(c) for row, c in zip(rows, cells, strict=True))
    assert [c for c in cells if "(used)" in c] == [cells[3]] and all(text in section for text in told)
    saved = json.loads((tmp_path / "metrics.json").read_text())["ablation"]
    assert [row["variant"] for row in saved] == [row["variant"] for row in rows]
    assert ablation_table(saved) == ablation_table(rows)
    without, _ = report(tmp_path / "without", random_set(0, 2), names)
    assert "Classifiers and box regression" not in without


def test_null_proposals_path_is_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--model.proposals.path", "null"], ["--model.proposals.path=null"]):
        with pytest.raises(SystemExit):
            main(["fit", "--config", "small.yaml", *option, "--print_config"])
        proposals = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["proposals"]
        assert proposals["path"] is None and proposals["max_boxes"] == [40, 25]
