from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detkit
from detkit.data import VOC
from detkit.data.loaders import init_worker
from detkit.data.voc_xml import VOCObject
from detkit.errors import ConfigError, DataError

FLIP = {"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 0.5}}
KINDS = {
    "image": torch.uint8,
    "boxes": torch.float32,
    "labels": torch.int64,
    "difficult": torch.bool,
    "crowd": torch.bool,
    "area": torch.float32,
}


@pytest.fixture
def folder(make_voc: Callable[..., Path]) -> Path:
    """Nine images; image i has i % 3 objects."""
    names = [f"i{number}" for number in range(9)]
    images = {name: [VOCObject("cat", (1, 2, 20, 22), False)] * (i % 3) for i, name in enumerate(names)}
    return make_voc(images, {"train": names, "val": names[:5], "test": names[:3]})


def content(data: VOC, epoch: int = 0) -> list[tuple[str, bytes, bytes]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [(s["image_id"], s["image"].numpy().tobytes(), s["boxes"].numpy().tobytes()) for b in loader for s in b]


def test_samples_have_the_full_schema(folder: Path) -> None:
    data = VOC(str(folder), batch_size=4, eval_batch_size=3, num_workers=0)
    data.setup("fit")
    train, val = list(data.train_dataloader()), list(data.val_dataloader())
    assert [len(batch) for batch in train] == [4, 4, 1] and [len(batch) for batch in val] == [3, 2]
    for sample in [sample for batch in train + val for sample in batch]:
        assert all(sample[name].dtype == kind for name, kind in KINDS.items())
        count = int(sample["image_id"][1:]) % 3
        assert sample["boxes"].shape == (count, 4) and sample["image"].shape == (3, 30, 40)
        assert all(len(sample[name]) == count for name in ("labels", "difficult", "crowd", "area"))
        assert sample["image"].is_contiguous()
    assert [sample["image_id"] for batch in val for sample in batch] == [f"i{n}" for n in range(5)]
    assert isinstance(next(iter(data.predict_dataloader())), list)


@pytest.mark.parametrize("transforms", [None, [FLIP]])
def test_augmentation_does_not_depend_on_workers(folder: Path, transforms: list | None) -> None:
    options: dict[str, Any] = {"batch_size": 2, "transforms": transforms, "seed": 5}
    alone = VOC(str(folder), num_workers=0, **options)
    several = VOC(str(folder), num_workers=2, **options)
    epochs = [content(alone, epoch) for epoch in range(3)]
    assert epochs == [content(several, epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) != sorted(epochs[1])
    # Some images are flipped and some are not, within an epoch and from one to the next.
    plain = {name: pixels for name, pixels, _ in content(VOC(str(folder), num_workers=0, transforms=[]))}
    flipped = [[pixels != plain[name] for name, pixels, _ in epoch] for epoch in epochs]
    assert 0 < np.sum(flipped) < np.size(flipped)


@pytest.mark.slow
def test_workers_that_are_started_anew_give_the_same(folder: Path) -> None:
    """As Windows and macOS start them: nothing is inherited, so all that a worker needs has to be sent to it."""
    data = VOC(str(folder), batch_size=2, num_workers=1, transforms=[FLIP], seed=5)
    expected = content(data)
    loader = data.train_dataloader()
    loader.multiprocessing_context = "spawn"
    found = [(s["image_id"], s["image"].numpy().tobytes(), s["boxes"].numpy().tobytes()) for b in loader for s in b]
    assert found == expected


def test_workers_keep_to_one_thread_and_persist(folder: Path) -> None:
    data = VOC(str(folder), num_workers=1)
    loader = data.train_dataloader()
    assert loader.persistent_workers and loader.worker_init_fn is init_worker
    assert not VOC(str(folder), num_workers=0).train_dataloader().persistent_workers


def test_grouped_batches(make_voc: Callable[..., Path]) -> None:
    path = make_voc({f"w{i}": [] for i in range(4)}, {}, size=(40, 30))
    make_voc({f"t{i}": [] for i in range(4)}, {}, size=(30, 40))
    names = [f"{kind}{i}" for i in range(4) for kind in "wt"]
    (path / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names))
    data = VOC(str(path), val=None, test=None, num_workers=0, group_by_aspect=True, class_names=["cat"])
    for batch in data.train_dataloader():
        assert len({sample["image_id"][0] for sample in batch}) == 1


def test_broken_image_stops_the_run_by_name(folder: Path) -> None:
    (folder / "JPEGImages" / "i4.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"i4\.png"):
        VOC(str(folder), num_workers=0).setup("fit")


def test_image_changed_while_it_is_used_is_warned_of_and_boxes_are_clipped(folder: Path) -> None:
    dataset = VOC(str(folder), num_workers=0).dataset("val")
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(folder / "JPEGImages" / "i1.png")
    with pytest.warns(UserWarning, match=r"i1\.png: image is 12 x 10, its annotation says 40 x 30"):
        sample = dataset[1]
    assert sample["boxes"].tolist() == [[1, 2, 12, 10]]


def test_a_wrong_size_in_the_annotation_changes_no_box(folder: Path) -> None:
    file = folder / "Annotations" / "i1.xml"
    file.write_text(file.read_text().replace("<width>40<", "<width>12<"))
    train = VOC(str(folder), num_workers=0).annotations("val")
    assert train.widths[1] == 40 and train.fields(1)["boxes"].tolist() == [[1, 2, 20, 22]]
    assert [(each.kind, Path(each.file).name) for each in train.findings] == [("other_size", "i1.xml")]


def test_exif_follows_the_annotation(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "JPEGImages" / "i1.png", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert VOC(str(folder), num_workers=0).dataset("val")[1]["image"].shape == (3, 30, 40)


def test_proposals_follow_their_boxes(folder: Path) -> None:
    data = VOC(str(folder), num_workers=0, transforms=[FLIP])
    data.use_proposals({"train": {f"i{number}": np.array([[1, 2, 20, 22], [0, 0, 5, 5]]) for number in range(9)}})
    data.setup("fit")
    places = set()
    for sample in [sample for batch in data.train_dataloader() for sample in batch]:
        assert sample["proposals"].shape == (2, 4) and sample["proposals"].dtype == torch.float32
        places.add(round(sample["proposals"][0, 0].item()))
        if len(sample["boxes"]):
            torch.testing.assert_close(sample["boxes"][0], sample["proposals"][0])
    assert places == {1, 20}


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size", "num_workers", "seed"])
def test_wrong_numbers(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: -1 must be at least"):
        VOC(str(folder), **{name: -1})


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a", " "]])
def test_wrong_class_names(folder: Path, names: list[str]) -> None:
    with pytest.raises(DataError, match="class names must be different"):
        VOC(str(folder), class_names=names)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\0", "\udcff"])
def test_class_names_that_cannot_be_printed(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"class name 'a?.* has a control character, or is no text") as caught:
        VOC(str(folder), class_names=[name])
    assert str(caught.value).isprintable()


def test_command_line_parses_transforms_from_yaml(folder: Path, parse_data: Callable[..., Any]) -> None:
    data = parse_data("detkit.data.VOC", path=str(folder), num_workers=0, transforms=[FLIP])
    assert data.transforms == [FLIP]
    assert len(data.dataset("train")[(0, 1)]["boxes"]) == 0


def test_a_data_set_without_sets_is_predicted_on_as_a_whole(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")
    for number in range(10):
        write_image(tmp_path / f"{number}.png", seed=number)
        (tmp_path / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    data = detkit.data.open(tmp_path, num_workers=0)
    data.setup("predict")
    assert len(data.predict_dataloader()) == 5  # batches of two
    data = detkit.data.open(tmp_path, num_workers=0, sets={"train": ["[0-7].png"], "test": ["8.png", "9.png"]})
    data.setup("predict")
    assert [s["image_id"] for batch in data.predict_dataloader() for s in batch] == ["8.png", "9.png"]
