"""What can be known without torch is said before torch is imported, and a run's files import nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BAD = {
    "wrong.yaml": "model:\n  class_path: FasterRCNN\n  init_args:\n    rpn: {nms_treshold: 0.7}\ndata: Shapes\n",
    "broken.yaml": "model: FasterRCNN\n  rpn: [\n",
    "date.yaml": "model: 2001-13-45\n",
    "aliases.yaml": "".join(["model: &a0 [1]\n", *(f"m{i}: &a{i} [{f'*a{i - 1}, ' * 10}]\n" for i in range(1, 7))]),
    "merged.yaml": "".join(["m0: &a0 {}\n", *(f"m{i}: &a{i} {{<<: [{f'*a{i - 1}, ' * 10}]}}\n" for i in range(1, 7))]),
    "round.yaml": "model: &a [*a]\n",
    "deep.yaml": f"model: {'[' * 900}{']' * 900}\n",
    "levels.yaml": f"model: {'[' * 60}{']' * 60}\n",
    "section.yaml": "model: FasterRCNN\ndata: Shapes\nmodle:\n",
    "runs/x/version_0/config.yaml": "model: {class_path: detkit.RCNN}\ndata: {class_path: detkit.data.Shapes}\n",
    "runs/x/version_0/checkpoints/best.ckpt": "",
    "photos/notes.txt": "",
    "torch/__init__.py": "raise SystemExit('torch was imported')\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wrong configs, a run, and a torch that cannot be imported."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, text in BAD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fit", "needs --config FILE, or --model and --data"),
        ("fit --config faster_rcnn/custom_vok", "no such config file; did you mean faster_rcnn/custom_voc?"),
        ("fit --config broken.yaml", "broken.yaml, line 2, column 6: not valid YAML"),
        ("fit --config date.yaml", "date.yaml: not valid YAML (month must be in 1..12)"),
        ("fit --config wrong.yaml", "wrong.yaml: there is no option model.init_args.rpn.nms_treshold; did you mean"),
        (
            "fit --config aliases.yaml",
            "aliases.yaml: holds more than 50 levels, or 100,000 values (an alias, *NAME, counts",
        ),
        ("fit --config merged.yaml", "merged.yaml: holds more than 50 levels"),
        ("propose --config round.yaml", "round.yaml: holds more than 50 levels"),
        ("fit --config deep.yaml", "deep.yaml: holds more than 50 levels"),
        ("propose --config levels.yaml", "levels.yaml: holds more than 50 levels"),
        ("fit --config section.yaml", "section.yaml: there is no option modle; did you mean 'model'?"),
        ("propose --config section.yaml", "section.yaml: there is no option modle; did you mean 'model'?"),
        ("fit --config shapes/faster_rcnn --model.lr 3", "no option --model.lr; did you mean --model.optim.lr?"),
        ("fit --config shapes/rcnn --model.image.min-sice 3", "did you mean --model.image.min_size?"),
        ("fit --config shapes/fast_rcnn --data.batch_sise 3", "did you mean --data.batch_size?"),
        ("fit --config shapes/faster_rcnn --trainer.max_epoch 3", "did you mean --trainer.max_epochs?"),
        ("fit --model FasterRCN --data VOC", "there is no class FasterRCN; did you mean FasterRCNN?"),
        ("validate", "`detkit validate` needs --ckpt_path"),
        ("test", "`detkit test` needs --ckpt_path"),
        ("predict --data ImageFolder --data.path x", "`detkit predict` needs --ckpt_path"),
        ("test --ckpt_path nowhere", "nowhere: no such checkpoint or run folder"),
        ("test --ckpt_path runs/x --model.svm.cc 3", "no option --model.svm.cc; did you mean --model.svm.c?"),
        ("test --ckpt_path runs/x --data.image_sise 3", "did you mean --data.image_size?"),
        ("predict --ckpt_path runs/x --predictions.drawn true", "did you mean --predictions.draw?"),
        ("evaluate --detection x", "did you mean --detections?"),
        ("propose --data VOK", "there is no class VOK; did you mean VOC?"),
        ("propose --data VOC --method StoredRPN --method.max_box 3", "did you mean --method.max_boxes?"),
        ("compress --rnk fc6=3", "did you mean --rank?"),
        ("benchmark generations --roundz 3", "did you mean --rounds?"),
        ("predict photo.jpg photos", "photo.jpg is no checkpoint; the run comes first: detkit predict RUN photo.jpg"),
        ("predict runs/x photos --clases cat", "there is no option --clases; did you mean --classes?"),
        ("convert photoz --to coco --output y", "and no such file or folder; did you mean photos?"),
        ("benchmark quick", "there is no benchmark 'quick'"),
        ("demo --fats", "did you mean --fast?"),
    ],
)
def test_a_mistake_is_told_without_torch(folder: Path, command: str, message: str) -> None:
    env = {"PYTHONPATH": f"{folder}:{ROOT}"}
    words = [sys.executable, "-m", "detkit", *command.split()]
    result = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr and "Traceback" not in result.stderr


def test_the_configs_of_the_project_have_no_unknown_option(monkeypatch: pytest.MonkeyPatch) -> None:
    from detkit.cli.resume import prepare
    from detkit.config_files import config_names

    for name in config_names():
        arguments, _ = prepare("fit", ["--config", name])
        assert arguments.class_of("model")[0] is not None


def test_a_class_of_ones_own_is_imported_by_the_command_line(
    detkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my_nets.py").write_text("from tests.cli.fakes import Tiny\n\nclass Mine(Tiny):\n    pass\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    options = ["--data", "Numbers", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    result = detkit("fit", "--import", "my_nets", "--model", "Mine", *options)
    assert (result.code, result.err) == (0, "")
    assert detkit("test", "--ckpt_path", "runs/Mine").code == 0  # it is imported by now
    monkeypatch.delitem(sys.modules, "my_nets")
    result = detkit("test", "--ckpt_path", "runs/Mine")
    assert result.code == 2 and "--import my_nets" in result.err
    assert detkit("test", "--import", "my_nets", "--ckpt_path", "runs/Mine").code == 0
    result = detkit("test", "--import", "my_netz", "--ckpt_path", "runs/Mine")
    assert result.code == 2 and "--import my_netz: cannot be imported" in result.err


def test_a_config_names_what_import_has_imported(detkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from lightning.pytorch import Callback\n\nclass Mine(Callback):\n    pass\n\n"
    Path("my_parts.py").write_text(f"{text}def say(*args):\n    print('said')\n")
    monkeypatch.syspath_prepend(Path.cwd())
    called = {"class_path": "LambdaCallback", "init_args": {"on_fit_start": "my_parts.say"}}
    trainer = {"accelerator": "cpu", "max_epochs": 1, "callbacks": [{"class_path": "my_parts.Mine"}, called]}
    Path("mine.yaml").write_text(yaml.safe_dump({"model": "Tiny", "data": "Numbers", "trainer": trainer}))
    result = detkit("fit", "--config", "mine.yaml")
    assert result.code == 2 and "mine.yaml: my_parts.Mine: the module my_parts is not imported; import it" in result.err
    result = detkit("fit", "--config", "mine.yaml", "--import", "my_parts")
    assert result.code == 2 and "mine.yaml: my_parts.say is not a class" in result.err
    trainer["callbacks"].pop()
    Path("mine.yaml").write_text(yaml.safe_dump({"model": "Tiny", "data": "Numbers", "trainer": trainer}))
    assert detkit("fit", "--config", "mine.yaml", "--import", "my_parts").code == 0


@pytest.mark.parametrize("named", ["harm.Harm", "os.system"])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_runs_config_imports_and_calls_nothing(
    detkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, command: str, named: str
) -> None:
    assert detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1").code == 0
    monkeypatch.syspath_prepend(Path.cwd())
    Path("harm.py").write_text("from pathlib import Path\nPath('harmed').touch()\n")
    path = Path("runs/toy/version_0/config.yaml")
    config = yaml.safe_load(path.read_text())
    config["data"]["class_path"] = named
    path.write_text(yaml.safe_dump(config))
    result = detkit(command, "--ckpt_path", "runs/toy")
    assert result.code == 2 and f"{path}: {named}" in result.err
    assert not Path("harmed").exists()


def test_a_run_is_used_from_any_folder(detkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1", "--data.path", "data/here").code == 0
    run = Path("runs/toy/version_0").absolute()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert detkit("test", "--ckpt_path", str(run)).code == 0
    assert json.loads((run / "report/metrics.json").read_text())["data"] == f"Numbers({run.parents[2]}/data/here)"
    assert detkit("fit", "--ckpt_path", str(run), "--trainer.max_epochs", "2").code == 0
    assert (run.parent / "version_1/checkpoints/last.ckpt").is_file() and not list(Path().iterdir())
