"""Files are written whole, and kept by the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detkit.engine.callbacks import AtomicCheckpointIO
from detkit.files import staged, write_text


def test_files_are_on_the_disk_before_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    replace, fsync = os.replace, os.fsync

    def name(descriptor: int) -> str:
        number = os.fstat(descriptor).st_ino
        return next(path.name for path in (tmp_path, *tmp_path.rglob("*")) if path.stat().st_ino == number)

    monkeypatch.setattr(os, "fsync", lambda file: (calls.append(("sync", name(file))), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append(("rename", Path(new).name)), replace(old, new)))
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "last.ckpt")
    assert calls == [("sync", "last.ckpt"), ("rename", "last.ckpt"), ("sync", tmp_path.name)]
    calls.clear()
    with staged(tmp_path) as part:  # drawings are many, and can be made again
        (part / "drawn").mkdir()
        (part / "drawn" / "1.jpg").touch()
        write_text(part / "index.html", "")  # a stage in a stage
        calls.clear()
    assert sorted(calls[1:3]) == [("rename", "1.jpg"), ("rename", "index.html")]
    assert [calls[0], *calls[3:]] == [("sync", "index.html"), ("sync", tmp_path.name)]


#: Writes half of a file into a stage, and waits.
HALF = """
import pathlib, sys
from detkit.files import staged
with staged(pathlib.Path(sys.argv[1])) as part:
    (part / "last.ckpt").write_bytes(bytes(1000))
    print(part, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks of folders")
def test_what_a_killed_process_leaves_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command, pipe = [sys.executable, "-c", HALF, str(tmp_path)], subprocess.PIPE
    (tmp_path / ".mine.part").mkdir()
    with (
        subprocess.Popen(command, env=env, text=True, stdin=pipe, stdout=pipe) as killed,
        subprocess.Popen(command, env=env, text=True, stdin=pipe, stdout=pipe) as running,
    ):
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, running))
        with staged(tmp_path) as part:
            (part / "a").touch()
        assert left.is_dir() and used.is_dir()
        killed.kill()
        killed.wait()
        with staged(tmp_path) as part, staged(tmp_path):
            assert part.is_dir() and used.is_dir() and not left.exists()
        running.communicate("\n", timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.part", "a", "last.ckpt"]
