"""A detector that is initialised from another network: what is copied, what is told, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models import WeightsEnum

import detkit
from detkit.classification import ImageClassifier
from detkit.data import VOC, Shapes
from detkit.detectors import ProposalSettings
from detkit.detectors.pretrained import matching_rows
from detkit.detectors.sources import read_source
from detkit.detectors.torchvision_files import recognise, settings_of
from detkit.engine.torchvision_detectors import ARCHITECTURES
from detkit.errors import CheckpointError, ConfigError, DetkitError, WeightsError
from detkit.features import roi_pooling
from detkit.features.architectures import classification_network
from detkit.settings import construct
from tests.features.test_roi_align import by_torchvision
from tests.parity.torchvision_pair import images, randomise

from .conftest import OPTIONS, PYRAMID, Small, assert_same, differing

pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`")

ARCH = "fasterrcnn_mobilenet_v3_large_320_fpn"
CATEGORIES = torchvision.models.get_model_weights(ARCH).DEFAULT.meta["categories"]
UNUSED = [number for number, name in enumerate(CATEGORIES) if name == "N/A"]
State = dict[str, Tensor]
FAST = {name: value for name, value in OPTIONS.items() if not name.startswith(("rpn__", "anchors__"))}
CROPS: dict[str, Any] = {"backbone": "tiny", "crop__size": 32, "crop__context": 2}
SHORT: dict[str, Any] = {"optim__warmup_steps": 0}


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """torchvision's detector for COCO, with random weights by which it detects something."""
    torch.manual_seed(0)
    model = randomise(torchvision.models.get_model(ARCH, weights=None, weights_backbone=None, num_classes=91))
    model.roi_heads.box_predictor.cls_score.bias.data[UNUSED] = -1e4  # they never had an object to learn from
    return model


@pytest.fixture(scope="module")
def coco(theirs: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its state dict in a file, without the counters of batch norms, as torchvision's own files are."""
    path = tmp_path_factory.mktemp("coco") / f"{ARCH}.pth"
    torch.save({k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}, path)
    return path


def learnt(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose every tensor differs from that of a new one."""
    generator = torch.Generator().manual_seed(5)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=generator) * 0.1 + 0.01)
    return model


def saved(model: torch.nn.Module, path: Path) -> Path:
    """A checkpoint of a detector, without a run."""
    about = {"class": f"{type(model).__module__}.{type(model).__name__}", "version": "0"}
    arguments = {**model.hparams, "class_names": model.class_names}
    torch.save({"detkit": about, "hyper_parameters": arguments, "state_dict": model.state_dict()}, path)
    return path


# -- zero training ----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_file_of_torchvisions_detects_what_it_does_there(
    theirs: torch.nn.Module, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roi_pooling, "multiscale_roi_align", by_torchvision)  # many scores are almost equal
    torch.save({"model": theirs.state_dict()}, tmp_path / coco.name)
    model = detkit.load(tmp_path / coco.name)
    assert model.class_names == [name for name in CATEGORIES[1:] if name != "N/A"]
    for image, found in zip(images()[:2], model.predict(images()[:2]), strict=True):
        assert len(found["boxes"]) > 5
        ours = dict(found) | {"labels": torch.tensor(model.category_ids)[found["labels"] - 1]}
        assert_same(theirs([image / 255])[0], ours, pixels=1e-2)
    # With frozen batch norms, which round otherwise, the next best may be suppressed by another one.
    assert_same(*({k: v[:5] for k, v in each.predict(images()[0]).items()} for each in (model, detkit.load(coco))))


def test_a_file_for_other_classes_has_no_names(tmp_path: Path) -> None:
    state = torchvision.models.get_model(ARCH, weights=None, weights_backbone=None, num_classes=4).state_dict()
    torch.save(state, tmp_path / "three.pth")
    with pytest.raises(CheckpointError, match=r"three\.pth: .* for 3 classes, and their names are not in the file"):
        detkit.load(tmp_path / "three.pth")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_architecture_is_recognised(arch: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(arch, weights=None, weights_backbone=None, num_classes=91).state_dict()
    assert recognise(state, f"{arch}.pth") == arch
    if "mobilenet" in arch:
        assert recognise(state, "a.pth") == "fasterrcnn_mobilenet_v3_large_fpn"
        assert recognise(state, "a.pth", min_size=320) == ARCH
    fixed = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert settings_of(arch, state).get("features", {}).get("freeze_batch_norm") is None
    features = settings_of(arch, fixed)["features"]
    assert features["freeze_batch_norm"]
    eps = {"fasterrcnn_resnet50_fpn": 0.0, "fasterrcnn_resnet50_fpn_v2": None}
    assert features.get("batch_norm_eps") == eps.get(arch, 1e-5)
    state["rpn.head.bbox_pred.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"beside fasterrcnn.*, 1 tensors differ \(rpn.head.bbox_pred.bias\)"):
        recognise(state, "other.pth")


def test_names_of_earlier_versions_are_understood(theirs: torch.nn.Module) -> None:
    """torchvision's COCO files have them; that its model takes them, too, shows that they are right."""
    state = theirs.state_dict()
    old = {k.replace("rpn.head.conv.0.0.", "rpn.head.conv."): v for k, v in state.items()}
    old = {k.replace(".0.", ".") if ".inner_blocks.1" in k or ".layer_blocks.1" in k else k: v for k, v in old.items()}
    assert len(old.keys() - state.keys()) == 6
    torchvision.models.get_model(ARCH, weights=None, weights_backbone=None).load_state_dict(dict(old))
    model = detkit.FasterRCNN.from_torchvision(ARCH, old, CATEGORIES[1:])
    assert not differing(dict(model.state_dict()), {k: state[k] for k in model.state_dict()})


# -- by name ----------------------------------------------------------------------------------------


def test_a_name_is_downloaded_once_and_its_hash_is_checked(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256(coco.read_bytes()).hexdigest()[:8]
    server, cache = tmp_path / "server", tmp_path / "torch/hub/checkpoints"
    server.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(WeightsEnum, "url", property(lambda weights: (server / f"x-{digest}.pth").as_uri()))
    with pytest.raises(CheckpointError, match=rf"could not be downloaded .*put it at {cache}/x-{digest}\.pth"):
        detkit.load(f"torchvision:{ARCH}")
    (server / f"x-{digest}.pth").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"could not be downloaded \(invalid hash"):
        detkit.load(f"torchvision:{ARCH}")
    (server / f"x-{digest}.pth").write_bytes(coco.read_bytes())
    first = detkit.load(f"torchvision:{ARCH}")
    (server / f"x-{digest}.pth").unlink()
    assert not differing(first.state_dict(), detkit.load(f"torchvision:{ARCH}").state_dict())
    assert not differing(first.state_dict(), detkit.load(coco).state_dict())
    (cache / f"x-{digest}.pth").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=rf"x-{digest}\.pth is damaged or another file: its SHA-256 begins with"):
        detkit.FasterRCNN.from_pretrained(f"torchvision:{ARCH}", ["a"])


def test_a_name_that_there_is_not() -> None:
    for name, near in (("fasterrcnn_resnet50_fpn_v3", "did you mean 'fasterrcnn_resnet50_fpn_v2'"), ("yolo", ARCH)):
        with pytest.raises(ConfigError, match=rf"torchvision: there is no '{name}'.*{near}"):
            detkit.load(f"torchvision:{name}")


# -- fine-tuning ------------------------------------------------------------------------------------


def test_coco_to_one_class_known_to_it(
    theirs: torch.nn.Module, coco: Path, drawn: Path, trainer: Any, tmp_path: Path, capsys: Any
) -> None:
    small = {"image__min_size": 64, "image__max_size": 96}
    names = ["Cat", "rectangle", "ring", "star", "triangle"]
    model = detkit.FasterRCNN.from_pretrained(coco, names, **small, **SHORT)
    told, before = capsys.readouterr().out, theirs.state_dict()
    assert told == f"{model.pretrained}\n"
    after = dict(model.state_dict())
    heads = {k: after.pop(k) for k in list(after) if ".box_predictor." in k}
    assert not differing(after, {k: before[k] for k in after})
    cat = CATEGORIES.index("cat")
    for layer, size in (("cls_score", 1), ("bbox_pred", 4)):
        for part in ("weight", "bias"):
            key = f"roi_heads.box_predictor.{layer}.{part}"
            ours, rows = heads[key].unflatten(0, (-1, size)), before[key].unflatten(0, (-1, size))
            assert torch.equal(ours[:2], rows[[0, cat]])
            assert len(ours) == 6 and float(ours[2:].abs().max()) < 0.1
    assert "rows copied: background, Cat; new: rectangle, ring" in told
    assert "batch norms of the backbone: 46 frozen, as in the source" in told
    assert "image.min_size 64 (320); image.max_size 96 (640)" in told
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
    model.eval()  # as a user may leave it
    data = VOC(str(drawn), class_names=names, other_classes="drop", batch_size=2, num_workers=0)
    runner = trainer(max_steps=1, limit_val_batches=1)
    runner.fit(model, datamodule=data)
    assert model.training and "initialised from" not in capsys.readouterr().out  # it was told
    changed = {name.split(".")[0] for name in before if name in after and not torch.equal(before[name], after[name])}
    assert changed == {"backbone", "rpn", "roi_heads"}
    runner.save_checkpoint(tmp_path / "tuned.ckpt")
    again = detkit.load(tmp_path / "tuned.ckpt")
    assert not differing(model.state_dict(), again.state_dict())
    assert again.hparams["init_from"] == str(coco) and again.hparams["class_names"] == names


def test_from_torchvision_says_what_to_do_with_other_classes(theirs: torch.nn.Module) -> None:
    with pytest.raises(WeightsError, match=r"know 90 classes, class_names has 2: .* use from_pretrained"):
        detkit.FasterRCNN.from_torchvision(ARCH, theirs.state_dict(), ["cat", "dog"])
    model = detkit.FasterRCNN.from_pretrained(theirs.state_dict(), ["cat", "dog"])
    assert "read as the detector for 800 pixels" in str(model.pretrained)
    assert "46 frozen, unlike in the source" in str(model.pretrained)


@given(st.lists(st.sampled_from(["a", "A", "b", "B", "c"]), unique=True), st.data())
def test_rows_go_by_name(before: list[str], data: st.DataObject) -> None:
    now = data.draw(st.lists(st.sampled_from(["a", "A", "b", "C", "d"]), unique=True))
    rows = matching_rows(before, now)
    assert rows[0] == 0
    for row, name in enumerate(now, start=1):
        if name in before:
            assert before[rows[row] - 1] == name
        elif name.lower() in [each.lower() for each in before]:
            assert before[rows[row] - 1].lower() == name.lower()
        else:
            assert row not in rows
    assert matching_rows(None, now) == {0: 0}


def test_box_regression_keeps_its_meaning_in_another_scale(tmp_path: Path) -> None:
    source = learnt(construct(detkit.FastRCNN, FAST | {"box_normalization": "per_class"}))
    source.roi_heads.normalizer.count += 1
    path, names = saved(source, tmp_path / "fast.ckpt"), source.class_names[::-1]
    weights = {"roi__box_weights": (5.0, 4.0, 3.0, 2.0)}
    model = detkit.FastRCNN.from_pretrained(path, names, **weights)
    features, corner = torch.randn(7, 16), torch.rand(7, 2) * 20
    rois, labels = torch.cat((corner, corner + 10 + torch.rand(7, 2)), 1), torch.randint(1, 6, (7,))
    boxes = []
    for each, rows in ((source, labels), (model, 6 - labels)):
        deltas = each.roi_heads.box_predictor(features)[1][torch.arange(7), rows]
        boxes.append(each.roi_heads._decode(deltas, rois, rows))
    torch.testing.assert_close(*boxes, atol=1e-3, rtol=0)
    per_class = detkit.FastRCNN.from_pretrained(path, names, box_normalization="per_class")
    assert not per_class.roi_heads.normalizer.known  # it is measured, and the boxes learn anew
    assert per_class.pretrained.count("new", "predictor").tensors == 2


# -- each generation from each other ----------------------------------------------------------------


def faster(**options: Any) -> detkit.FasterRCNN:
    return construct(detkit.FasterRCNN, OPTIONS | options)


def fast(**options: Any) -> detkit.FastRCNN:
    return construct(detkit.FastRCNN, FAST | options)


def rcnn(**options: Any) -> detkit.RCNN:
    return construct(detkit.RCNN, {"class_names": OPTIONS["class_names"], **CROPS} | options)


def body(model: torch.nn.Module) -> State:
    """The tensors of the convolutions, by the layers' names: without a pyramid the last are in the head."""
    parts = ("network.backbone.body.", "backbone.body.", "roi_heads.box_head.")
    found = [(k, v) for k, v in model.state_dict().items() if k.startswith(parts) and "num_batches" not in k]
    return {k[next(len(p) for p in parts if k.startswith(p)) :]: v for k, v in found if ".fc" not in k}


TOP = {"roi__head": "top"}
CASES: list[tuple[Callable[[], Any], type, dict[str, Any], list[str]]] = [
    (faster, detkit.FastRCNN, {}, ["region proposal network is skipped"]),
    (fast, detkit.FasterRCNN, {}, ["region proposal network is new"]),
    (lambda: faster(**PYRAMID), detkit.FasterRCNN, {"training_scheme": "alternating"}, []),
    (lambda: faster(**PYRAMID), detkit.RCNN, CROPS, ["predictor: new", "proposal network is skipped"]),
    (lambda: faster(**TOP), detkit.RCNN, CROPS, ["proposal network is skipped"]),
    (lambda: faster(**TOP), detkit.FasterRCNN, {"features__fpn": True, "anchors__sizes": None, "roi__head": "mlp"}, []),
    (rcnn, detkit.FasterRCNN, {}, ["region proposal network is new"]),
    (rcnn, detkit.FastRCNN, {"features__fpn": False, "roi__head": "top"}, []),
    (rcnn, detkit.RCNN, CROPS, []),
]


@pytest.mark.parametrize(("build", "cls", "options", "lines"), CASES)
def test_each_generation_from_each_other(
    build: Callable[[], Any], cls: type[Any], options: dict[str, Any], lines: list[str], tmp_path: Path
) -> None:
    source = learnt(build())
    model = cls.from_pretrained(saved(source, tmp_path / "a.ckpt"), ["star", "moon"], **options)
    theirs, ours = body(source), body(model)
    assert len(ours) >= 25 and set(ours) <= set(theirs)
    assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]
    text = str(model.pretrained)
    assert f"{tmp_path / 'a.ckpt'}, a {type(source).__name__}" in text
    assert all(line in text for line in lines)
    if cls is not detkit.RCNN and type(source) is not detkit.RCNN and "roi__head" not in options:
        assert torch.equal(model.roi_heads.box_head.fc6.weight, source.roi_heads.box_head.fc6.weight)
        star = 1 + source.class_names.index("star")
        weight = source.roi_heads.box_predictor.cls_score.weight
        assert torch.equal(model.roi_heads.box_predictor.cls_score.weight[:2], weight[[0, star]])
        assert model.hparams["image"]["min_size"] == 64
    if getattr(model, "rpn_backbone", None) is not None:
        assert not differing(model.backbone.state_dict(), model.rpn_backbone.state_dict())
    assert model.pretrained.count("copied").numbers + model.pretrained.count("remapped").numbers > 0


def test_fully_connected_layers_are_found_again(tmp_path: Path) -> None:
    source = learnt(rcnn(backbone="lenet5"))
    options = {"features__fpn": False, "roi__head": "top", "roi__pool_size": 8}
    model = detkit.FastRCNN.from_pretrained(saved(source, tmp_path / "a.ckpt"), source.class_names, **options)
    assert not differing(dict(source.network.top.state_dict()), dict(model.roi_heads.box_head.state_dict()))
    assert torch.equal(source.roi_heads.cls_score.weight, model.roi_heads.box_predictor.cls_score.weight)
    assert model.pretrained.count("copied", "predictor").tensors == 2


def test_a_classification_network_and_an_image_classifier(tmp_path: Path) -> None:
    network = learnt(classification_network("mobilenet_v2", 7))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    crops = {"crop__size": 32, "crop__context": 2}
    for cls, options in ((detkit.FasterRCNN, {}), (detkit.RCNN, crops)):
        model = cls.from_pretrained(tmp_path / "net.pth", ["a"], **options)
        theirs = {k.removeprefix("features."): v for k, v in network.state_dict().items()}
        assert not [k for k, v in body(model).items() if k in theirs and not torch.equal(v, theirs[k])]
        assert model.hparams["backbone"] == "mobilenet_v2" and "a classification network" in str(model.pretrained)
    assert torch.equal(model.network.top[0][0].weight, theirs["18.0.weight"])
    assert model.pretrained.count("skipped", "classifier").tensors == 2
    classifier = learnt(ImageClassifier(["a", "b"], "tiny", image_mean=[0.1, 0.2, 0.3]))
    model = detkit.FasterRCNN.from_pretrained(saved(classifier, tmp_path / "c.ckpt"), ["a"])
    assert model.hparams["backbone"] == "tiny" and list(model.hparams["image"]["mean"]) == [0.1, 0.2, 0.3]
    assert "an ImageClassifier" in str(model.pretrained)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (faster, {"backbone": "lenet5"}, r"model.backbone is lenet5, the source's is tiny. Remove this setting"),
        (
            faster,
            {"features__fpn": True, "anchors__sizes": None},
            r"only \d+% .* model.features.fpn is True.* is False",
        ),
        (faster, {"weights": "DEFAULT"}, "leave them out"),
        (faster, {"anchor": 3}, "no argument 'anchor'"),
        (faster, {"cls": detkit.RCNN, **CROPS}, r"only \d+% .*: it has no features.3.0.0.weight"),
    ],
)
def test_a_backbone_that_does_not_fit(
    build: Callable[[], Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path, options = saved(build(), tmp_path / "a.ckpt"), dict(options)
    with pytest.raises((WeightsError, ConfigError), match=message):
        options.pop("cls", detkit.FasterRCNN).from_pretrained(path, ["a"], **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such checkpoint or run folder"),
        (b"no file of torch.save", "it is no file of torch.save, or a damaged one"),
        ([1, 2], "not a checkpoint written by detkit"),
        ({"epoch": 3}, "not a checkpoint written by detkit"),
        ({"a.weight": torch.zeros(1)}, "its first tensor is a.weight"),
        (
            {"roi_heads.mask_head.0.0.weight": torch.zeros(1)},
            "a Mask R-CNN of torchvision's; known are fasterrcnn",
        ),
        ({"head.classification_head.x": torch.zeros(1)}, "holds a RetinaNet, an FCOS or an SSD"),
        ({"roi_heads.box_predictor.cls_score.weight": torch.zeros(3, 4)}, "none of torchvision's"),
    ],
)
def test_a_wrong_source_is_one_message(content: Any, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("detkit.detectors.sources.NETWORKS", ["tiny", "lenet5"])
    path = tmp_path / "source.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(DetkitError, match=rf"source\.pth.*{message}"):
        read_source(path)


def test_a_damaged_file_is_found(coco: Path, tmp_path: Path) -> None:
    content = bytearray(coco.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / f"{ARCH}.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: this file was changed"):
        detkit.FasterRCNN.from_pretrained(tmp_path / f"{ARCH}.pth", ["a"])


def test_init_from_in_the_constructor_is_not_passed_over(
    small: Small, shapes: Callable[..., Shapes], trainer: Any
) -> None:
    with pytest.raises(ConfigError, match=r"'runs/a' was not read: use FasterRCNN\.from_pretrained"):
        trainer(max_steps=1).fit(small(init_from="runs/a"), datamodule=shapes())


def test_nothing_that_a_source_names_is_called(tmp_path: Path) -> None:
    content = torch.load(saved(faster(), tmp_path / "a.ckpt"), weights_only=True)
    content["hyper_parameters"]["backbone"] = {"class_path": "os.system", "init_args": {"command": "touch harmed"}}
    torch.save(content, tmp_path / "b.ckpt")
    with pytest.raises(ConfigError, match=r"os\.system"):
        detkit.FasterRCNN.from_pretrained(tmp_path / "b.ckpt", ["a"])
    assert not Path("harmed").exists()


def test_given_settings_win(tmp_path: Path) -> None:
    source = saved(fast(proposals=ProposalSettings(max_boxes=(3, 3))), tmp_path / "a.ckpt")
    model = detkit.FasterRCNN.from_pretrained(source, ["a"], roi__batch_size=9, rpn__batch_size=8)
    assert model.hparams["roi"]["batch_size"] == 9 and model.hparams["roi"]["head_channels"] == 16
    assert model.hparams["rpn"]["batch_size"] == 8 and model.hparams["image"]["min_size"] == 64
    assert model.hparams["detection"]["score_threshold"] == 0.05  # the constructor's own
    assert "roi.batch_size 9 (16)" in str(model.pretrained)
