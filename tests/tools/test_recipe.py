"""`detkit recipe`: what it chooses by data and machine, and that a fit takes what it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import detkit
from detkit.config_files import find_config
from detkit.data.voc_xml import VOCObject
from detkit.errors import ConfigError, DataError
from detkit.tools import recipe as module
from detkit.tools.recipe import Plan

MakeVOC = Callable[..., Path]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No step is timed: one takes 2 s, a detected image 0.5 s."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "time_steps", lambda *_: (2.0, 0.5))


def photographs(make_voc: MakeVOC, boxes: list[tuple[int, int, int, int]], count: int = 40) -> Path:
    """A VOC folder of images of 400 x 300 with these objects each; every tenth is for validation."""
    objects = [VOCObject("cat", box, False) for box in boxes]
    names = [f"{i:03}" for i in range(count)]
    sets = {"train": names[: count * 9 // 10], "val": names[count * 9 // 10 :]}
    return make_voc(dict.fromkeys(names, objects), sets, size=(400, 300))


def values(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def test_the_time_is_kept_and_told(make_voc: MakeVOC) -> None:
    path = photographs(make_voc, [(10, 10, 150, 150)])
    result = detkit.recipe(str(path), minutes=30)
    assert result.path == Path("voc.yaml") and result.base == "laptop"
    config = values(result.path)
    epochs, every = config["trainer"]["max_epochs"], config["trainer"]["check_val_every_n_epoch"]
    seconds = epochs * 9 * 2.0 + epochs // every * 4 * 0.5  # 36 images in steps of 4
    assert 0.8 * 30 < seconds / 60 <= 30
    assert result.minutes == pytest.approx(seconds / 60)
    assert f"about {result.minutes:.0f} minutes" in result.text
    assert "next: detkit fit --config voc.yaml" in result.text
    shorter = detkit.recipe(str(path), minutes=15, output="shorter.yaml")
    assert 0.4 * epochs < values(shorter.path)["trainer"]["max_epochs"] < 0.6 * epochs


def test_a_short_time_still_gives_the_least_number_of_steps(make_voc: MakeVOC) -> None:
    result = detkit.recipe(str(photographs(make_voc, [(10, 10, 150, 150)])), minutes=1)
    assert values(result.path)["trainer"]["max_epochs"] * 9 >= module.MIN_STEPS
    assert result.minutes > 5  # and says so
    assert f"about {result.minutes:.0f} minutes, not 1: fewer than 200 steps teach little" in result.text


@pytest.mark.parametrize(("side", "size"), [(120, 320), (13, 384), (9, 640), (3, 640)])
def test_small_objects_get_larger_images_and_smaller_anchors(make_voc: MakeVOC, side: int, size: int) -> None:
    config = values(detkit.recipe(str(photographs(make_voc, [(10, 10, 10 + side, 10 + side)]))).path)
    arguments = config["model"]["init_args"]
    assert arguments["image"]["min_size"] == size
    resized = side * size / 300
    nearest = min(arguments["anchors"]["sizes"][0], key=lambda anchor: abs(anchor - resized))
    assert resized / 2**0.5 < nearest < resized * 2**0.5 or side == 3


def test_crowded_images_and_rare_classes(make_voc: MakeVOC) -> None:
    crowded = [VOCObject("c0", (x, y, x + 20, y + 20), False) for x in range(0, 380, 25) for y in range(0, 280, 25)]
    images = {f"{i:03}": [VOCObject(f"c{i % 24}", (10, 10, 90, 90), False)] for i in range(48)} | {"z": crowded}
    result = detkit.recipe(str(make_voc(images, size=(400, 300))))
    config = values(result.path)
    assert config["model"]["init_args"]["detection"]["max_detections"] >= len(crowded)
    assert config["data"]["init_args"]["repeat_threshold"] == module.RARE
    assert "the rarest class is in 4.1% of the images" in result.text
    data = detkit.data.VOC(**config["data"]["init_args"])
    steps = len(data.train_dataloader()) * config["trainer"]["max_epochs"]
    assert f"{steps:,} steps of 2 s" in result.text


def test_every_value_that_is_chosen_has_its_reason_in_the_file(make_voc: MakeVOC) -> None:
    result = detkit.recipe(str(photographs(make_voc, [(10, 10, 60, 60)])))
    text = result.path.read_text()
    assert len(result.values) >= 8
    for why in (why for _, why in result.values.values()):
        assert f"# {why}" in text


def test_other_layouts_bring_their_arguments(make_voc: MakeVOC, tmp_path: Path) -> None:
    voc = photographs(make_voc, [(10, 10, 150, 150)], count=10)
    detkit.convert(detkit.data.open(voc), to="yolo", output=str(tmp_path / "yolo"))
    config = values(detkit.recipe(str(tmp_path / "yolo")).path)
    assert config["data"]["class_path"] == "YOLO"
    data = detkit.data.YOLO(**{**config["data"]["init_args"], "num_workers": 0})
    assert len(data.annotations("train")) == 9


@pytest.mark.parametrize(
    ("side", "base", "bf16"), [(140, "gpu", True), (140, "gpu", False), (4, "small_objects", True)]
)
def test_a_gpu_gets_its_recipe(
    make_voc: MakeVOC, monkeypatch: pytest.MonkeyPatch, side: int, base: str, bf16: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    path = photographs(make_voc, [(10, 10, 10 + side, 10 + side)])
    result = detkit.recipe(str(path))
    assert result.base == base and "machine: some GPU" in result.text
    config, given = values(result.path), values(find_config(f"faster_rcnn/{base}"))
    assert config["trainer"]["precision"] == ("bf16-mixed" if bf16 else "16-mixed")
    assert config["model"]["init_args"]["anchors"] == given["model"]["init_args"]["anchors"]
    assert 10 < result.minutes <= 20


def test_what_is_wrong_is_told(make_voc: MakeVOC, tmp_path: Path) -> None:
    path = str(photographs(make_voc, [(10, 10, 150, 150)], count=10))
    with pytest.raises(ConfigError, match="minutes: 0 must be above 0"):
        detkit.recipe(path, minutes=0)
    detkit.recipe(path)
    with pytest.raises(ConfigError, match=r"voc\.yaml: is there already; --replace true"):
        detkit.recipe(path)
    detkit.recipe(path, replace=True)
    with pytest.raises(DataError, match="nowhere"):
        detkit.recipe(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no object in"):
        detkit.recipe(str(make_voc({"a": []}, folder="empty")))


@pytest.mark.parametrize("name", ["laptop", "gpu", "many_classes", "small_objects"])
def test_every_recipe_can_be_changed_where_the_tool_does(name: str) -> None:
    plan = Plan(find_config(f"faster_rcnn/{name}").read_text())
    before = yaml.safe_load(plan.text)
    for option in (
        "data.class_path",
        "data.init_args.path",
        "data.init_args.repeat_threshold",
        "model.init_args.image.min_size",
        "model.init_args.image.max_size",
        "model.init_args.anchors.sizes",
        "model.init_args.anchors.ratios",
        "model.init_args.detection.max_detections",
        "model.init_args.optim.warmup_steps",
        "trainer.max_epochs",
        "trainer.check_val_every_n_epoch",
    ):
        plan.set(option, 12345, "why")
        assert plan[option] == 12345
    after = yaml.safe_load(plan.text)
    assert after["trainer"].keys() == before["trainer"].keys()
    assert after["model"]["init_args"]["optim"] | {"warmup_steps": 0} == before["model"]["init_args"]["optim"] | {
        "warmup_steps": 0
    }


def test_steps_are_timed_on_the_data(make_voc: MakeVOC, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    data = detkit.data.open(photographs(make_voc, [(10, 10, 150, 150)], count=10))
    plan = Plan(find_config("faster_rcnn/laptop").read_text())
    plan.set("model.init_args.image.min_size", 64, "quick")
    before = torch.get_rng_state()
    step, image = module.time_steps(plan, data, 1, torch.device("cpu"))
    assert 0 < image < 60 and 0 < step < 60  # which is longer, on a busy machine is chance
    assert torch.equal(torch.get_rng_state(), before)
