"""Files of torch.save: what is damaged, too large or no such file is one message, and changed weights are not used."""

from __future__ import annotations

import os
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.engine.checkpoints import read_checkpoint
from detkit.errors import CheckpointError, WeightsError
from detkit.features import MapSettings, build_backbone
from detkit.torch_files import read_torch_file

CONTENT = {"detkit": {"class": "X"}, "state_dict": {"w": torch.arange(100.0), "b": torch.ones(3, 4)}, "n": [1, None]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(CONTENT, tmp_path / "some.ckpt")
    return tmp_path / "some.ckpt"


def reads(path: Path, state: dict[str, torch.Tensor]) -> bool:
    """Whether a file is read, as it was written; False where it is refused in one line that names it."""
    try:
        content = read_torch_file(path, CheckpointError, "Do this.")
    except CheckpointError as error:
        assert str(error).startswith(f"{path}: cannot be read: ") and str(error).endswith(". Do this.")
        assert "\n" not in str(error)
        return False
    assert all(torch.equal(content["state_dict"][name], value) for name, value in state.items())
    return True


@pytest.mark.parametrize("read", [read_checkpoint, lambda path: build_backbone("tiny", str(path), MapSettings())])
def test_changed_weights_are_found(file: Path, read: Callable[[Path], Any]) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(torch.arange(100.0).numpy().tobytes()) + 200] ^= 1
    file.write_bytes(data)
    assert not torch.equal(torch.load(file, weights_only=True)["state_dict"]["w"], torch.arange(100.0))
    damaged = r"some\.ckpt: cannot be read: its record 'some/data/0' is damaged: this file was changed or cut after"
    with pytest.raises((CheckpointError, WeightsError), match=damaged):
        read(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_bytes_are_one_message(file: Path, zipped: bool) -> None:
    torch.save(CONTENT, file, _use_new_zipfile_serialization=zipped)
    whole, chance = file.read_bytes(), random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = 0
        for _ in range(300):
            data = bytearray(whole)
            for _ in range(chance.randint(1, 3)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            file.write_bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
            # The old format has no checksums: only what cannot be read is found.
            refused += not reads(file, CONTENT["state_dict"] if zipped else {})
    assert refused > 150


def test_files_of_others_and_without_checksums(file: Path) -> None:
    weights = CONTENT["state_dict"]
    assert reads(file, weights)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert reads(file, weights)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("report.txt", "no tensors")
    assert not reads(file, weights)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some/data.pkl", bytes(10**7))
    with pytest.raises(CheckpointError, match="records are larger than the file"):
        read_torch_file(file, CheckpointError, "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_text_file_a_folder_and_a_pipe_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("to do")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsError, match=r"notes\.txt: cannot be read: it is no file of torch\.save.* state dict"):
        build_backbone("tiny", str(tmp_path / "notes.txt"), MapSettings())
    with pytest.raises(WeightsError, match="pipe is no file"):
        build_backbone("tiny", str(tmp_path / "pipe"), MapSettings())
    for name in ("pipe", "."):
        assert not reads(tmp_path / name, {})
