from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detkit.data import ImageFolder
from detkit.errors import DataError


def test_all_images_below_sorted(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for name in ("b.png", "a.JPG", "deep/c.webp", "deep/d.tif", ".hidden.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    data = ImageFolder(str(tmp_path), batch_size=3, num_workers=0)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [len(batch) for batch in batches] == [3, 1]
    samples = [sample for batch in batches for sample in batch]
    assert [sample["image_id"] for sample in samples] == ["a.JPG", "b.png", "deep/c.webp", "deep/d.tif"]
    assert all(
        set(sample) == {"image", "image_id", "file", "path"} and Path(sample["path"]).is_file() for sample in samples
    )
    assert all(s["image"].shape == (3, 30, 40) and s["image"].dtype == torch.uint8 for s in samples)
    assert data.class_names == []


def test_one_file(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    file = write_image(tmp_path / "b.png")
    write_image(tmp_path / "c.png")
    assert [sample["image_id"] for sample in ImageFolder(str(file)).images] == ["b.png"]


def test_errors(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="no image below"):
        ImageFolder(str(tmp_path))
    with pytest.raises(DataError, match="no such file or folder"):
        ImageFolder(str(tmp_path / "x"))
    (tmp_path / "a.pdf").write_text("")
    with pytest.raises(DataError, match="not an image file"):
        ImageFolder(str(tmp_path / "a.pdf"))
    write_image(tmp_path / "a.png").write_bytes(b"broken")
    data = ImageFolder(str(tmp_path), num_workers=0)
    with pytest.raises(DataError, match=r"a\.png"):
        next(iter(data.predict_dataloader()))
    with pytest.raises(DataError, match="predict, not fit"):
        data.setup("fit")
