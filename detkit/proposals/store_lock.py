"""One process a file: a lock that ends with its holder, however that ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def open_locked(path: Path, on_wait: Callable[[], None] | None = None) -> BinaryIO:
    """A file open for reading and writing, made where missing, and locked until it is closed or the process ends.

    Args:
        path: the file.
        on_wait: called once if another process holds the lock; it is then waited for.

    Raises:
        OSError: the file cannot be opened.
    """
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            _lock(file, on_wait)
            # Whom we waited for may have removed it meanwhile.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock of a file; False where there are no locks, or no file."""
    try:
        import fcntl

        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def _lock(file: BinaryIO, on_wait: Callable[[], None] | None) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: its users see to it that one process writes at a time
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait is not None:
            on_wait()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:  # some network drives have none
            raise
