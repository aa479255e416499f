"""Which checkpoint a path means, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from detkit.classes import full_name
from detkit.engine.callbacks import BestCheckpoint
from detkit.engine.checkpoints import find_checkpoint, hyper_parameters, read_checkpoint, run_folder
from detkit.engine.module import TrainableModule
from detkit.errors import CheckpointError
from detkit.torch_files import check_fits


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("given", ["", "version_10", "version_10/checkpoints", "version_10/checkpoints/best.ckpt"])
def test_best_of_the_newest_version_by_number(tmp_path: Path, given: str) -> None:
    touch(tmp_path, "version_9/checkpoints/best.ckpt", "version_10/checkpoints/best.ckpt")
    touch(tmp_path, "version_10/checkpoints/last.ckpt", "version_11/config.yaml", "version_x/checkpoints/best.ckpt")
    found = find_checkpoint(tmp_path / given)
    assert found.path == tmp_path / "version_10/checkpoints/best.ckpt"
    assert found.kind == "best"
    assert run_folder(found.path) == tmp_path / "version_10"


def test_last_where_there_is_no_best_or_last_is_wanted(tmp_path: Path) -> None:
    touch(tmp_path, "version_0/checkpoints/last.ckpt")
    assert find_checkpoint(tmp_path).kind == "last"
    touch(tmp_path, "version_0/checkpoints/best.ckpt")
    assert find_checkpoint(tmp_path, ("last", "best")).kind == "last"


def test_a_fit_goes_on_from_the_last_of_an_older_version_rather_than_from_its_copied_best(tmp_path: Path) -> None:
    old, new = (tmp_path / f"version_{number}" / "checkpoints" for number in (0, 1))
    touch(
        tmp_path,
        "version_0/checkpoints/last.ckpt",
        "version_0/checkpoints/best.ckpt",
        "version_1/checkpoints/best.ckpt",
    )
    assert find_checkpoint(tmp_path, ("last", "best")).path == old / "last.ckpt"
    assert find_checkpoint(tmp_path, ("best", "last")).path == new / "best.ckpt"


def test_a_file_by_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "mine.ckpt")
    found = find_checkpoint(tmp_path / "mine.ckpt")
    assert (found.kind, str(found)) == ("file", str(tmp_path / "mine.ckpt"))
    assert run_folder(found.path) == tmp_path


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such"):
        find_checkpoint(tmp_path / "nowhere")
    touch(tmp_path, "version_0/checkpoints/epoch=3.ckpt")
    with pytest.raises(CheckpointError, match=r"no best.ckpt or last.ckpt .*version_0/checkpoints.*epoch=3.ckpt"):
        find_checkpoint(tmp_path)


class Harmful:
    """Runs code when unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    sentinel = tmp_path / "was_here"
    content = {"state_dict": {}, "detkit": {"class": "X"}, "extra": Harmful(sentinel)}
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        read_checkpoint(tmp_path / "bad.ckpt")
    assert not sentinel.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken archive", "cut"])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | str) -> None:
    torch.save({"state_dict": {"w": torch.zeros(500)}, "detkit": {}}, tmp_path / "bad.ckpt")
    whole = (tmp_path / "bad.ckpt").read_bytes()
    (tmp_path / "bad.ckpt").write_bytes(whole[:900] if content == "cut" else content)
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        read_checkpoint(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("content", [{"w": torch.zeros(1)}, {"state_dict": {}}, [1, 2]])
def test_checkpoints_of_others_are_told_apart(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint written by detkit"):
        read_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("value", [torch.zeros(2).to_sparse(), torch.zeros(2, device="meta"), 1j * torch.ones(2), 5])
def test_weights_are_plain_tensors(tmp_path: Path, value: object) -> None:
    torch.save({"detkit": {"class": "X"}, "state_dict": {"w": value}}, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match="its entry 'state_dict' is not as detkit writes it"):
        read_checkpoint(tmp_path / "odd.ckpt")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("secret.txt", b"secret", None),
        ("best.ckpt", b"secret", "cannot be read"),
        ("best.ckpt", {"w": torch.zeros(1)}, "not a checkpoint written by detkit"),
        ("best.ckpt", {"detkit": {"class": "detkit.detectors.rcnn.RCNN"}, "state_dict": {}}, "it is of a RCNN"),
        ("best.ckpt", {"detkit": {"class": full_name(TrainableModule)}, "state_dict": {}}, ""),
    ],
)
def test_only_a_best_checkpoint_of_the_same_model_is_copied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: object, said: str | None
) -> None:
    (tmp_path / "old").mkdir()
    path = tmp_path / "old" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    callback, model = BestCheckpoint(), TrainableModule(["a"])
    callback.dirpath = str(tmp_path / "checkpoints")
    with caplog.at_level("INFO"):
        callback.setup(Trainer(logger=False, accelerator="cpu"), model, "fit")
        callback.load_state_dict({"best_model_path": str(path), "best_model_score": None})
    assert [each.name for each in (tmp_path / "checkpoints").glob("*")] == (["best.ckpt"] if said == "" else [])
    told = [text for text in caplog.messages if "is not copied" in text]
    assert bool(told) == bool(said) and all(f"{path}: {said}" in text for text in told)


def test_hyper_parameters_leave_out_what_lightning_notes() -> None:
    kept = {"optim__lr": 0.1, "class_names": ["a"], "_class_path": "x", "_instantiator": "y"}
    assert hyper_parameters({"hyper_parameters": kept}) == {"optim__lr": 0.1, "class_names": ["a"]}


def test_misfits_are_named_by_key() -> None:
    model = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(4)}
    check_fits(dict(model), model, "x.ckpt")
    state = {"a": torch.zeros(2), "b": torch.zeros(1), "d": torch.zeros(4)}
    with pytest.raises(CheckpointError) as caught:
        check_fits(state, model, "x.ckpt")
    for words in ("x.ckpt", "1 missing (c)", "1 unknown (d)", "b: (1,) in the file, (3,) in the model"):
        assert words in str(caught.value)


def test_a_misspelt_run_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "my_photos").mkdir()
    with pytest.raises(
        CheckpointError, match=r"my_photo: no such checkpoint or run folder; did you mean \S*my_photos[?]$"
    ):
        find_checkpoint(tmp_path / "my_photo")
    with pytest.raises(CheckpointError, match=r"nowhere: no such checkpoint or run folder\.$"):
        find_checkpoint(tmp_path / "nowhere")
