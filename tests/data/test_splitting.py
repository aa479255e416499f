"""Dividing data sets that have no split."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detkit.data import VOC
from detkit.data.splitting import check_shares, duplicate_groups, groups_of, split_groups
from detkit.data.voc_xml import VOCObject, format_annotation
from detkit.errors import ConfigError, DataError


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(0, 9))
def test_groups_are_never_divided_and_every_image_is_in_one_part(groups: list[int], seed: int) -> None:
    parts = split_groups(np.array(groups), (0.8, 0.1, 0.1), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    in_parts = [{groups[index] for index in part} for part in parts]
    assert sum(map(len, in_parts)) == len(set(groups))


@given(st.integers(10, 300), st.integers(0, 9))
def test_shares_are_met_where_no_images_are_alike(count: int, seed: int) -> None:
    sizes = [len(part) for part in split_groups(np.arange(count), (0.8, 0.1, 0.1), seed)]
    assert np.abs(np.array(sizes) - count * np.array([0.8, 0.1, 0.1])).max() <= 1


def test_a_seed_gives_the_same_parts_and_another_one_others() -> None:
    first, again, other = (split_groups(np.arange(100), (0.5, 0.5, 0), seed)[0].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_the_same_picture_in_another_file_is_alike(tmp_path: Path) -> None:
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)).resize((600, 400))
        for seed in range(4)
    ]
    paths = [tmp_path / f"{number}.png" for number in range(4)] + [tmp_path / "again.jpg", tmp_path / "copy.png"]
    for picture, path in zip([*pictures, pictures[2], pictures[0]], paths, strict=True):
        picture.save(path)
    groups = duplicate_groups([str(path) for path in paths])
    assert groups[2] == groups[4] and groups[0] == groups[5] and len(set(groups.tolist())) == 4


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**12 - 1)), max_size=40))
def test_groups_are_connected_by_equal_digests_and_near_looks(rows: list[tuple[int, int]]) -> None:
    digests = [bytes([digest]) for digest, _ in rows]
    groups = groups_of(digests, np.array([look for _, look in rows], np.uint64)).tolist()
    expected = list(range(len(rows)))
    for i, (digest, look) in enumerate(rows):
        for j, (other, another) in enumerate(rows[:i]):
            if digest == other or (look ^ another).bit_count() <= 4:
                low, high = sorted((expected[i], expected[j]))
                expected = [low if group == high else group for group in expected]
    assert [groups.index(group) for group in groups] == [expected.index(group) for group in expected]


def test_many_images_of_one_hash_take_little_memory() -> None:
    digests = [str(number).encode() for number in range(2000)]
    tracemalloc.start()
    groups = groups_of(digests, np.zeros(len(digests), np.uint64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not groups.any() and peak < 10e6  # of pairs: 400 MB


@pytest.mark.parametrize("shares", [[0.8, 0.1], [0.8, 0.1, 0.2], [1.2, -0.1, -0.1], [0, 0.5, 0.5]])
def test_bad_shares(shares: list[float]) -> None:
    with pytest.raises(ConfigError, match="must be the shares of train, val and test"):
        check_shares(shares)


@pytest.fixture
def ten(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    """A folder of ten images and their XML files, as labelImg writes them."""
    for number in range(10):
        image = write_image(tmp_path / "photos" / f"day{number % 2}" / f"{number}.png", seed=number)
        text = format_annotation(image.name, 40, 30, [VOCObject("cat", (1, 2, 20, 22), False)])
        image.with_suffix(".xml").write_text(text)
    return tmp_path / "photos"


def names(data: VOC, split: str) -> list[str]:
    return [Path(file).stem for file in data.annotations(split).files]


def test_sets_are_lists_folders_and_patterns(ten: Path) -> None:
    data = VOC(str(ten), sets={"train": "day0", "val": ["day1/1.png", "day1/3"], "test": ["day1/[57].*"]})
    assert [names(data, split) for split in ("train", "val", "test")] == [list("02468"), list("13"), list("57")]
    assert "1 images are in none of the sets" in str(data.annotations("train").findings[0])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"train": ["day0"], "val": ["day0/2.png"]}, r"day0/2\.png is in train and in val"),
        ({"train": ["day3"]}, "train: 'day3' names no image of"),
        ({"trian": ["day0"]}, "sets are lists called train, val and test, not 'trian'"),
    ],
)
def test_bad_sets(ten: Path, sets: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        VOC(str(ten), sets=sets).annotations("train")


def test_names_with_the_folder_numbers_and_text_files(ten: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes("day1/1.png\r\nday1\\3.png\r\n\r\n".encode("utf-16"))
    sets = {"train": [f"{ten.name}/day0"], "valid": str(names), "test": ["./day1/5.png", "day1/7"]}
    data = VOC(str(ten), sets=sets)
    assert [len(data.annotations(split)) for split in ("train", "val", "test")] == [5, 2, 2]
    names.write_text("day1/11.png")
    with pytest.raises(DataError, match=r"names\.txt: 'day1/11\.png' names no image of the data set"):
        VOC(str(ten), sets=sets).annotations("train")


def test_a_text_file_in_the_data_set_comes_first(ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val.txt").write_text("day1/1.png")
    sets = {"train": "day0", "val": "val.txt"}
    assert names(VOC(str(ten), sets=sets), "val") == ["1"]
    (ten / "val.txt").write_text("day1/3.png\n")
    assert names(VOC(str(ten), sets=sets), "val") == ["3"]


def test_sets_for_a_data_set_that_has_its_own_are_refused(two_cats: Path) -> None:
    with pytest.raises(ConfigError, match=r"sets: the data set has sets of its own \(train, val, test\)"):
        VOC(str(two_cats), sets={"train": ["a"]}).annotations("train")


def test_a_file_of_sets_beside_the_data_is_used(ten: Path) -> None:
    (ten / "split.json").write_text('{"train": ["day1"], "val": ["day0"]}')
    data = VOC(str(ten))
    assert (names(data, "train"), names(data, "val")) == (list("13579"), list("02468"))
    assert data.test_split == "val" and data.annotations("test") is data.annotations("val")
    (ten / "split.json").write_text('{"train": 3}')
    with pytest.raises(DataError, match=r"split\.json: .*lists called train, val and test"):
        VOC(str(ten)).annotations("train")


def test_the_division_is_the_same_when_it_is_read_again(ten: Path) -> None:
    first = VOC(str(ten), split_seed=3)
    division = first.division()
    assert {split: len(files) for split, files in division.items()} == {"train": 8, "val": 1, "test": 1}
    again = VOC(str(ten), sets=division)
    assert all(names(first, split) == names(again, split) for split in division)
    assert VOC(str(ten), split_seed=4).division() != division


@pytest.mark.parametrize(("different", "empty"), [(1, ["val", "test"]), (2, ["test"]), (10, [])])
def test_a_set_without_images_is_told(
    tmp_path: Path, write_image: Callable[..., Path], different: int, empty: list
) -> None:
    for number in range(10):
        image = write_image(tmp_path / f"{number}.png", seed=number % different)
        image.with_suffix(".xml").write_text(
            format_annotation(image.name, 40, 30, [VOCObject("cat", (1, 2, 20, 22), False)])
        )
    data = VOC(str(tmp_path), split=[0.6, 0.2, 0.2])
    told = [finding.message for finding in data.annotations("train").findings if finding.kind == "empty_set"]
    assert [text.partition(" gets no image: 10 images, of which ")[0] for text in told] == empty
    assert all(text in str(data.summary()) for text in told)
