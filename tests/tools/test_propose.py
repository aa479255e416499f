"""`propose` and `detkit propose`: what they compute, keep and say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pytest
import torch

import detkit
from detkit.cli.main import main
from detkit.data import Shapes
from detkit.data.shapes_drawing import SHAPE_CLASSES
from detkit.detectors import ProposalSettings
from detkit.errors import ConfigError
from detkit.evaluation.proposal_recall import proposal_recall
from detkit.proposals import ProposalMethod, ProposalStore, SelectiveSearch, SlidingWindows
from detkit.settings import construct
from detkit.tools import propose as tool
from tests.proposals.stores import write_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`"),
]
SIZES = {"num_train": 5, "num_val": 3, "num_test": 2, "image_size": 64}
DATA = ["--data", "Shapes", "--data.path", "shapes", *(w for k, v in SIZES.items() for w in (f"--data.{k}", str(v)))]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "shapes"
    Shapes(str(path), 5, 3, 2, 64).prepare_data()
    return path


class Search:
    """Stands for selective search: how often it was asked, and what shall happen before it answers."""

    calls: ClassVar[int] = 0
    before: ClassVar[Callable[[int], None]]

    @classmethod
    def search(cls, image: np.ndarray, max_boxes: int | None = None, seed: int = 0, **others: Any) -> np.ndarray:
        cls.before(cls.calls)
        cls.calls += 1
        corners = np.random.default_rng(seed).integers(0, 64, (300, 2, 2))
        return np.sort(corners, axis=1).reshape(-1, 4)[:max_boxes]


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> type[Search]:
    monkeypatch.setattr("detkit.proposals.methods.selective_search", Search.search)
    Search.calls, Search.before = 0, lambda call: None
    return Search


@dataclass(frozen=True)
class Corner(ProposalMethod):
    """A user's own."""

    side: float = 16

    def __call__(self, image: np.ndarray, image_id: Any = None) -> np.ndarray:
        return np.array([[0, 0, self.side, self.side]])


@pytest.fixture
def propose(
    tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`propose(*args)` -> exit code, what was said, what was complained about; in a folder with `shapes`."""
    monkeypatch.chdir(tmp_path)
    Path("shapes").symlink_to(drawn)

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["propose", *args])
        return code, *capsys.readouterr()

    return run


def annotations(path: str | Path = "shapes", split: str = "train") -> Any:
    return Shapes(str(path), 5, 3, 2, 64).annotations(split)


def test_computes_and_says_how_good_it_is(propose: Any, search: type[Search]) -> None:
    code, out, err = propose(*DATA, "--output", "boxes.proposals")
    assert (code, err) == (0, "")
    store = ProposalStore("boxes.proposals")
    assert len(store) == 5 and search.calls == 5
    counts, recall = store.counts, tool.recall_of(store, annotations(), 5)
    assert re.search(
        rf"5 images, {counts.mean():.0f} boxes an image \({counts.min()} to {counts.max()}\); in [\d.]+ s, 0.0 MB\n"
        rf"recall {recall.recall_50[0]:.3f} at IoU 0.5, {recall.recall_70[0]:.3f} at 0.7; MABO {recall.mabo[0]:.3f} "
        rf"\(\d+ objects; difficult and crowd are not counted\)\nproposals: {os.path.abspath('boxes.proposals')}\n",
        out,
    )
    assert 0.3 < recall.recall_50[0] <= 1
    code, out, err = propose(*DATA, "--output", "boxes.proposals")
    assert (code, err, search.calls) == (0, "", 5) and "already there" in out
    assert sorted(os.listdir(".")) == ["boxes.proposals", "shapes"]


def test_from_python(propose: Any, drawn: Path) -> None:
    data = Shapes(str(drawn), 5, 3, 2, 64)
    result = tool.propose(data, "val", Corner(20), output="boxes.proposals")
    assert [boxes.tolist() for boxes in result.store.values()] == [[[0, 0, 20, 20]]] * 3
    assert result.store.parameters == {"side": 20.0} and result.seconds is not None and "3 images" in result.text
    assert result.recall.recall_50[0] == tool.recall_of(result.store, data.annotations("val"), 5).recall_50[0]
    assert tool.propose(data, "val", Corner(20), output="boxes.proposals").seconds is None
    with pytest.raises(ConfigError, match="ckpt_path is for method StoredRPN, but the method is Corner"):
        tool.propose(data, "val", Corner(), ckpt_path="runs/my")


def test_a_class_of_the_users_own_by_its_name(propose: Any) -> None:
    code, out, err = propose(*DATA, "--method", f"{__name__}.Corner", "--method.side", "9", "--output", "a.proposals")
    assert (code, err) == (0, "") and "by Corner (side 9.0)" in out
    assert ProposalStore("a.proposals")["train_00000"].tolist() == [[0, 0, 9, 9]]


def test_default_place_splits_and_options(propose: Any, search: type[Search], drawn: Path) -> None:
    code, out, err = propose(*DATA, "--split", "val", "--method.max_boxes", "7", "--workers", "1")
    assert (code, err) == (0, "") and "1 thread\n" in out
    (path,) = (drawn / "proposals").iterdir()
    store = ProposalStore(path)
    assert store.parameters["max_boxes"] == 7 and store.counts.max() <= 7
    assert path.name.startswith("val-SelectiveSearch-") and list(store) == [f"val_{i:05d}" for i in range(3)]
    code, _, err = propose(*DATA, "--split", "test", "--output", "folder/", "--method.mode", "single")
    assert (code, err) == (0, "")
    (path,) = Path("folder").iterdir()
    assert list(ProposalStore(path)) == ["test_00000", "test_00001"]


def test_a_photo_more_is_computed_into_the_store(propose: Any, search: type[Search], drawn: Path) -> None:
    shutil.copytree(drawn, "photos", ignore=lambda folder, names: {"proposals"} & set(names))
    names = Path("photos/ImageSets/Main/train.txt")
    every = names.read_text()
    names.write_text("".join(every.splitlines(keepends=True)[:-1]))
    photos = ["--data", "VOC", "--data.path", "photos"]
    for output in ([], ["--output", "mine.proposals"]):
        assert propose(*photos, *output)[0] == 0
    names.write_text(every)
    before, search.calls = Path("mine.proposals").read_bytes(), 0
    code, out, err = propose(*photos)
    assert (code, err) == (0, "") and search.calls == 1
    assert "proposals of 5 images (4 of them are there already)" in out and "\n5 images, " in out
    assert [each.name[:6] for each in Path("photos/proposals").iterdir()] == ["train-"]
    code, _, err = propose(*photos, "--output", "mine.proposals")  # a file of the user's own
    assert code == 2 and "mine.proposals: these proposals do not fit" in err and "delete it and compute it again" in err
    assert Path("mine.proposals").read_bytes() == before and search.calls == 1


def write_config(**proposals: Any) -> list[str]:
    """A fit's config with these proposals; returns the option that names it."""
    data = {"class_path": "Shapes", "init_args": {"path": "shapes", **SIZES}}
    model = {"class_path": "FastRCNN", "init_args": {"proposals": proposals, "lr": 1}}
    Path("my.yaml").write_text(json.dumps({"model": model, "data": data}))
    return ["--config", "my.yaml"]


def test_a_fits_config_says_which_proposals(propose: Any, search: type[Search]) -> None:
    method = {"class_path": "SelectiveSearch", "init_args": {"mode": "quality", "max_boxes": 5}}
    config = write_config(method=method, path="kept", max_boxes=[3, 3])
    code, _, err = propose(*config, "--method.seed", "4")
    assert (code, err) == (0, "")
    settings = ProposalSettings(SelectiveSearch("quality", max_boxes=5, seed=4), "kept")
    assert [*Path("kept").iterdir()] == [settings.store_path(annotations(), "train")]
    code, _, err = propose(*config, "--method", "SlidingWindows", "--output", "other.proposals")
    assert code == 0 and ProposalStore("other.proposals").method.endswith(".SlidingWindows")
    config = write_config(method={"class_path": "SlidingWindows", "init_args": {"scales": [16, 32]}})
    code, _, err = propose(*config, "--output", "third.proposals")
    assert (code, err) == (0, "") and ProposalStore("third.proposals").parameters["scales"] == [16, 32]
    assert propose(*write_config(path="mine.proposals"))[0] == 0
    assert len(ProposalStore("mine.proposals")) == 5
    code, _, err = propose(*config, "--data.path", "elsewhere", "--data.num_train", "2", "--output", "two.proposals")
    assert (code, err) == (0, "") and len(ProposalStore("two.proposals")) == 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SelectiveSearch", {"min_side": 20, "resize_width": 40}),
        ("SelectiveSearch", {"min_side": 20.0, "parameters": {
            "colour_spaces": ["lab"], "ks": [50], "strategies": [["fill"]], "min_sizes": [20]}}),
        ("SlidingWindows", {"stride": 16, "scales": [16, 32.5]}),
    ],
)  # fmt: skip
def test_a_fit_looks_where_propose_wrote(propose: Any, name: str, options: dict[str, Any]) -> None:
    code, _, err = propose(*write_config(method={"class_path": name, "init_args": options}, path="kept"))
    assert (code, err) == (0, "")
    (path,) = Path("kept").iterdir()
    method = {"SelectiveSearch": SelectiveSearch, "SlidingWindows": SlidingWindows}[name](**options)
    assert ProposalSettings(method, "kept").store_path(annotations(), "train") == path


def test_real_selective_search(propose: Any) -> None:
    code, _, err = propose(*DATA, "--split", "test", "--output", "s.proposals")
    assert (code, err) == (0, "")
    store = ProposalStore("s.proposals")
    recall = tool.recall_of(store, annotations(split="test"), 5)
    own = {"colour_spaces": ["lab"], "ks": [100], "strategies": [["fill"]], "min_sizes": [20]}
    code, _, err = propose(*DATA, "--split", "test", "--output", "t.proposals", "--method.parameters", json.dumps(own))
    assert (code, err) == (0, "")
    own = ProposalStore("t.proposals").parameters["parameters"]
    assert own["ks"] == [100] and own["strategies"] == [["fill"]] and own["sigma"] == 0.8
    assert 0 < ProposalStore("t.proposals").counts.sum() < store.counts.sum()
    assert store.parameters["mode"] == "fast" and recall.recall_50[0] > 0.5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--split", "val"], "No data set given: add --data"),
        (
            ["--data", "Shape"],
            "there is no class Shape; one of your own is MODULE.CLASS, with --import MODULE; did you mean 'Shapes'?",
        ),
        (["--data", "VOC", "--data.path", "nowhere"], "nowhere"),
        (["nowhere", "--split", "val"], "nowhere"),
        ([*DATA, "--split", "all"], "split must be train, val or test, not all"),
        ([*DATA, "--spilt", "val"], "there is no option --spilt; did you mean --split?"),
        ([*DATA, "--method", "SelectiveSerch"], "did you mean 'SelectiveSearch'?"),
        ([*DATA, "--method.max_box", "4"], "max_box"),
        ([*DATA, "--method.max_boxes", "many"], "many"),
        ([*DATA, "--method.max_boxes", "0"], "max_boxes of selective search: 0 must be at least 1"),
        ([*DATA, "--workers", "0"], "workers must be at least 1"),
        ([*DATA, "--method.stride", "4"], "stride"),
        ([*DATA, "--method", "StoredRPN"], "method StoredRPN needs ckpt_path"),
        ([*DATA, "--method", "StoredRPN", "--ckpt_path", "no"], "no: no such checkpoint"),
        ([*DATA, "--ckpt_path", str(Path(__file__).parent)], "ckpt_path is for method StoredRPN"),
        ([*DATA, "--method", "StoredRPN", "--ckpt_path", "x", "--workers", "2"], "workers is not for StoredRPN"),
        ([*DATA, "--trainer.strategy", "ddp_spawn"], "trainer.strategy ddp_spawn is not for proposals; take ddp"),
        (["--config", "none.yaml"], "none.yaml: no such config file"),
        ([*DATA, "--output", "file/x"], "choose another folder"),
        ([*DATA, "--output", "other.proposals"], "holds proposals by x"),
        ([*DATA, "--output", "file"], "file: is no store of proposals"),
        (["--data", "ImageFolder", "--data.path", "shapes"], "ImageFolder has no train split with annotations"),
    ],
)
def test_what_the_user_can_mend(propose: Any, search: type[Search], args: list[str], message: str) -> None:
    Path("file").write_text("something")
    write_store("other.proposals", annotations().image_ids, [[]] * 5, (64, 64))
    code, _, err = propose(*args)
    assert code == 2 and message in err and err.startswith("detkit: ") and err.count("\n") <= 4


def test_help(propose: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for args, word in ((["--help"], "--method.help"), (["--data.help", "VOC"], "--data.path")):
        with pytest.raises(SystemExit) as stop:
            propose(*args)
        assert stop.value.code == 0 and word in capsys.readouterr().out


def test_unreadable_images_then_mended(propose: Any, search: type[Search], drawn: Path, tmp_path: Path) -> None:
    broken = drawn / "JPEGImages" / "train_00001.jpg"
    content = broken.read_bytes()
    try:
        broken.write_bytes(content[:99])
        code, _, err = propose(*DATA, "--output", "a.proposals")
        assert code == 2 and str(broken.name) in err and "All other proposals are kept" in err
        assert search.calls == 4 and not Path("a.proposals").exists()
    finally:
        broken.write_bytes(content)
    code, out, _ = propose(*DATA, "--output", "a.proposals")
    assert code == 0 and search.calls == 5 and "(4 of them are there already)" in out
    propose(*DATA, "--output", "b.proposals")
    assert_same("a", "b")


def test_interrupted_it_says_how_to_go_on(propose: Any, search: type[Search]) -> None:
    def interrupt(call: int) -> None:
        if call == 3:
            raise KeyboardInterrupt

    search.before = interrupt
    try:
        code, _, err = propose(*DATA, "--output", "a.proposals", "--workers", "1")
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has it ignored from then on
    assert code == 130 and "What is computed is kept: the same command goes on from there." in err
    search.before = lambda call: None
    code, out, _ = propose(*DATA, "--output", "a.proposals")
    assert code == 0 and search.calls == 5 and "(3 of them are there already)" in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_after_the_image_in_hand(propose: Any, search: type[Search], number: int, code: int) -> None:
    def kill(call: int) -> None:
        if call == 2:
            os.kill(os.getpid(), number)
            time.sleep(0.8)

    search.before = kill
    ended, _, err = propose(*DATA, "--output", "a.proposals", "--workers", "1")
    assert ended == code and "Stopped. What is computed is kept: the same command goes on from there.\n" in err
    assert search.calls == 3
    search.before = lambda call: None
    ended, out, _ = propose(*DATA, "--output", "a.proposals")
    assert ended == 0 and search.calls == 5 and "(3 of them are there already)" in out


def assert_same(one: str, other: str) -> None:
    first, second = (ProposalStore(f"{name}.proposals") for name in (one, other))
    assert [*first] == [*second] and all(np.array_equal(first[image_id], second[image_id]) for image_id in first)
    assert (first.method, first.parameters) == (second.method, second.parameters)


# -- recall --------------------------------------------------------------------------------------


def test_recall_is_that_of_the_evaluation_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Path) -> None:
    split = annotations(drawn)
    split.difficult[::3] = True
    random = np.random.default_rng(0)
    boxes = [np.sort(random.integers(0, 65, (n, 2, 2)), axis=1).reshape(-1, 4) for n in (0, 2000, 300, 9, 100)]
    store = write_store(tmp_path / "s", split.image_ids, boxes, (64, 64))

    def sides(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows[:, :2], rows[:, 2:] - rows[:, :2]], 1).astype(np.float64)

    expected = proposal_recall(
        sides(split.boxes),
        split.labels.astype(np.int32),
        split.offsets,
        sides(np.concatenate([*store.values()])),
        np.concatenate([[0], np.cumsum(store.counts)]),
        5,
        counts=(5000,),
        ignored=split.difficult,
    )
    # The store's images in another order, and more of them than the split has.
    order = [3, 0, 4, 2, 1]
    ids = ["z", *split.image_ids[order].tolist()]
    more = write_store(tmp_path / "t", ids, [[[0, 0, 9, 9]], *(boxes[row] for row in order)], (64, 64))
    for chunk in (1_000_000, 50, 1):
        monkeypatch.setattr(tool, "CHUNK", chunk)
        for each in (store, more):
            recall = tool.recall_of(each, split, 5)
            for name in ("recall_50", "recall_70", "mabo"):
                np.testing.assert_array_equal(getattr(recall, name), getattr(expected, name))
    assert 0 < recall.recall_70[0] < recall.recall_50[0] < 1
    split.difficult[:] = True
    assert tool.recall_of(store, split, 5) is None


# -- by a network --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Path:
    """A run's folder with the checkpoint of an untrained detector, and a config that names its data."""
    torch.manual_seed(0)
    names = list(SHAPE_CLASSES)
    options = {"class_names": names, "backbone": "tiny", "anchors__sizes": [[16.0, 32.0]], "optim__warmup_steps": 0}
    options |= {"features__fpn": False, "image__min_size": 64, "image__max_size": 96, "roi__head_channels": 16}
    model = construct(detkit.FasterRCNN, options)
    torch.nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.5)
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    trainer.fit(model, datamodule=Shapes(str(drawn), 5, 3, 2, 64, num_workers=0))
    folder = tmp_path_factory.mktemp("run") / "version_0"
    trainer.save_checkpoint(folder / "checkpoints" / "best.ckpt")
    data = {"class_path": "Shapes", "init_args": {"path": str(drawn), **SIZES, "num_workers": 0}}
    (folder / "config.yaml").write_text(json.dumps({"data": data}))
    return folder


def test_rpn(propose: Any, run: Path) -> None:
    args = f"--method StoredRPN --ckpt_path {run} --output a.proposals --trainer.accelerator cpu"
    code, out, err = propose(*args.split())
    assert (code, err) == (0, "") and "by StoredRPN (checkpoint " in out and "on cpu" in out
    store = ProposalStore("a.proposals")
    model, data = detkit.load(run), Shapes("shapes", 5, 3, 2, 64, transforms=[])
    for row in range(5):
        sample = data.dataset("train")[row]
        with torch.no_grad():
            encoded = model.encode([sample])
            (found,) = model.propose([sample], encoded)
        boxes = encoded.images.to_original(found.boxes, 0)
        ours = torch.from_numpy(store[sample["image_id"]])
        assert len(boxes) >= len(ours) > 50
        nearest = torch.cdist(ours, boxes, p=torch.inf).min(1).values
        assert nearest.max() <= 1 / 16 + 1e-4
        torch.testing.assert_close(ours[:20], boxes[:20], atol=1 / 16 + 1e-4, rtol=0)
    assert store.method.endswith(".StoredRPN") and store.parameters["max_boxes"] == 1000


def test_rpn_with_fewer_boxes_goes_on_after_a_stop(propose: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = [*f"--method StoredRPN --ckpt_path {run} --method.max_boxes 9 --data.num_workers 0".split(), *DATA]
    assert propose(*args, "--output", "at_once.proposals", "--trainer.accelerator", "cpu")[0] == 0
    assert ProposalStore("at_once.proposals").counts.tolist() == [9] * 5
    propose_boxes, calls = detkit.FasterRCNN.propose, []

    def fail_at_the_third(self: Any, batch: Any, encoded: Any) -> Any:
        calls.append(batch[0]["image_id"])
        if len(calls) == 3:
            raise RuntimeError("that was it")
        return propose_boxes(self, batch, encoded)

    monkeypatch.setattr(detkit.FasterRCNN, "propose", fail_at_the_third)
    with pytest.raises(RuntimeError, match="that was it"):
        propose(*args, "--output", "a.proposals", "--trainer.accelerator", "cpu")
    code, out, _ = propose(*args, "--output", "a.proposals", "--trainer.accelerator", "cpu")
    assert code == 0 and "(2 of them are there already)" in out and len(calls) == 3 + 3
    assert_same("a", "at_once")


def test_rpn_of_a_detector_without_one(propose: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "load", lambda path: torch.nn.Identity())
    code, _, err = propose("--method", "StoredRPN", "--ckpt_path", str(run))
    assert code == 2 and "has no region proposal network" in err


# -- several processes ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["SelectiveSearch", "StoredRPN"])
def test_two_processes_make_the_same_file(propose: Any, run: Path, method: str) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "LOCAL_RANK", "MASTER_PORT")}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    args = ["propose", *DATA, "--method", method, "--trainer.accelerator", "cpu", "--trainer.devices"]
    args[1:1] = ["--ckpt_path", str(run), "--method.max_boxes", "50"] if method == "StoredRPN" else []
    assert propose(*args[1:], "1", "--output", "one.proposals")[0] == 0
    command = [sys.executable, "-m", "detkit", *args, "2", "--trainer.strategy", "ddp", "--output", "two.proposals"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=550)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("5 images, ") == 1  # one process speaks
    assert_same("one", "two")
    assert sorted(os.listdir(".")) == ["one.proposals", "shapes", "two.proposals"]
