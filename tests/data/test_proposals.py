"""Proposals of a split: computed once, kept, found again, and carried by the samples."""

from __future__ import annotations

import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.data import COCO, VOC, Annotations, proposal_methods
from detkit.data.proposals import compute, default_store_path, finish, load_or_compute, plan
from detkit.data.voc_files import VOCObject
from detkit.errors import ConfigError, DataError
from detkit.proposals.store import ProposalStore
from detkit.proposals.store_format import Images
from detkit.proposals.store_journal import Journal, missing
from detkit.proposals.store_writer import write_store

NAMES = list("abcdefg")
#: Selective search's parameters, those that must be given.
OWN = {"colour_spaces": ["lab"], "ks": [50], "strategies": [["fill"]], "min_sizes": [20]}


class Stub:
    """Stands for selective search: random boxes of a seed, a log of what was asked for, and what shall happen."""

    def __init__(self) -> None:
        self.sums: list[int] = []
        self.before: Callable[[int], None] = lambda call: None

    def search(self, image: np.ndarray, mode: str = "fast", max_boxes: int | None = None, seed: int = 0) -> np.ndarray:
        self.before(len(self.sums))
        self.sums.append(int(image.sum()))
        random = np.random.default_rng((seed, int(image.sum())))
        height, width = image.shape[:2]
        corners = np.sort(random.random((random.integers(0, 5), 2, 2)) * [width, height], axis=1)
        return corners.reshape(-1, 4)[:max_boxes].astype(np.float32)

    @staticmethod
    def slide(size: tuple[int, int], stride: float = 0.5) -> np.ndarray:
        height, width = size
        return np.array([[0, 0, width * stride, height * stride]])


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    functions = {"selective_search": stub.search, "sliding_window": stub.slide}
    monkeypatch.setattr(proposal_methods, "function_of", lambda name: functions[name])
    return stub


@pytest.fixture
def voc(make_voc: Callable[..., Path]) -> Path:
    objects = {name: [VOCObject("cat", (1, 2, 20, 22), False)] for name in NAMES}
    return make_voc(objects, {"train": NAMES, "val": ["c"], "other": ["a"]})


@pytest.fixture
def annotations(voc: Path) -> Annotations:
    return VOC(str(voc), test=None).annotations("train")


def test_computed_once_then_found(annotations: Annotations, tmp_path: Path, stub: Stub, capsys: Any) -> None:
    path = tmp_path / "new" / "train.proposals"
    store = load_or_compute(annotations, path)
    said = capsys.readouterr().out
    assert "proposals of 7 images by selective_search (mode fast, seed 0)" in said and str(path) in said
    assert list(store) == NAMES and len(stub.sums) == 7
    assert store.parameters == {"mode": "fast", "max_boxes": None, "seed": 0}
    assert 0 in store.counts and store.counts.sum() > 3  # none at all is an answer, too
    again = load_or_compute(annotations, path, options={"seed": 0})
    assert len(stub.sums) == 7 and capsys.readouterr().out == "" and again.path == path
    assert [p.name for p in path.parent.iterdir()] == ["train.proposals"]


def test_neither_threads_nor_the_rest_of_the_split_change_the_boxes(
    voc: Path, annotations: Annotations, tmp_path: Path, stub: Stub
) -> None:
    random = np.random.default_rng()
    stub.before = lambda call: time.sleep(random.random() / 50)
    for workers in (1, 2, 5):
        load_or_compute(annotations, tmp_path / str(workers), workers=workers, progress=False)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == (tmp_path / "5").read_bytes()
    store = ProposalStore.open(tmp_path / "1")
    alone = load_or_compute(VOC(str(voc), test=None).annotations("val"), tmp_path / "val", progress=False)
    np.testing.assert_array_equal(alone["c"], store["c"])
    other = load_or_compute(annotations, tmp_path / "seed", options={"seed": 1}, progress=False)
    assert any(not np.array_equal(other[name], store[name]) for name in NAMES)


def test_sliding_windows_read_no_image(annotations: Annotations, tmp_path: Path, stub: Stub) -> None:
    (Path(annotations.path(3))).unlink()
    store = load_or_compute(annotations, tmp_path / "s", method="sliding_window", options={"stride": 0.25})
    assert [store[name].tolist() for name in NAMES] == [[[0, 0, 10, 7.5]]] * 7


def test_what_cannot_be_read_is_told_after_all_else_is_kept(
    annotations: Annotations, tmp_path: Path, stub: Stub
) -> None:
    kept = {index: Path(annotations.path(index)).read_bytes() for index in (2, 5)}
    Path(annotations.path(2)).unlink()
    Path(annotations.path(5)).write_bytes(kept[5][:60])
    path = tmp_path / "s"
    with pytest.raises(DataError) as error:
        load_or_compute(annotations, path)
    assert re.search(
        r"c\.png: image file does not exist\nSo it is with 1 more.*\nAll other proposals are kept", str(error.value)
    )
    assert len(stub.sums) == 5 and not path.exists()
    for index, content in kept.items():
        Path(annotations.path(index)).write_bytes(content)
    load_or_compute(annotations, path)
    assert len(stub.sums) == 7
    load_or_compute(annotations, tmp_path / "at_once")
    assert path.read_bytes() == (tmp_path / "at_once").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_stopped_it_goes_on(annotations: Annotations, tmp_path: Path, stub: Stub, error: type, capsys: Any) -> None:
    def fail(call: int) -> None:
        if call == 4:
            raise error("that was it")

    stub.before = fail
    with pytest.raises(error, match="that was it") as caught:
        load_or_compute(annotations, tmp_path / "s", workers=1)
    if error is RuntimeError:
        assert "e.png" in caught.value.__notes__[0]
    stub.before = lambda call: None
    capsys.readouterr()
    load_or_compute(annotations, tmp_path / "s", workers=1)
    assert "7 images (4 of them are there already)" in capsys.readouterr().out
    assert len(stub.sums) == len(set(stub.sums)) == 7


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_killed_it_goes_on_and_computes_nothing_twice(annotations: Annotations, tmp_path: Path, stub: Stub) -> None:
    context = multiprocessing.get_context("fork")
    computed, hanging, path = context.Value("i", 0), context.Value("i", 0), tmp_path / "s"

    def hang_at_the_third(call: int) -> None:
        with computed.get_lock(), hanging.get_lock():
            hangs = call >= 2
            hanging.value += hangs
            computed.value += not hangs
        if hangs:
            time.sleep(600)

    def kept() -> int:
        job = plan(annotations, path, "selective_search", proposal_methods.resolve_options("selective_search"))
        return 7 - len(missing(job))

    stub.before = hang_at_the_third
    for _ in range(2):
        hanging.value = 0
        process = context.Process(target=load_or_compute, args=(annotations, path), kwargs={"workers": 2})
        process.start()
        until = time.monotonic() + 60
        while (hanging.value < 2 or kept() < computed.value) and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
        process.join(20)
    before = computed.value
    assert 4 <= before < 7 and kept() == before and not path.exists()
    stub.before = lambda call: None
    load_or_compute(annotations, path)
    assert len(stub.sums) == 7 - before
    load_or_compute(annotations, tmp_path / "at_once")
    assert path.read_bytes() == (tmp_path / "at_once").read_bytes()


def test_two_at_once_compute_it_once(annotations: Annotations, tmp_path: Path, stub: Stub, capsys: Any) -> None:
    stub.before = lambda call: time.sleep(0.05)
    found: list[ProposalStore] = []
    threads = [
        threading.Thread(target=lambda: found.append(load_or_compute(annotations, tmp_path / "s", workers=1)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 2 and len(stub.sums) == 7 and not list(tmp_path.glob(".s*"))
    assert capsys.readouterr().out.count("waiting for it") == 1


def test_killed_after_the_store_was_made(annotations: Annotations, tmp_path: Path, stub: Stub) -> None:
    load_or_compute(annotations, tmp_path / "s")
    for rank in (0, 3):
        (tmp_path / f".s.part{rank}").write_bytes(b"what was merged")
    load_or_compute(annotations, tmp_path / "s")
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["s"] and len(stub.sums) == 7


def test_stores_that_do_not_fit(voc: Path, annotations: Annotations, tmp_path: Path, stub: Stub) -> None:
    path = tmp_path / "s"
    load_or_compute(VOC(str(voc), test=None).annotations("val"), path)
    with pytest.raises(DataError, match=r"7 images: 6 have none, 0 are of another size .* 0 of the store's 1 images"):
        load_or_compute(annotations, path)
    path.unlink()
    load_or_compute(annotations, path)
    with pytest.raises(
        DataError, match=r"by selective_search \(.*mode fast.*\); asked for is .*\(.*mode quality.*Delete it"
    ):
        load_or_compute(annotations, path, options={"mode": "quality"})
    with pytest.raises(DataError, match=r"asked for is sliding_window"):
        load_or_compute(annotations, path, method="sliding_window")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged at image"):
        load_or_compute(annotations, path)
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="cut short"):
        load_or_compute(annotations, path)


def test_options_that_are_none(annotations: Annotations, tmp_path: Path, stub: Stub) -> None:
    with pytest.raises(ConfigError, match="has no option mod; it has mode, max_boxes, seed"):
        load_or_compute(annotations, tmp_path / "s", options={"mod": "fast"})
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        load_or_compute(annotations, tmp_path / "s", workers=0)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("selective_search", {"mode": "slow"}, "unknown mode 'slow'; use one of single, fast, quality"),
        ("selective_search", {"mode": object()}, "mode must be a word"),
        ("selective_search", {"parameters": "matlab"}, "unknown parameters 'matlab'; use one of opencv, paper"),
        ("selective_search", {"parameters": {"ks": [1]}}, "colour_spaces, ks, strategies, min_sizes are needed"),
        ("selective_search", {"parameters": {"hue": 1}}, "parameters of your own are colour_spaces.* given are hue"),
        ("selective_search", {"parameters": OWN | {"ks": [0]}}, "ks must be above 0"),
        ("selective_search", {"parameters": OWN | {"ks": [1, 2]}}, "as many min_sizes as ks"),
        ("selective_search", {"seed": None}, "seed must be a whole number, not None"),
        ("selective_search", {"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ("selective_search", {"seed": -1}, "seed must be 0 or more, not -1"),
        ("selective_search", {"max_boxes": 0}, "max_boxes must be 1 or more"),
        ("selective_search", {"resize_width": True}, "resize_width must be a whole number or null, not True"),
        ("selective_search", {"min_side": -2}, "min_side must be 0 or more"),
        ("sliding_window", {"stride": 0}, "stride must be above 0"),
        ("sliding_window", {"scales": []}, "scales must be above 0, and one at least"),
        ("sliding_window", {"ratios": [1, -1]}, "ratios must be above 0"),
        ("sliding_window", {"scales": 32}, "scales must be a list, not 32"),
    ],
)
def test_values_that_cannot_be(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"{method}.*{message}"):
        proposal_methods.resolve_options(method, options)


@pytest.mark.parametrize(
    ("method", "one", "other"),
    [
        ("selective_search", {"min_side": 20, "seed": 3.0}, {"min_side": 20.0, "seed": 3}),
        ("selective_search", {"parameters": OWN}, {"parameters": OWN | {"ks": [50.0], "sigma": 0.8, "min_side": 0.0}}),
        ("selective_search", {}, {"mode": "fast", "parameters": "opencv", "max_boxes": None}),
        ("sliding_window", {"scales": [16, 32], "stride": 8}, {"scales": (16.0, np.float64(32)), "stride": 8.0}),
    ],
)
def test_the_same_options_written_otherwise_have_the_same_store(
    annotations: Annotations, method: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert default_store_path(annotations, "train", method, one) == default_store_path(
        annotations, "train", method, other
    )
    assert default_store_path(annotations, "train", method, one) != default_store_path(
        annotations, "train", method, one | {"seed": 9} if method == "selective_search" else {"scales": [16, 33]}
    )
    once = proposal_methods.resolve_options(method, one)
    assert proposal_methods.resolve_options(method, once) == once


def test_an_unknown_method(annotations: Annotations, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no method 'edges' of proposals; there are selective_search"):
        load_or_compute(annotations, tmp_path / "s", method="edges")


# -- where they are kept -------------------------------------------------------------------------


def test_default_place(
    voc: Path, annotations: Annotations, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = default_store_path(annotations, "train")
    assert place.parent == voc / "proposals"
    assert re.fullmatch(r"train-selective_search-[0-9a-f]{8}\.proposals", place.name)
    assert default_store_path(annotations, "train", options={"mode": "fast"}) == place
    others = {default_store_path(annotations, *which) for which in (
        ("val",), ("train", "sliding_window"), ("train", "selective_search", {"mode": "quality"}), ("train", "rpn", {}),
    )}  # fmt: skip
    assert len(others | {place}) == 5
    assert default_store_path(annotations, "train", folder=tmp_path / "x") == tmp_path / "x" / place.name
    monkeypatch.setattr("os.access", lambda path, mode: False)
    elsewhere = default_store_path(annotations, "train")
    assert re.fullmatch(r"data/proposals/voc-[0-9a-f]{8}", str(elsewhere.parent)) and elsewhere.name == place.name


@pytest.mark.parametrize("there", ["{}", ".{}.part3"])
def test_what_is_in_a_read_only_folder_is_used(annotations: Annotations, voc: Path, stub: Stub, there: str) -> None:
    folder = voc / "proposals"
    folder.mkdir()
    place = default_store_path(annotations, "train")
    (folder / there.format(place.name)).write_bytes(b"")
    folder.chmod(0o555)
    try:
        assert default_store_path(annotations, "train") == place
        assert default_store_path(annotations, "train", options={"seed": 1}).parent != folder
    finally:
        folder.chmod(0o755)


def test_images_that_other_processes_kept_elsewhere(annotations: Annotations, tmp_path: Path, stub: Stub) -> None:
    job = plan(annotations, tmp_path / "own" / "s", "selective_search", {})
    with Journal(job) as journal:
        compute(annotations, journal, [0, 2, 4, 6], workers=1, progress=False)
    with pytest.raises(DataError, match=r"own: the proposals of 3 of 7 images.*All 2 processes.*--output"):
        finish(annotations, job, processes=2)
    assert job.parts()


def test_default_place_of_coco_is_beside_the_images(
    tmp_path: Path, write_image: Callable[..., Path], stub: Stub
) -> None:
    import json

    write_image(tmp_path / "coco" / "train" / "1.png")
    content = {
        "images": [{"id": 7, "file_name": "1.png", "width": 40, "height": 30}],
        "annotations": [],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "coco" / "train.json").write_text(json.dumps(content))
    data = COCO(str(tmp_path / "coco"), "train.json", "train", None, None)
    path = default_store_path(data.annotations("train"), "train")
    assert path.parent == tmp_path / "coco" / "proposals"
    store = load_or_compute(data.annotations("train"), path)
    assert list(store) == [7] and store[7].shape[1] == 4


# -- the samples ---------------------------------------------------------------------------------


def stores(path: Path, names: list[str]) -> ProposalStore:
    boxes = [[[0, 0, ord(name) - 90, 9], [1, 2, 20, 22]] for name in names]
    write_store(path, Images.of(names, [40] * len(names), [30] * len(names)), boxes, "x", {})
    return ProposalStore.open(path)


def test_samples_carry_their_proposals(voc: Path, tmp_path: Path) -> None:
    train, val = stores(tmp_path / "train", NAMES), stores(tmp_path / "val", ["c"])
    data = VOC(str(voc), test=None, num_workers=2, batch_size=4, transforms=[])
    before = data.dataset("train")
    assert "proposals" not in before[0]
    data.use_proposals({"train": train, "val": val})
    assert before[0]["proposals"].tolist() == [[0, 0, 7, 9], [1, 2, 20, 22]]
    data.setup("fit")
    seen = {}
    for sample in [sample for batch in data.train_dataloader() for sample in batch]:
        assert sample["proposals"].dtype == torch.float32
        seen[sample["image_id"]] = sample["proposals"][0, 2].item()
    assert seen == {name: ord(name) - 90 for name in NAMES}
    for split in ("val", "test"):  # test reads val's images, so it has val's proposals
        assert data.dataset(split)[0]["proposals"][0].tolist() == [0, 0, 9, 9]


def test_stores_of_another_split_are_refused(voc: Path, tmp_path: Path) -> None:
    val = stores(tmp_path / "val", ["c"])
    data = VOC(str(voc), test=None)
    data.use_proposals({"train": val})
    with pytest.raises(DataError, match="7 images: 6 have none"):
        data.setup("fit")
    data = VOC(str(voc), test=None)
    data.dataset("train")
    good = {"c": np.zeros((0, 4))}
    data.use_proposals({"val": good})
    with pytest.raises(DataError, match="7 images: 6 have none"):
        data.use_proposals({"val": val, "train": val})
    assert data.proposals == {"val": good}  # none of those that were refused together stays
    assert "proposals" not in data.dataset("train")[0]
    with pytest.raises(ConfigError, match="proposals for trian: the splits are train, val and test"):
        data.use_proposals({"trian": val})
    data = VOC(str(voc), test=None)
    data.use_proposals({"train": {"c": np.zeros((0, 4))}})
    assert data.dataset("train")[2]["proposals"].shape == (0, 4)
    with pytest.raises(DataError, match="image 'a' has no proposals: they are of another data set or split"):
        data.dataset("train")[0]


def test_proposals_are_clipped_where_the_image_is_smaller_than_its_annotation(
    voc: Path, write_image: Callable[..., Path], stub: Stub, tmp_path: Path
) -> None:
    write_image(voc / "JPEGImages" / "a.png", 30, 18)
    data = VOC(str(voc), test=None, transforms=[])
    data.use_proposals({"train": load_or_compute(data.annotations("train"), tmp_path / "s", method="sliding_window",
                                                 options={"stride": 1.0})})  # fmt: skip
    with pytest.warns(UserWarning, match="its annotation says 40 x 30"):
        assert data.dataset("train")[0]["proposals"].tolist() == [[0, 0, 30, 18]]
    data.use_proposals({"train": {"a": np.array([[31, 0, 40, 9], [20, 5, 40, 30]])}})
    with pytest.warns(UserWarning, match="its annotation says 40 x 30"):
        assert data.dataset("train")[0]["proposals"].tolist() == [[20, 5, 30, 18]]
