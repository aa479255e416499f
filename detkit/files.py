"""Files: written whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from detkit.errors import ConfigError
from detkit.signals import SIGNALS

#: What keeps a file from being written, and what keeps a path from being opened at all.
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EEXIST)
PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, from which `publish` moves the files up when the block ends; nothing where it fails.

    Raises:
        ConfigError: something cannot be written; see `writing`.
    """
    part = stage(folder)
    try:
        with writing(folder):
            yield part
        publish(part, folder)
    finally:
        discard(part)


def stage(folder: Path) -> Path:
    """Make the new folder of `staged`, and delete those of processes that were killed."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):  # a new stage has no lock for a moment
            for part in folder.glob(".????????.part"):
                if part.is_dir() and (lock := _lock(part)) is not None:
                    shutil.rmtree(part, ignore_errors=True)
                    os.close(lock)
            part = Path(tempfile.mkdtemp(".part", ".", folder))
            _LOCKS[part] = _lock(part)
        return part


def publish(part: Path, folder: Path) -> bool:
    """Move files from a stage into its folder, and delete the stage; returns whether earlier files were replaced.

    Of several processes the last one wins with all its files. Symbolic links are replaced, not followed. The files are
    on the disk when it returns, but for those in folders of the stage: thousands of drawings would take seconds.
    """
    with writing(folder), SIGNALS.postponed():
        targets = {file: folder / file.relative_to(part) for file in part.rglob("*") if not file.is_dir()}
        for file, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{target.name} is a folder")
            if file.parent == part:
                sync(file)
        with _locked(folder):
            replaced = any(target.exists() for target in targets.values())
            for file, target in targets.items():
                os.replace(file, target)
        if targets:
            sync(folder)
    discard(part)
    return replaced


def discard(part: Path) -> None:
    """Delete a stage."""
    shutil.rmtree(part, ignore_errors=True)
    if (lock := _LOCKS.pop(part, None)) is not None:
        os.close(lock)


def sync(path: Path) -> None:
    """Wait until the disk has what was written to a file, or renamed in a folder."""
    is_folder = path.is_dir()
    with suppress(OSError) if is_folder else nullcontext():  # Windows, and drives that cannot do that to a folder
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


#: Locks of this process's stages, which end with the process.
_LOCKS: dict[Path, int | None] = {}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for the lock of a folder, and hold it in the block; a stage of this process is locked already."""
    lock = None if folder in _LOCKS else _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, wait: bool = False) -> int | None:
    """A descriptor that locks a folder until it is closed; None where another one does, or there are no locks."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows, or the folder has gone
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # locked, or on a drive without locks
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an OSError into a ConfigError that names the folder, what is wrong, and how much is free there."""
    try:
        yield
    except OSError as error:
        raise output_error(folder, error) from error


def output_error(path: Path, error: OSError) -> ConfigError:
    """What to raise where an output cannot be written."""
    why = error.strerror or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        what = "a file" if os.path.exists(_nearest(path)) else "a link to nothing"
        why = f"{what} is where a folder is needed"
    return ConfigError(f"{path}: cannot be written ({why}; {free_space(path)}); choose another folder")


def free_space(path: Path) -> str:
    """How much is free on the disk of a path, in words."""
    folder = next(each for each in (path, *path.absolute().parents) if os.path.isdir(each))
    return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB are free there"


def path_error(error: OSError) -> ConfigError | None:
    """What to say of an OSError that is the user's to mend; None for another."""
    if error.filename is None or error.errno not in (*WRITE_ERRORS, *PATH_ERRORS):
        return None
    if error.errno in WRITE_ERRORS:
        return output_error(Path(os.fsdecode(error.filename)), error)
    return ConfigError(f"{os.fsdecode(error.filename)}: cannot be opened ({error.strerror})")


def _nearest(path: Path) -> Path:
    """The path or, where it does not exist, the nearest folder above that does; also where one may not look."""
    return next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))


def check_output(folder: Path) -> None:
    """Refuse, before the work begins, a folder that cannot be made or written to, or whose disk is full."""
    with writing(folder):
        with suppress(FileNotFoundError):
            os.stat(folder)  # a name that is too long, a loop of links, a folder that one may not enter
        with tempfile.TemporaryFile(dir=_nearest(folder)) as probe:
            probe.write(bytes(4096))


def keep_inputs(outputs: Iterable[Path], inputs: Iterable[str | Path | None], option: str = "--output") -> None:
    """Refuse, before the work begins, to replace a file that is read; ``option`` names another folder.

    Raises:
        ConfigError: one of the outputs is one of the inputs.
    """
    present = [each for each in inputs if each is not None and os.path.exists(each)]
    for output in outputs:
        if os.path.exists(output) and any(os.path.samefile(output, each) for each in present):
            raise ConfigError(f"{output}: is read, and would be replaced; choose another folder by {option}")


def write_text(path: Path, text: str) -> None:
    """Writes a text file as UTF-8 by `staged`.

    A lone surrogate, as undecodable file names contain it, is written as a backslash escape, which is valid JSON too.
    """
    with staged(path.parent) as part:
        (part / path.name).write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, as `write_text` does; `to_json` says how tensors and NaN are written."""
    write_text(path, json.dumps(to_json(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def quote_formula(text: str) -> str:
    """An apostrophe in front of what a spreadsheet would take for a formula, as OWASP advises."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def overwrite_note(replaced: bool, option: str, kind: str = "FOLDER") -> str:
    """A note that an output replaced an earlier one, naming the option of another place; "" where it did not."""
    return f" (instead of an earlier one; {option} {kind} keeps both)" if replaced else ""


def to_json(value: Any) -> Any:
    """A value that JSON can hold: arrays and tensors become numbers or lists, paths text, NaN and infinity None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def path_alike(path: Path, pattern: str = "*") -> Path | None:
    """The entry of the same folder that fits a pattern and whose name is spelt most like that of a path, if any is."""
    try:
        names = [each.name for each in path.parent.glob(pattern)]
    except (OSError, ValueError):
        return None
    close = get_close_matches(path.name, names, n=1, cutoff=0.8)
    return path.with_name(close[0]) if close else None


def versions(root: str | os.PathLike[str]) -> list[Path]:
    """The folders `version_N` of a run, newest (largest N) first."""
    found = [(int(m[1]), p) for p in Path(root).glob("version_*") if (m := re.fullmatch(r"version_(\d+)", p.name))]
    return [p for _, p in sorted(found, reverse=True) if p.is_dir()]
