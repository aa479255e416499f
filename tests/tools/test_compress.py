"""`detkit.compress` and its command: a new checkpoint that loads as any other, and what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import detkit
from detkit.__about__ import __version__
from detkit.classes import full_name
from detkit.cli.main import main
from detkit.engine.checkpoints import read_checkpoint
from detkit.errors import CheckpointError, ConfigError
from detkit.settings import construct
from detkit.tools.compress import compress

OPTIONS: dict[str, Any] = {
    "class_names": ["cat", "dog"],
    "backbone": "tiny",
    "features__fpn": False,
    "image__min_size": 64,
    "image__max_size": 96,
    "anchors__sizes": [[16.0, 32.0]],
    "rpn__post_nms": [30, 20],
    "roi__pool_size": 2,
    "roi__head_channels": 24,
    "detection__score_threshold": 0.01,
}


@pytest.fixture
def model() -> detkit.FasterRCNN:
    """A detector that detects something."""
    model = construct(detkit.FasterRCNN, OPTIONS)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    torch.nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.5)
    return model.eval()


@pytest.fixture
def saved(model: detkit.FasterRCNN, tmp_path: Path) -> Path:
    """The model's checkpoint, as a fit writes it."""
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "detkit": {"class": full_name(detkit.FasterRCNN), "version": __version__, "optimizer": "SGD"},
        "pytorch-lightning_version": "2.6.6",
        "epoch": 3,
        "global_step": 9,
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [],
        "loops": {},
        "callbacks": {},
    }
    path = tmp_path / "run/version_0/checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return path


def image() -> Tensor:
    return torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)


def test_a_new_checkpoint_beside_the_old_one(saved: Path, tmp_path: Path) -> None:
    before = saved.read_bytes()
    result = compress(tmp_path / "run", {"fc6": 10, "fc7": 6})
    assert saved.read_bytes() == before
    assert sorted(p.name for p in saved.parent.iterdir()) == ["best.ckpt", "best_svd.ckpt"]
    assert result.path == saved.with_name("best_svd.ckpt") and result.text.endswith(f"compressed: {result.path}")

    small = detkit.load(result.path)
    head = small.roi_heads.box_head
    assert [layer.out_features for layer in (*head.fc6, *head.fc7)] == [10, 24, 6, 24]
    assert small.hparams["roi"]["svd_ranks"] == {"fc6": 10, "fc7": 6}
    assert small.class_names == ["cat", "dog"]
    assert len(small.predict(image())["boxes"]) > 0
    content = read_checkpoint(result.path)
    assert content["epoch"] == 3 and not {"optimizer_states", "callbacks", "loops"} & set(content)


def test_multiplications_are_told_by_the_command(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "--ckpt-path", str(saved), "--rank", "fc6=10"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    inputs = 112 * 2 * 2
    rows = {
        cells[0]: cells[1:]
        for line in out.splitlines()
        if len(cells := [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]) == 6
    }
    assert rows["fc6"] == [f"{inputs} x 24", "10", f"{inputs * 24:,}", f"{10 * (inputs + 24):,}", "56.1 %"]
    assert rows["fc7"] == ["24 x 24", "", "576", "576", ""]
    others = 24 * 24 + 24 * 3 + 24 * 12
    before, after = inputs * 24 + others, 10 * (inputs + 24) + others
    assert rows["total"][2:] == [f"{before:,}", f"{after:,}", f"{100 * (1 - after / before):.1f} %"]


def test_full_rank_detects_the_same(
    model: detkit.FasterRCNN, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detkit.heads.svd.check_saving", lambda costs: None)  # nothing is saved by full ranks
    compress(saved, {"fc6": 24, "fc7": 24}, tmp_path / "same.ckpt")
    picture = image()
    ours, theirs = detkit.load(tmp_path / "same.ckpt").predict(picture), model.predict(picture)
    assert len(theirs["boxes"]) > 3
    assert torch.equal(ours["labels"], theirs["labels"])
    torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-4)


def test_one_layer_after_the_other(saved: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.ckpt", tmp_path / "deep/two.ckpt"
    compress(saved, "fc6=10", one)
    compress(one, "fc7=6", two)
    both = read_checkpoint(compress(saved, " fc6 = 10, fc7=6 ").path)
    state = detkit.load(two).state_dict()
    assert state.keys() == both["state_dict"].keys()
    assert all(torch.allclose(value, state[name], atol=1e-5) for name, value in both["state_dict"].items())
    with pytest.raises(ConfigError, match="fc6 is factored already, with rank 10"):
        compress(two, "fc6=4")


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ("fc6=23", "nothing is saved; give at most 22"),
        ("fc8=2", "no layer 'fc8'; it has fc6, fc7"),
        ("cls_score=2", "no layer 'cls_score'"),
        ({"fc6": 99}, "is 1 to 24, not 99"),
        ("fc6", "must be written as fc6=1024,fc7=256"),
        ("fc6=-1", "must be written as"),
        ("fc6=3,fc6=4", "each layer once"),
    ],
)
def test_ranks_that_cannot_be(saved: Path, rank: str | dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compress(saved, rank)
    assert [p.name for p in saved.parent.iterdir()] == ["best.ckpt"]


def test_detectors_without_such_layers(saved: Path) -> None:
    model = construct(detkit.FasterRCNN, OPTIONS | {"roi__head": "top"})
    content = torch.load(saved, weights_only=True)
    torch.save({**content, "state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, saved)
    with pytest.raises(ConfigError, match="this detector's box head has no fully connected layers"):
        compress(saved, "fc6=3")


def test_paths_that_cannot_be(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, message in (
        (saved, "is the checkpoint that is compressed"),
        (tmp_path, "is a folder"),
        (tmp_path / "file/x.ckpt", "cannot be written"),
    ):
        with pytest.raises(ConfigError, match=message):
            compress(saved, "fc6=3", output)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        compress(tmp_path / "nowhere", "fc6=3")


def test_only_what_was_compressed_is_replaced(saved: Path) -> None:
    last, config = saved.with_name("last.ckpt"), saved.parents[1] / "config.yaml"
    last.write_bytes(saved.read_bytes())
    config.write_text("model: {}")
    for output in (last, config):
        before = output.read_bytes()
        with pytest.raises(ConfigError, match=f"output {output}: exists, and `detkit compress` has not written it"):
            compress(saved, "fc6=3", output)
        assert output.read_bytes() == before
    assert compress(saved, "fc6=3").text.endswith("best_svd.ckpt")
    assert compress(saved, "fc6=4").text.endswith("(instead of an earlier one; --output FILE keeps both)")


def test_a_run_does_not_go_on_from_weights_alone(saved: Path, capsys: Any, tmp_path: Path) -> None:
    small = compress(saved, "fc6=10").path
    options = ["--ckpt_path", str(small), "--model", "FasterRCNN", "--data", "Shapes"]
    assert main(["fit", *options, "--data.path", str(tmp_path / "shapes")]) == 2
    assert "holds the weights only" in capsys.readouterr().err
