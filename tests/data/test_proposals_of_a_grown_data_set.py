"""Images that are added to a data set are computed into its store of proposals, which keeps what it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data import VOC, proposal_methods
from detkit.data.proposals import default_store_path, load_or_compute, plan
from detkit.data.voc_files import VOCObject
from detkit.detectors.proposal_source import ProposalSource
from detkit.errors import DataError
from detkit.proposals.store import ProposalStore
from detkit.proposals.store_extension import extended
from detkit.proposals.store_format import Images
from detkit.proposals.store_journal import Journal
from detkit.proposals.store_writer import write_store


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each search; no two searches find the same boxes, so a second one of an image would show."""
    calls: list[int] = []

    def search(image: np.ndarray, mode: str = "fast", seed: int = 0) -> np.ndarray:
        calls.append(seed)
        return np.array([[0, 0, 1 + len(calls), 20], [1, 1, 5, 5]], np.float32)

    monkeypatch.setattr(proposal_methods, "function_of", lambda name: search)
    return calls


@pytest.fixture
def voc(make_voc: Callable[..., Path]) -> Path:
    objects = {name: [VOCObject("cat", (1, 2, 20, 22), False)] for name in "abcd"}
    return make_voc(objects, {"train": list("bc")})


def of(voc: Path, names: str) -> Any:
    (voc / "ImageSets/Main/train.txt").write_text("\n".join(names) + "\n")
    return VOC(str(voc), val=None, test=None).annotations("train")


def test_added_images_are_computed_and_the_others_kept(voc: Path, calls: list[int], capsys: Any) -> None:
    annotations = of(voc, "bc")
    path = default_store_path(annotations, "train")
    before = dict(load_or_compute(annotations, path, workers=1))
    assert len(calls) == 2
    capsys.readouterr()
    grown = of(voc, "abcd")
    store = load_or_compute(grown, path, workers=1)
    assert "proposals of 4 images (2 of them are there already)" in capsys.readouterr().out
    assert list(store) == list("abcd") and len(calls) == 4
    assert all(np.array_equal(store[name], before[name]) for name in "bc")
    assert store["a"][0].tolist() == [0, 0, 4, 20] and store["d"][0].tolist() == [0, 0, 5, 20]
    store.verify()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    load_or_compute(grown, path)
    assert len(calls) == 4


def test_images_that_were_taken_out_stay_in_the_store(voc: Path, calls: list[int]) -> None:
    path = default_store_path(of(voc, "abc"), "train")
    load_or_compute(of(voc, "abc"), path)
    assert list(load_or_compute(of(voc, "bd"), path)) == ["b", "d", "a", "c"] and len(calls) == 4
    load_or_compute(of(voc, "abcd"), path)
    assert len(calls) == 4


def test_a_stop_half_way_harms_nothing(voc: Path, calls: list[int]) -> None:
    path = default_store_path(of(voc, "bc"), "train")
    load_or_compute(of(voc, "bc"), path)
    content = path.read_bytes()
    computation = plan(of(voc, "abcd"), path, "selective_search", {"mode": "fast", "seed": 0})
    with Journal(computation) as journal:
        assert journal.todo() == [0, 3]
        journal.append(3, [[0, 0, 7, 7]], (40, 30))
        # Meanwhile a run on the shorter list finds its store, and leaves the work of the other alone.
        load_or_compute(of(voc, "bc"), path)
        assert path.read_bytes() == content and computation.parts() == [journal.path]
    store = load_or_compute(of(voc, "abcd"), path)
    assert len(calls) == 3 and store["d"].tolist() == [[0, 0, 7, 7]]


def test_a_store_that_the_user_named_is_left_alone(voc: Path, calls: list[int], tmp_path: Path) -> None:
    path = tmp_path / "mine.proposals"
    content = load_or_compute(of(voc, "bc"), path).path.read_bytes()
    with pytest.raises(DataError, match=r"mine\.proposals.*1 have none.*if the data set has changed, delete it"):
        load_or_compute(of(voc, "abc"), path)
    assert path.read_bytes() == content and len(calls) == 2


@pytest.mark.parametrize(
    ("ids", "widths", "whole"),
    [
        (["c", "a"], [50, 40], ["c", "a", "b"]),
        (["a", "b"], [40, 40], None),  # nothing is missing
        (["c", "d"], [40, 40], None),  # nothing is common
        (["a", "c"], [41, 40], None),  # another size
        (["a", "c"], [40, 9000], None),  # too large for eighths of a pixel
        (["a", "c"], [40, 90000], None),
        ([1, 2], [40, 40], None),
    ],
)
def test_which_stores_can_be_made_whole(ids: list[Any], widths: list[int], whole: Any, tmp_path: Path) -> None:
    write_store(tmp_path / "s", Images.of(["a", "b"], [40, 40], [30, 30]), [[], []], "x", {})
    found = extended(ProposalStore.open(tmp_path / "s"), Images.of(ids, widths, [30, 30]))
    assert (found and found.ids.tolist()) == whole
    assert whole is None or found.widths.tolist() == [50, 40, 40]


def test_a_fit_makes_its_own_store_whole(voc: Path, calls: list[int], tmp_path: Path) -> None:
    source = ProposalSource("selective_search", "fast", None, None)
    source.compute(of(voc, "bc"), "train")
    source.compute(of(voc, "abc"), "train")
    assert list(source.open(of(voc, "abc"), "train")) == list("abc") and len(calls) == 3
    folder = ProposalSource("selective_search", "fast", None, str(tmp_path / "elsewhere"))
    folder.compute(of(voc, "bc"), "train")
    with pytest.raises(DataError, match="1 have none"):  # another data set of the user's may keep its stores there
        folder.compute(of(voc, "abc"), "train")
