from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit.data.image_io import image_size, read_image
from detkit.errors import DataError

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "CMYK", "I", "I;16", "F"])
def test_every_mode_becomes_rgb_uint8(tmp_path: Path, mode: str) -> None:
    if mode in ("I", "I;16"):
        image = Image.fromarray(GRAY.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(GRAY.astype(np.float32))
    else:
        image = Image.fromarray(GRAY).convert(mode)
    pixels = read_image(save(image, tmp_path / ("x.tif" if mode in ("F", "CMYK") else "x.png")))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 4, 3))
    assert pixels.flags.writeable and pixels.flags.c_contiguous
    if mode != "1":
        np.testing.assert_allclose(pixels, np.repeat(GRAY[..., None], 3, 2), atol=2)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    pixels[0, 1] = (0, 0, 0, 128)
    read = read_image(save(Image.fromarray(pixels), tmp_path / "x.png"))
    assert read[0, 0].tolist() == [10, 20, 30]
    assert read[0, 1].tolist() == pytest.approx([127] * 3, abs=1)
    assert read[1, 1].tolist() == [255] * 3
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 9, 9, 9])
    read = read_image(save(palette, tmp_path / "p.png", transparency=0))
    assert read[0].tolist() == [[255] * 3, [9] * 3]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.repeat(GRAY[..., None], 3, 2))
    path = save(stored, tmp_path / "x.png", exif=exif)
    g = GRAY
    turned = [g, g[:, ::-1], g[::-1, ::-1], g[::-1], g.T, g.T[:, ::-1], g[::-1, ::-1].T, g.T[::-1]][orientation - 1]
    np.testing.assert_array_equal(read_image(path)[..., 0], turned)
    assert image_size(path) == turned.shape[::-1]
    # The annotation says the size as stored: then its boxes are those of the stored image.
    expected = turned if turned.shape == g.shape else g
    np.testing.assert_array_equal(read_image(path, size=(4, 3))[..., 0], expected)
    np.testing.assert_array_equal(read_image(path, size=turned.shape[::-1])[..., 0], turned)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"cut{suffix}")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=f"cut{suffix}: .*cut short"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"bad\.png: image cannot be read"):
            read(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "x.png")
    with pytest.raises(DataError):
        read_image(tmp_path)


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.fromarray(np.zeros((40, 40, 3), np.uint8)), tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="too large"):
        read_image(path)
