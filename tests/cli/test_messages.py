"""Wrong options and values: a few lines that name the culprit, and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model.optim.lrr", "3"], ["lrr", "did you mean 'optim.lr'?"]),
        (["--model.optim.lr", "fast"], ["model.optim.lr must be a number, not fast\n"]),
        (["--model.window", "3"], ["model.window must be a list, such as [1, 2], not 3\n"]),
        (["--trainer.precision", "foo"], ["trainer.precision must be ", "bf16-true, ", "16 or bf16, not foo\n"]),
        (["--trainer.logger", "Nix"], ["trainer.logger: there is no class Nix; ", "--import MODULE"]),
        (["--trainer.callbacks", "[EarlyStoping]"], ["trainer.callbacks: there is no class EarlyStoping"]),
        (["--modle.optim.lr", "3"], ["no option --modle.optim.lr; did you mean --model.optim.lr?"]),
        (["--trainer.max_epochs", "few"], ["trainer.max_epochs must be a whole number, not few\n"]),
        (["--model", "Tinny"], ["Tinny", "did you mean 'Tiny'?"]),
        (["--data", "Photos"], ["Photos", "path"]),
        (["--model.class_names", "[a,b]"], ["--model.class_names", "--data.class_names"]),
        (["--model.init_args.category_ids=[1]"], ["--model.category_ids", "data set"]),
        (["--ckpt_path", "last"], ["runs/toy", "nothing to go on from"]),
        (["--ckpt_path", "elsewhere"], ["elsewhere"]),
    ],
)
def test_a_wrong_option_gets_a_few_lines(detkit: Callable[..., Any], given: list[str], said: list[str]) -> None:
    result = detkit("fit", "--config", "toy.yaml", *given)
    assert result.code == 2
    assert len(result.err.splitlines()) <= 4
    for words in said:
        assert words in result.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {class_path: Tiny, init_args: {optim: {lrr: 3}}}\ndata: Numbers", ["lrr", "'optim.lr'"]),
        (
            "model: {class_path: Tiny, init_args: {optim: {lr: fast}}}\ndata: Numbers",
            ["optim.lr must be a number, not fast"],
        ),
        ("model: Tinny\ndata: Numbers\n", ["Tinny", "'Tiny'"]),
        (
            "model: Tiny\ndata: Numbers\ntrainor: {max_epochs: 1}",
            ["no option trainor; did you mean 'trainer'"],
        ),
        ("model: Tiny\n  lr: [\n", ["wrong.yaml, line 2"]),
        ("- model\n", ["list"]),
        ("model: {class_path: Tiny, init_args: {class_names: [a]}}\ndata: Numbers", ["class_names"]),
    ],
)
def test_an_error_in_a_config_names_the_file(detkit: Callable[..., Any], text: str, said: list[str]) -> None:
    Path("wrong.yaml").write_text(text)
    result = detkit("fit", "--config", "wrong.yaml")
    assert result.code == 2
    assert len(result.err.splitlines()) <= 4
    for words in ("wrong.yaml", *said):
        assert words in result.err


def test_an_error_of_ours_from_a_constructor_comes_through(
    detkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from detkit.errors import ConfigError
    from tests.cli import fakes

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ConfigError("toys are out")

    monkeypatch.setattr(fakes.Numbers, "train_dataloader", refuse)
    assert detkit("fit", "--config", "toy.yaml").err == "detkit: toys are out\n"
    Path("model.yaml").write_text("model:\n  class_path: tests.cli.fakes.Refusing\ndata: Numbers\n")
    refusing = type("Refusing", (fakes.Tiny,), {"__module__": fakes.__name__, "__init__": fakes.Tiny.__init__})
    monkeypatch.setattr(fakes, "Refusing", refusing, raising=False)
    monkeypatch.setattr(fakes.torch.nn, "Linear", refuse)
    result = detkit("fit", "--config", "model.yaml")
    assert (result.code, result.err) == (2, "detkit: toys are out\n")
