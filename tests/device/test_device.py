"""Runs what checks the path on a device, on a simulated one, in a process of its own: see simulated_device.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("check_*.py")), ids=lambda file: file.stem)
def test_on_the_simulated_device(file: Path) -> None:
    options = ("-p", "no:cacheprovider", "--tb=short")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(file)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, f"\n{done.stdout}"
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout
