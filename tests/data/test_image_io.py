from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, features

from detkit.data.image_io import as_array, image_size, open_image, read_image
from detkit.errors import ConfigError, DataError

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


def test_an_array_that_is_read_only_is_copied() -> None:
    """torch would warn of a tensor over memory that must not be written, such as scikit-learn's sample images."""
    pixels = np.zeros((2, 3, 3), np.uint8)
    assert as_array(pixels) is pixels
    pixels.flags.writeable = False
    copy = as_array(pixels)
    assert copy.flags.writeable and not np.shares_memory(copy, pixels) and np.array_equal(copy, pixels)
    assert as_array(pixels[:, ::-1]).flags.c_contiguous


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


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "AVIF"])
def test_kinds_of_images_by_their_content(tmp_path: Path, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pictures = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue")]
    more = {"save_all": True, "append_images": pictures[1:]} if kind in ("MPO", "GIF", "TIFF", "WEBP") else {}
    path = save(pictures[0], tmp_path / "x.jpg", format=kind, **more)
    assert image_size(path) == (16, 12)
    pixels = read_image(path)  # of several pictures the first
    assert pixels.shape == (12, 16, 3)
    np.testing.assert_allclose(pixels[5, 5], [255, 0, 0], atol=12)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "TGA", "JPEG2000", "SPIDER", "PDF"])
def test_other_kinds_are_not_opened(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow starts Ghostscript for PostScript: it must not even look at such a file."""
    buffer = io.BytesIO()
    Image.new("F" if kind == "SPIDER" else "RGB", (16, 16)).save(buffer, kind)
    path = tmp_path / "x.jpg"
    path.write_bytes(buffer.getvalue())
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    named = {"EPS": "it is a PostScript file", "PDF": "it is a PDF file"}.get(kind, "it is damaged")
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=rf"x\.jpg: image cannot be read: {named}, (or )?not one of JPEG, PNG, "):
            read(path)


ERRORS = [
    *(struct.error("unpack"), zlib.error("Error -3"), AssertionError(), ZeroDivisionError("by zero"), KeyError(7)),
    *(MemoryError(), RecursionError("too deep"), RuntimeError("two\nlines"), OverflowError("large"), EOFError()),
    *(AttributeError("x"), NotImplementedError("mode"), UnicodeDecodeError("ascii", b"x", 0, 1, "odd"), OSError(5)),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_pillow_raises_is_one_message(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(Image.new("RGB", (8, 8)), tmp_path / "x.jpg")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", fail)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "getexif", fail)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"x\.jpg: image cannot be read or is cut short \(\S") as caught:
            read(path)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM"])
def test_damaged_files_raise_data_errors_only(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
    good = np.frombuffer(save(noise, tmp_path / "x.png", format=kind).read_bytes(), np.uint8)
    path = tmp_path / "x.jpg"
    for _ in range(60):
        content = good.copy()
        content[random.integers(0, len(good), random.integers(1, 6))] = random.integers(0, 256)
        path.write_bytes(content[: random.integers(1, len(good) + 1)].tobytes())
        for read in (read_image, image_size):
            try:
                read(path)
            except DataError as error:
                assert str(path) in str(error)


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        for read in (read_image, image_size):
            with pytest.raises(DataError, match=f"{name}: is a pipe, a socket or a device"):
                read(tmp_path / name)


def test_the_error_of_a_caller_is_its_own(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (8, 8)), tmp_path / "x.jpg")
    with pytest.raises(KeyboardInterrupt), open_image(path):
        raise KeyboardInterrupt


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.fromarray(np.zeros((40, 40, 3), np.uint8)), tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"x\.png: image is too large .*1600 pixels.*DETKIT_MAX_PIXELS to more"):
            read(path)
    monkeypatch.setenv("DETKIT_MAX_PIXELS", "1600")
    assert image_size(path) == (40, 40)
    assert read_image(path).shape == (40, 40, 3)
    monkeypatch.setenv("DETKIT_MAX_PIXELS", "1599")
    with pytest.raises(DataError, match="limit of 1599"):
        read_image(path)
    for wrong in ("many", "-1", "0", "1e9", "9" * 5000):
        monkeypatch.setenv("DETKIT_MAX_PIXELS", wrong)
        with pytest.raises(ConfigError, match=f"DETKIT_MAX_PIXELS is '{wrong[:20]}'; give a number of pixels"):
            read_image(path)
