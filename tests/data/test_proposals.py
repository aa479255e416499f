"""The samples of a data set carry the proposals that it is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.data import VOC
from detkit.data.voc_xml import VOCObject
from detkit.errors import ConfigError, DataError
from detkit.proposals import ProposalStore
from tests.proposals.stores import write_store

NAMES = list("abcdefg")


@pytest.fixture
def voc(make_voc: Callable[..., Path]) -> Path:
    objects = {name: [VOCObject("cat", (1, 2, 20, 22), False)] for name in NAMES}
    return make_voc(objects, {"train": NAMES, "val": ["c"], "other": ["a"]})


def stores(path: Path, names: list[str]) -> ProposalStore:
    return write_store(path, names, [[[0, 0, ord(name) - 90, 9], [1, 2, 20, 22]] for name in names])


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


def test_proposals_are_clipped_where_the_image_was_changed(voc: Path, write_image: Callable[..., Path]) -> None:
    data = VOC(str(voc), test=None, transforms=[])
    data.use_proposals({"train": {"a": np.array([[31, 0, 40, 9], [20, 5, 40, 30], [0, 0, 40, 30]])}})
    data.annotations("train")
    write_image(voc / "JPEGImages" / "a.png", 30, 18)
    with pytest.warns(UserWarning, match="its annotation says 40 x 30"):
        assert data.dataset("train")[0]["proposals"].tolist() == [[20, 5, 30, 18], [0, 0, 30, 18]]
