"""Writes opencv_partitions.npz: what OpenCV makes of the generated images.

Needs opencv-contrib-python-headless, which must not be installed beside detkit's OpenCV. In an environment of its own::

    python -m venv /tmp/contrib && /tmp/contrib/bin/pip install "opencv-contrib-python-headless<5"
    /tmp/contrib/bin/python tests/proposals/selective_search/make_opencv_partitions.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from generated import blobs, cases


def main() -> None:
    """Partitions of all cases, one after the other, and the boxes of selective searches of a larger image."""
    cv2.setNumThreads(1)
    segmentation = cv2.ximgproc.segmentation
    labels = []
    for _, image, k, sigma, least in cases():
        labels.append(segmentation.createGraphSegmentation(sigma, k, least).processImage(image).ravel())
    search = segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(blobs(150, 190, seed=3)[..., ::-1]))
    boxes = {}
    for mode, switch in (
        ("fast_boxes", search.switchToSelectiveSearchFast),
        ("quality_boxes", search.switchToSelectiveSearchQuality),
    ):
        switch()
        found = search.process()
        found[:, 2:] += found[:, :2]
        boxes[mode] = found.astype(np.uint8)[np.lexsort(found.T)]
    np.savez_compressed(
        Path(__file__).with_name("opencv_partitions.npz"),
        labels=np.concatenate(labels).astype(np.uint16),
        **boxes,
        version=np.array(cv2.__version__),
    )


if __name__ == "__main__":
    main()
