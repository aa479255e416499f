"""Weights of a backbone: from a local file, strictly, or by torchvision's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from detkit.errors import WeightsError
from detkit.features import MapSettings, build_backbone
from detkit.features.architectures import classification_network
from detkit.features.weights import load_classification_weights, load_state_dict_file


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Weights of a tiny network, all different from its initial ones."""
    return {k: torch.rand_like(v.float()).to(v.dtype) for k, v in classification_network("tiny").state_dict().items()}


def saved(content: Any, path: Path) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_a_local_file(state: dict[str, torch.Tensor], tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    backbone, top = build_backbone("tiny", saved(wrap(state), tmp_path / "tiny.pth"), MapSettings(fpn=False))
    loaded = {f"features.{k}": v for k, v in backbone.body.state_dict().items()}
    loaded |= {f"features.{k}": v for k, v in top.state_dict().items()}
    assert len(loaded) == sum(k.startswith("features.") for k in state)
    assert all(torch.equal(v, state[k]) for k, v in loaded.items())


def test_a_classifier_of_other_classes_is_fine(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state["classifier.2.weight"], state["classifier.2.bias"] = state["classifier.2.weight"][:7], torch.zeros(7)
    build_backbone("tiny", weights=saved(state, tmp_path / "seven.pth"))
    del state["classifier.2.weight"], state["classifier.2.bias"]
    build_backbone("tiny", weights=saved(state, tmp_path / "none.pth"))
    counted = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(counted) < len(state)
    build_backbone("tiny", weights=saved(counted, tmp_path / "frozen.pth"))


@pytest.mark.parametrize("classify", [False, True])
@pytest.mark.parametrize("classes", [1000, 7, None])
def test_what_was_loaded_is_told(
    state: dict[str, torch.Tensor], tmp_path: Path, classes: int | None, classify: bool
) -> None:
    for key in ("classifier.2.weight", "classifier.2.bias"):
        state[key] = state[key][:classes]
        if classes is None:
            del state[key]
    path = saved(state, tmp_path / "tiny.pth")
    loaded = load_classification_weights(classification_network("tiny"), "tiny", path, classify)
    without = sum(k.startswith("features.") and not k.endswith("num_batches_tracked") for k in state)
    left_out = classes is not None and not (classes == 1000 and classify)
    assert loaded.tensors == without + 2 * (classes == 1000 and classify)
    assert loaded.left_out == "classifier.2" * left_out and loaded.crop_size == 224
    rest = "; left out: classifier.2, its last layer" if left_out else ""
    assert str(loaded) == f"{loaded.tensors} tensors from {path} (tiny){rest}"


def test_keys_that_do_not_fit_are_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    del state["features.0.0.weight"]
    state["features.9.weight"] = torch.zeros(2)
    shape = tuple(state["features.1.1.0.weight"].shape)
    state["features.1.1.0.weight"] = torch.zeros(64, 64, 1, 1)
    path = saved(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError) as caught:
        build_backbone("tiny", weights=path)
    for words in (
        path,
        "1 keys are missing (features.0.0.weight)",
        "1 keys are not in the network (features.9.weight)",
        f"features.1.1.0.weight: (64, 64, 1, 1) instead of {shape}",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [lambda s: s.pop("features.3.1.1.bias"), lambda s: s.update(new=torch.zeros(1)), lambda s: s.clear()],
    ids=["missing", "unexpected", "empty"],
)
def test_one_misfit_is_enough(state: dict[str, torch.Tensor], tmp_path: Path, change: Callable[[Any], Any]) -> None:
    change(state)
    network = classification_network("tiny")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(WeightsError, match="do not fit TinyCNN"):
        load_classification_weights(network, "tiny", saved(state, tmp_path / "misfit.pth"))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_many_misfits_are_counted(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"35 keys are missing \(features\.0\.0\.weight, \S+, \S+, \.\.\.\)"):
        build_backbone("tiny", weights=saved({}, tmp_path / "empty.pth"))


@pytest.mark.parametrize("layer", ["classifier.0.weight", "classifier.3.bias"])
def test_fully_connected_layers_of_a_head_are_not_optional(layer: str) -> None:
    """fc6 and fc7 of VGG16 classify each region: only its last layer knows ImageNet's classes."""
    with torch.device("meta"):
        network = classification_network("vgg16")
    from detkit.features.weights import fit_state_dict, last_layer

    assert last_layer(network) == ("classifier.6.",)
    state = {k: v for k, v in network.state_dict().items() if k != layer and not k.startswith("classifier.6")}
    with pytest.raises(WeightsError, match=f"1 keys are missing .{layer}."):
        fit_state_dict(network, state, "x.pth", optional=last_layer(network))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("alexnet", "classifier.6."), ("resnet18", "fc."), ("lenet5", "classifier.output."), ("tiny", "classifier.2.")],
)
def test_the_layer_of_the_classes(name: str, prefix: str) -> None:
    from detkit.features.weights import last_layer

    with torch.device("meta"):
        assert last_layer(classification_network(name)) == (prefix,)


class Harmful:
    """Runs code when unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_no_code_in_a_file_is_run(state: dict[str, torch.Tensor], tmp_path: Path, legacy: bool) -> None:
    sentinel, path = tmp_path / "was_here", tmp_path / "bad.pth"
    torch.save({**state, "extra": Harmful(sentinel)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"bad\.pth: cannot be read.*torch\.save\(model\.state_dict"):
        build_backbone("tiny", weights=str(path))
    assert not sentinel.exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 broken archive", b"\x80\x02}q\x00."])
def test_files_that_are_no_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"bad\.pth"):
        build_backbone("tiny", weights=str(path))
    with pytest.raises(WeightsError, match=r"model\.pth: cannot be read.*state_dict"):  # a whole model
        load_state_dict_file(nn.Linear(2, 2), saved(nn.Linear(2, 2), tmp_path / "model.pth"), "mine")


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], torch.zeros(3), {"epoch": 3}, {0: torch.zeros(1)}, {"a": {"b": 1}}]
)
def test_files_that_hold_something_else(tmp_path: Path, content: Any) -> None:
    with pytest.raises(WeightsError, match=r"bad\.pth holds a \w+, not a state dict"):
        build_backbone("tiny", weights=saved(content, tmp_path / "bad.pth"))


@pytest.mark.parametrize("name", ["nowhere.pth", "some/folder/weights", "./weights"])
def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f"weights file {name} does not exist"):
        build_backbone("tiny", weights=name)


def test_names_torchvision_does_not_know() -> None:
    with pytest.raises(WeightsError, match=r"'IMAGENET22K' of resnet50.*IMAGENET1K_V1, IMAGENET1K_V2"):
        load_classification_weights(nn.Module(), "resnet50", "IMAGENET22K")
    with pytest.raises(WeightsError, match="torchvision has no weights for tiny"):
        load_classification_weights(nn.Module(), "tiny", "DEFAULT")


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1"])
def test_names_torchvision_knows(state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    network = classification_network("squeezenet1_0")
    state = {k: torch.rand_like(v) for k, v in network.state_dict().items()}
    asked = []

    def download(self: Any, **options: Any) -> dict[str, torch.Tensor]:
        asked.append((self.name, options["check_hash"]))
        return state

    monkeypatch.setattr(torchvision.models.SqueezeNet1_0_Weights, "get_state_dict", download)
    loaded = load_classification_weights(network, "squeezenet1_0", name)
    assert loaded.source == "torchvision's IMAGENET1K_V1 (squeezenet1_0)"
    assert asked == [("IMAGENET1K_V1", True)]
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())

    def fail(self: Any, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.SqueezeNet1_0_Weights, "get_state_dict", fail)
    told = rf"{name} of squeezenet1_0 could not be downloaded \(no route to host\); .* --model\.weights FILE"
    with pytest.raises(WeightsError, match=told):
        load_classification_weights(network, "squeezenet1_0", name)


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_0"])
@torch.no_grad()
def test_imagenet_weights_give_torchvisions_features(shared: Callable[[str], Path], name: str) -> None:
    path = shared(f"data/weights/{name}_imagenet.pth")
    network = torchvision.models.get_model(name).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    backbone, top = build_backbone(name, str(path), MapSettings(fpn=False))
    image = torch.rand(1, 3, 96, 64)
    (features,) = backbone.eval()(image)
    trunk = int(backbone.levels[0]) + 1
    assert torch.equal(features, network.features[:trunk](image))
    assert features.std() > 0.05
    if top is not None:  # MobileNet's last blocks, without the final convolution to 1280 channels
        expected = network.features[trunk:18](features).mean((2, 3))
        torch.testing.assert_close(top.eval()(features), expected)


def test_a_runs_folder_is_no_file_of_weights(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(WeightsError) as error:
            load_classification_weights(classification_network("tiny"), "tiny", str(tmp_path))
        return str(error.value)

    for version in (0, 9, 10, 11):  # the first failed, and so did the last
        (tmp_path / f"version_{version}/checkpoints").mkdir(parents=True)
    assert refused() == f"weights {tmp_path} is a folder; name a file in it, of which none is a checkpoint"
    for name in ("version_9/checkpoints/best", "version_10/checkpoints/last", "version_10/checkpoints/best"):
        (tmp_path / f"{name}.ckpt").touch()
        assert refused() == f"weights {tmp_path} is a folder; name a file in it, such as {tmp_path / name}.ckpt"
