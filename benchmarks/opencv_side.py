"""OpenCV's side of benchmarks/selective_search.py, run in an environment of its own.

Reads requests from standard input, one JSON object a line, and answers each with one: see `answer`. Needs nothing but
opencv-contrib-python-headless.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import cv2
import numpy as np

SEGMENTATION = cv2.ximgproc.segmentation


def colour_spaces(image: np.ndarray) -> dict[str, np.ndarray]:
    """The images that OpenCV's selective search segments in quality mode, of a BGR image.

    It means the hue, "h", to be one, but overwrites it with the blue channel before it is looked at; here are both.
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
        # Selective search hands its sigma on in single precision.
        sigma = float(np.float32(0.8))
        found.append([SEGMENTATION.createGraphSegmentation(sigma, k, 100).processImage(planes) for k in ks])
    return np.array(found)


def boxes(image: np.ndarray, mode: str) -> tuple[np.ndarray, float, float]:
    """Boxes (N, 4) x1 y1 x2 y2 of a selective search, its seconds, and its seconds of CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    search = SEGMENTATION.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}[mode]()
    found = search.process()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    found[:, 2:] += found[:, :2]
    return found, seconds, cpu_seconds


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Does what is asked, and writes arrays to the file that `output` names.

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
    """Answers until the input ends."""
    cv2.setNumThreads(1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
