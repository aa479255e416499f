"""OpenCV with its contributed modules, as a process of a separate environment that answers requests.

opencv-contrib-python-headless overwrites files of opencv-python-headless, which detkit needs, so the two must never be
installed in one environment. Imported, this file starts that process (`OpenCV`); run by the other environment's Python,
it is that process: it reads requests from standard input, one JSON object a line, and answers each with one (`answer`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np


def environment(version: str) -> Path:
    """The Python of an environment with the contributed modules of that version of OpenCV, created where missing.

    It is kept in the user's cache folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "detkit" / f"opencv-contrib-{version}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready"
    if ready.exists() and python.exists():
        return python
    print(f"creating an environment for OpenCV's contributed modules in {folder}", flush=True)
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
            [str(environment(version)), __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request, see `answer`; raises SystemExit where the process has ended."""
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


def colour_spaces(image: np.ndarray) -> dict[str, np.ndarray]:
    """The images that OpenCV's selective search segments in quality mode, of a BGR image.

    Its code intends to segment the hue, "h", but overwrites it with the blue channel first; here are both.
    """
    hsv, gray = cv2.cvtColor(image, cv2.COLOR_BGR2HSV), cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return {
        "hsv": hsv,
        "lab": cv2.cvtColor(image, cv2.COLOR_BGR2Lab),
        "gray": gray,
        "h": np.ascontiguousarray(hsv[..., 0]),
        "blue": np.ascontiguousarray(image[..., 0]),
        "rgi": cv2.merge([image[..., 2], image[..., 1], gray]),
    }


def partitions(image: np.ndarray, ks: list[float]) -> np.ndarray:
    """(6, K, H, W) int32: initial regions by colour space and k."""
    found = []
    for planes in colour_spaces(image).values():
        # Selective search passes its sigma on in single precision.
        sigma = float(np.float32(0.8))
        found.append(
            [cv2.ximgproc.segmentation.createGraphSegmentation(sigma, k, 100).processImage(planes) for k in ks]
        )
    return np.array(found)


def boxes(image: np.ndarray, mode: str) -> tuple[np.ndarray, float, float]:
    """Boxes (N, 4) x1 y1 x2 y2 of a selective search, its seconds, and its seconds of CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}[mode]()
    found = search.process()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    found[:, 2:] += found[:, :2]
    return found, seconds, cpu_seconds


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answers a request, and writes arrays to the file `output`.

    Requests: ``{"work": "version"}``; ``{"work": "boxes", "image": FILE, "mode": "fast", "output": FILE}``;
    ``{"work": "partitions", "image": FILE, "ks": [...], "output": FILE}``. Images are .npy files, uint8 (H, W, 3) RGB.
    """
    if request["work"] == "version":
        return {"version": cv2.__version__}
    image = np.ascontiguousarray(np.load(request["image"])[..., ::-1])
    if request["work"] == "partitions":
        np.save(request["output"], partitions(image, request["ks"]))
        return {}
    found, seconds, cpu_seconds = boxes(image, request["mode"])
    np.save(request["output"], found)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def main() -> None:
    """Answers requests until the input ends."""
    cv2.setNumThreads(1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
