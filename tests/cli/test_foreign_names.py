"""What a checkpoint, or the config.yaml of its run, names is neither imported nor called, in any command."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

import detkit
from detkit.cli.main import main
from detkit.errors import DetkitError

CONFIG = """
model:
  class_path: FastRCNN
  init_args:
    backbone: tiny
    features: {fpn: false}
    image: {min_size: 64, max_size: 64}
    roi: {pool_size: 3, head_channels: 16}
    proposals: {method: SlidingWindows, max_boxes: [20, 20]}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.001}}
data: {class_path: Shapes, init_args: {path: shapes, num_train: 2, num_val: 2, num_test: 2, image_size: 64}}
trainer: {accelerator: cpu, max_epochs: 1, default_root_dir: run}
"""
#: Lies on sys.path, and nobody imports it.
UNKNOWN = "from pathlib import Path\nPath('harmed').touch()\nclass Harm: pass\ndef harm(*args): pass\n"


class Harm:
    """A class of an imported module."""

    def __init__(self, *args: Any, **others: Any) -> None:
        Path("harmed").touch()


class Quiet(Callback):
    """A class of a kind that may be named."""

    @classmethod
    def loud(cls) -> Quiet:
        Path("harmed").touch()
        return cls()


class Pickled:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


TOUCH = {"command": "touch harmed"}
CALLS = {
    "os.system": TOUCH,
    "subprocess.Popen": {"args": ["touch", "harmed"]},
    "builtins.exec": {"source": "open('harmed', 'w')"},
    f"{__name__}.Harm": {},
    "not_imported.Harm": {},
}
COMMANDS = {
    "fit": "fit --ckpt_path RUN --trainer.max_epochs 2",
    "validate": "validate --ckpt_path RUN",
    "test": "test --ckpt_path RUN",
    "predict": "predict --ckpt_path RUN",
    "propose": "propose --method StoredRPN --ckpt_path RUN",
    "benchmark": "benchmark generations --fast_rcnn RUN --images 1 --rounds 1 --device cpu",
    "compress": "compress --ckpt_path RUN --rank fc6=4",
}
#: Where a checkpoint and a config name a class.
MODEL = {
    "backbone": lambda spec: {"backbone": spec},
    "backbone in a string": lambda spec: {"backbone": json.dumps(spec)},
    "optimizer": lambda spec: {"optimizer": spec},
    "optimizer's name": lambda spec: {"optimizer": spec["class_path"]},
    "argument of the optimizer": lambda spec: {
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": spec}}
    },
    "optimizer in a string": lambda spec: {"optimizer": json.dumps(spec)},
    "lr_scheduler": lambda spec: {"lr_scheduler": spec},
    "proposal method": lambda spec: {"proposals": {"method": spec}},
    "proposal method's name": lambda spec: {"proposals": {"method": spec["class_path"]}},
}
SHAPES = {"path": "shapes", "num_train": 2, "num_val": 2, "num_test": 2, "image_size": 64, "num_workers": 0}
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
#: Where only a config does.
ELSEWHERE = {
    "model": lambda spec: {"model": spec},
    "model's name": lambda spec: {"model": spec["class_path"]},
    "data": lambda spec: {"data": spec},
    "data's name": lambda spec: {"data": spec["class_path"]},
    "data in a string": lambda spec: {"data": json.dumps(spec)},
    "transforms": lambda spec: {"data": {"class_path": "Shapes", "init_args": SHAPES | {"transforms": [spec]}}},
    "data's argument": lambda spec: {"data": {"class_path": "Shapes", "init_args": {"path": spec}}},
    "logger": lambda spec: {"trainer": {"logger": spec}},
    "logger's name": lambda spec: {"trainer": {"logger": spec["class_path"]}},
    "callback": lambda spec: {"trainer": {"callbacks": [spec]}},
    "callback's name": lambda spec: {"trainer": {"callbacks": [spec["class_path"]]}},
    "called by a callback": lambda spec: {
        "trainer": {"callbacks": [{"class_path": LAMBDA, "init_args": {"on_fit_start": spec["class_path"]}}]}
    },
    "class that a callback calls": lambda spec: {
        "trainer": {"callbacks": [{"class_path": LAMBDA, "init_args": {"on_fit_start": spec}}]}
    },
    "plugins": lambda spec: {"trainer": {"plugins": [spec]}},
    "strategy": lambda spec: {"trainer": {"strategy": spec}},
    "accelerator": lambda spec: {"trainer": {"accelerator": spec}},
    "profiler": lambda spec: {"trainer": {"profiler": spec}},
    "profiler's name": lambda spec: {"trainer": {"profiler": spec["class_path"]}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, of one step."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DETKIT_RUN_FOLDER", "")
        Path("my.yaml").write_text(CONFIG)
        assert main(["fit", "--config", "my.yaml", "--data.num_workers", "0"]) == 0
    return folder


class Attack:
    """Changes files of the run, and runs commands on them."""

    def __init__(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run, self.capsys = run, capsys
        self.file = run / "checkpoints" / "last.ckpt"
        self.content = torch.load(self.file, weights_only=True)
        self.config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "checkpoints" / "best.ckpt").unlink(missing_ok=True)

    def checkpoint(self, changes: dict[str, Any], kind: str | None = None) -> None:
        content = copy.copy(self.content)
        content["hyper_parameters"] = content["hyper_parameters"] | changes
        content["detkit"] = content["detkit"] | ({"class": kind} if kind else {})
        torch.save(content, self.file)

    def write_config(self, changes: dict[str, Any]) -> None:
        config = copy.deepcopy(self.config)
        for section, value in changes.items():
            both = isinstance(value, dict) and section == "trainer"
            config[section] = {**config[section], **value} if both else value
        (self.run / "config.yaml").write_text(yaml.safe_dump(config))

    def __call__(self, command: str, code: int | None = 2, options: Sequence[str] = ()) -> str:
        self.capsys.readouterr()
        got = main([*COMMANDS[command].replace("RUN", str(self.run)).split(), *options])
        error = self.capsys.readouterr().err
        assert not Path("harmed").exists(), "it was called"
        assert "not_imported" not in sys.modules, "it was imported"
        assert got in (0, 2) and (code is None or got == code), error
        assert "Traceback" not in error and error.count("detkit: ") == (got == 2), error
        return error


@pytest.fixture
def attack(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Attack]:
    shutil.copytree(trained, tmp_path / "it")
    monkeypatch.chdir(tmp_path / "it")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    Path("not_imported.py").write_text(UNKNOWN)
    monkeypatch.syspath_prepend(Path.cwd())
    yield Attack(Path("run/version_0"), capsys)
    sys.modules.pop("not_imported", None)


def specs(*turn: int) -> list[dict[str, Any]]:
    """All of `CALLS`; of a case's numbers, the one that is not imported and one of the others in turn."""
    made = [{"class_path": name, "init_args": arguments} for name, arguments in CALLS.items()]
    return [made[-1], made[sum(turn) % 4]] if turn else made


@pytest.mark.parametrize(("number", "place"), [*enumerate(MODEL)])
def test_a_checkpoint_calls_nothing(attack: Attack, number: int, place: str) -> None:
    unread = "optimizer" in place or place == "lr_scheduler"
    for spec in specs(number) if unread else specs():
        attack.checkpoint(MODEL[place](spec))
        attack("test" if unread else ("fit", "test")[number % 2], 0 if unread else 2)
        with contextlib.suppress(DetkitError):
            detkit.load(attack.run)
        assert not Path("harmed").exists() and "not_imported" not in sys.modules


@pytest.mark.parametrize(("number", "command"), [*enumerate(COMMANDS)])
def test_no_command_calls_what_a_checkpoint_names(attack: Attack, number: int, command: str) -> None:
    for spec in specs(number):
        attack.checkpoint({}, spec["class_path"])
        assert "last.ckpt" in attack(command)
        attack.checkpoint({"backbone": spec})
        attack(command)
    attack.checkpoint({"optimizer": spec, "lr_scheduler": spec})
    attack(command, None)


@pytest.mark.parametrize(("number", "place"), [*enumerate([*MODEL, *ELSEWHERE])])
def test_a_config_calls_nothing(attack: Attack, number: int, place: str) -> None:
    for spec in specs(number):
        if place in MODEL:
            arguments = attack.config["model"]["init_args"] | MODEL[place](spec)
            attack.write_config({"model": attack.config["model"] | {"init_args": arguments}})
        else:
            attack.write_config(ELSEWHERE[place](spec))
        error = attack("fit")
        assert place == "profiler's name" or spec["class_path"].rpartition(".")[2] in error, error


@pytest.mark.parametrize(("number", "command"), [*enumerate(COMMANDS)])
@pytest.mark.parametrize("place", ["data", "data's name", "data in a string", "transforms"])
def test_no_command_calls_what_a_config_names(attack: Attack, place: str, number: int, command: str) -> None:
    for spec in specs(number, len(place)):
        attack.write_config(ELSEWHERE[place](spec))
        attack(command, 0 if command == "compress" else 2)


@pytest.mark.parametrize("place", ["optimizer", "backbone", "logger", "transforms"])
def test_a_users_own_config_calls_no_function(attack: Attack, place: str) -> None:
    section = {"model": attack.config["model"]}
    if place in MODEL:
        section["model"]["init_args"] |= MODEL[place](specs()[0])
    else:
        section |= ELSEWHERE[place](specs()[0])
    attack.write_config(section)
    (attack.run / "config.yaml").rename("own.yaml")
    assert main(["fit", "--config", "own.yaml"]) == 2
    assert not Path("harmed").exists() and "os.system is not a" in attack.capsys.readouterr().err


def test_methods_of_imported_classes_are_not_called(attack: Attack) -> None:
    path = Path("pickled.ckpt").absolute()
    path.write_bytes(pickle.dumps(Pickled()))
    spec = {"class_path": "detkit.data.Shapes.load_from_checkpoint", "init_args": {"checkpoint_path": str(path)}}
    for command, data in (("test", spec), ("fit", json.dumps(spec)), ("propose", json.dumps(spec))):
        attack.write_config({"data": data})
        attack(command)
    for made in (f"{__name__}.Quiet.loud", json.dumps({"class_path": f"{__name__}.Quiet.loud"})):
        attack.write_config({"trainer": {"callbacks": [made]}})
        attack("fit")


def test_damaged_checkpoints_are_told(attack: Attack) -> None:
    around: list[Any] = []
    around.append(around)
    for changes in ({"roi": around}, {"roi": torch.zeros(2)}, {"class_names": None}, {"backbone": {"class_path": 3}}):
        attack.checkpoint(changes)
        for command in ("test", "compress"):
            attack(command)
    attack.checkpoint({"roi": attack.content["hyper_parameters"]["roi"] | {"head_channels": 8}})
    assert "of another shape" in attack("compress") and "of another shape" in attack("test")


@pytest.fixture
def package() -> Iterator[list[str]]:
    """The options that import a package, with a function in it and a module that it does not import itself."""
    Path("mine").mkdir()
    Path("mine/__init__.py").write_text("from pathlib import Path\ndef helper(*_, **__): Path('harmed').touch()\n")
    Path("mine/danger.py").write_text(UNKNOWN)
    yield ["--import", "mine"]
    for name in ("mine", "mine.danger"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["mine.helper", "mine.danger.Harm"])
@pytest.mark.parametrize("place", [*MODEL, "roi", "logger", "called by a callback", "data's name", "data in a string"])
def test_what_is_imported_on_request_is_not_called_either(
    attack: Attack, package: list[str], name: str, place: str
) -> None:
    spec = {"class_path": name}
    unread = "optimizer" in place or place == "lr_scheduler"
    if place in ELSEWHERE:
        attack.write_config(ELSEWHERE[place](spec))
    else:
        attack.checkpoint(MODEL[place](spec) if place in MODEL else {"roi": name})
    commands = ["fit"] if "data" not in place and place in ELSEWHERE else ["fit", "test"]
    for command in commands:
        attack(command, 0 if unread else 2, package)
    assert "mine.danger" not in sys.modules


BOMB = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 9))


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, BOMB], ids=["deep", "dashes", "aliases"])
def test_yaml_in_strings_of_a_checkpoint_is_limited(attack: Attack, text: str) -> None:
    for changes in ({"features": text}, {"roi": {"pool_size": text}}):
        attack.checkpoint(changes)
        assert "is YAML of more than 50 levels or 100,000 values" in attack("test")


def test_a_checkpoint_names_no_config_file(attack: Attack) -> None:
    os.mkfifo("pipe")
    attack.checkpoint({"roi": str(Path("pipe").absolute())})
    assert "roi is a group of settings and wants names with values" in attack("test")


@pytest.mark.parametrize("value", ["2020-01-01", "!!binary aGVsbG8=", "!!set {a, b}", "{2020-01-01: 2}", '"a\\0b"'])
@pytest.mark.parametrize("command", ["fit", "test", "propose"])
def test_values_that_are_not_plain_are_told(attack: Attack, command: str, value: str) -> None:
    text = yaml.safe_dump(attack.config["model"]).replace("\n", "\n  ")
    data = f"data: {{class_path: Shapes, init_args: {{path: {value}}}}}\n"
    (attack.run / "config.yaml").write_text(f"model:\n  {text}\n{data}")
    assert "config.yaml: data.init_args.path" in attack(command)


def test_a_base_class_and_arguments_that_there_are_not_are_told(attack: Attack) -> None:
    attack.write_config({"data": {"class_path": "detkit.data.datamodule.DataModule", "init_args": {}}})
    assert "DataModule must implement read" in attack("test")
    attack.write_config({"data": {"class_path": "Shapes", "init_args": SHAPES, "dict_kwargs": {"a": 1}}})
    assert "unexpected keyword argument 'a'" in attack("propose")


@pytest.mark.parametrize("name", ["torch.nn.modules.linear.Linear", "torchvision.models.resnet.ResNet"])
def test_layers_of_libraries_are_no_backbones(attack: Attack, name: str) -> None:
    spec = {"class_path": name, "init_args": {"in_features": 10**6, "out_features": 10**6}}
    for changes in ({"backbone": spec}, {"backbone": json.dumps(spec)}):
        attack.checkpoint(changes)
        assert re.search("is not (the full name of )?a class that a config may name", attack("test"))
