"""What every test may ask for: the shared development data, and seeds that start the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread a process: the networks of the tests are so small that more only get into each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def _kernels() -> str:
    """A folder for compiled functions that is another one after any change of them.

    numba keeps machine code until the file of the function changes; what that function calls in other files may be
    long out of date by then.
    """
    root = Path(__file__).parents[1]
    sources = [path.read_bytes() for path in sorted((root / "detkit").rglob("*.py"))]
    digest = hashlib.sha256(b"".join(source for source in sources if b"jit" in source)).hexdigest()[:12]
    return str(root / ".pytest_cache" / f"numba-{digest}")


os.environ.setdefault("NUMBA_CACHE_DIR", _kernels())


def shared_root() -> Path:
    """Where the shared development data is: `DETKIT_SHARED`, else `../shared` beside the repository."""
    given = os.environ.get("DETKIT_SHARED")
    return Path(given) if given else Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("data/bccd")` -> its path; skips without the data, but fails in CI where the data is at hand."""

    def find(name: str) -> Path:
        path = shared_root() / name
        if not path.exists():
            if os.environ.get("CI") and shared_root().is_dir():
                pytest.fail(f"{path} is missing though {shared_root()} is there: not skipped in CI")
            pytest.skip(f"needs {name} of the shared data (DETKIT_SHARED or ../shared)")
        return path

    return find


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same seeds, whatever ran before it."""
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
