"""OpenCV with its contributed modules, in an environment of its own, as a process that answers requests.

opencv-contrib-python-headless overwrites the files of opencv-python-headless, which detkit needs, so the two must never
be installed side by side.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

SIDE = Path(__file__).with_name("opencv_side.py")


def environment(version: str) -> Path:
    """The Python of an environment with the contributed modules of that version of OpenCV, made if it is not there.

    It is kept in the user's cache folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "detkit" / f"opencv-contrib-{version}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready"
    if ready.exists() and python.exists():
        return python
    print(f"making an environment for OpenCV's contributed modules in {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    package = f"opencv-contrib-python-headless=={version}.*"
    beside = Path(sys.executable).with_name("uv")
    uv = shutil.which("uv") or (str(beside) if beside.exists() else None)
    if uv:
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), package], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)
    ready.touch()
    return python


class OpenCV:
    """The other process; a context manager."""

    def __init__(self, version: str) -> None:
        self._process = subprocess.Popen(
            [str(environment(version)), str(SIDE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request of `opencv_side.answer`; raises SystemExit if the process has died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"OpenCV's process ended with code {self._process.wait()} on {request}")
        return json.loads(line)

    def __enter__(self) -> OpenCV:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
