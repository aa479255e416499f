from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from detkit.data import Shapes
from detkit.data.shapes import draw_shapes
from detkit.data.shapes_drawing import SHAPE_CLASSES, draw_scene
from detkit.errors import ConfigError, DataError

COUNTS = {"train": 5, "val": 2, "test": 2}


def digests(path: Path) -> dict[str, str]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_same_seed_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_shapes(str(tmp_path / name), COUNTS, 64, seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")
    assert len(digests(tmp_path / "a")) == 2 * 9 + 3 + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # nothing temporary is left


def test_more_images_keep_the_first(tmp_path: Path) -> None:
    draw_shapes(str(tmp_path / "a"), COUNTS, 64, 0)
    draw_shapes(str(tmp_path / "b"), COUNTS | {"train": 6}, 64, 0)
    first, more = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert all(more[name] == digest for name, digest in first.items() if name.startswith("JPEGImages"))


def test_a_data_module_like_any_other(tmp_path: Path) -> None:
    data = Shapes(str(tmp_path / "new" / "shapes"), 6, 2, 3, 64, num_workers=0)
    assert data.class_names == list(SHAPE_CLASSES) and not (tmp_path / "new").exists()
    assert data.summary(["train"]).splits["train"].images == 6  # drawn when it is first looked at
    data.setup("fit")
    assert [len(batch) for batch in data.train_dataloader()] == [2, 2, 2]
    assert len(data.annotations("test")) == 3
    assert data.summary().splits["train"].dropped == 0
    again = Shapes(str(tmp_path / "new" / "shapes"), 6, 2, 3, 64, seed=9, num_workers=0)
    again.setup("test")  # another seed of the shuffle is no other data set


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    draw_shapes(str(tmp_path / "a"), COUNTS, 64, 0)
    told = r"other pictures of Shapes \(.*, 64 px a side, drawing_seed 0\) than are asked for \(.*, drawing_seed 1\)"
    with pytest.raises(DataError, match=told):
        draw_shapes(str(tmp_path / "a"), COUNTS, 64, 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").write_text("mine")
    with pytest.raises(DataError, match="choose another path"):
        draw_shapes(str(tmp_path / "b"), COUNTS, 64, 0)
    assert (tmp_path / "b" / "file").read_text() == "mine"
    with pytest.raises(ConfigError, match="image_size at least 48"):
        Shapes(str(tmp_path / "c"), image_size=20)


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path = str(tmp_path / "a")
    workers = [context.Process(target=draw_shapes, args=(path, COUNTS, 64, 0)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_scenes() -> None:
    scenes = [draw_scene(np.random.default_rng(seed), 96) for seed in range(120)]
    objects = [item for _, items in scenes for item in items]
    assert all(image.shape == (96, 96, 3) and image.dtype == np.uint8 for image, _ in scenes)
    assert {item.name for item in objects} == set(SHAPE_CLASSES)
    assert 2 <= sum(not items for _, items in scenes) <= 22
    assert 0.02 < np.mean([item.difficult for item in objects]) < 0.25
    boxes = np.array([item.box for item in objects])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0 and boxes.max() <= 96 and sides.min() >= 2 and sides.max() <= 55


def test_boxes_are_tight_to_the_drawn_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    from detkit.data import shapes_drawing

    monkeypatch.setattr(shapes_drawing, "_background", lambda rng, size: np.full((size, size, 3), 128.0))
    checked = 0
    for seed in range(60):
        image, items = draw_scene(np.random.default_rng(seed), 96)
        if len(items) != 1 or items[0].difficult:
            continue
        checked += 1
        changed = np.abs(image.astype(int) - 128).max(2) > 45
        x1, y1, x2, y2 = items[0].box
        outside = changed.copy()
        outside[y1 - (y1 > 0) : y2 + 1, x1 - (x1 > 0) : x2 + 1] = False
        assert not outside.any()
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(found, items[0].box, atol=3)
    assert checked >= 4
