"""Exported detectors, run by ONNX Runtime or OpenVINO; torch is not imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.data.image_io import as_array
from detkit.deploy.description import KEY, OUTPUTS, Description
from detkit.detections import Detections, Selection
from detkit.errors import CheckpointError, ConfigError, ImageTypeError
from detkit.settings import check_range

if TYPE_CHECKING:
    from detkit.data.image_io import ImageLike

#: A function of the graph's inputs that gives its outputs, and what the file says of itself.
Opened = tuple[Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]], Description]


class ExportedModel:
    """A detector that `detkit export` has written.

    Args:
        path: an .onnx file, or the .xml file of OpenVINO.
        device: cpu or, with ONNX Runtime for GPUs, cuda.
        threads: on the CPU; by default as many as the runtime takes.

    Attributes:
        path, description: the file, and what it says of itself.
        runtime: onnxruntime or openvino.
        class_names: the classes, without background, in the order of the labels.

    Raises:
        CheckpointError: the file is missing or damaged, or `detkit export` has not written it.
        ConfigError: no runtime that reads it is installed.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "cpu", threads: int | None = None) -> None:
        check_range("threads", threads, 1)
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{path}: no such file")
        if device.partition(":")[0] not in ("cpu", "cuda"):
            raise ConfigError(f"device {device}: an exported detector runs on cpu or cuda")
        self.runtime, (self._run, self.description) = _open(self.path, device, threads)
        self.class_names = self.description.class_names

    def __repr__(self) -> str:
        return f"ExportedModel({str(self.path)!r}, {self.runtime})"

    def detect(self, images: np.ndarray, proposals: np.ndarray | None = None) -> list[Detections]:
        """Detections, as NumPy arrays, of images of one size, uint8 (N, 3, H, W); of Fast R-CNN of one image.

        Raises:
            ImageTypeError: for other images.
            ConfigError: for proposals (P, 4) that are missing, of another shape, or not wanted.
        """
        wants = len(self.description.inputs) > 1
        if wants != (proposals is not None):
            what = "needs proposals, an array (P, 4) for each image" if wants else "makes its own proposals"
            raise ConfigError(f"{self.path}: this {self.description.detector} {what}")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.size:
            raise ImageTypeError(
                f"images are a {images.dtype} array of shape {images.shape}; wanted is uint8 of shape (N, 3, H, W)"
            )
        inputs = [images]
        if proposals is not None:
            proposals = np.asarray(proposals)
            if proposals.ndim != 2 or proposals.shape[1] != 4 or len(images) != 1:
                raise ConfigError(f"proposals of shape {proposals.shape}: wanted is (P, 4), for one image")
            if not len(proposals):  # ONNX Runtime would divide by their number
                nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
                return [self._named(nothing)]
            inputs.append(proposals[: self.description.max_proposals or None].astype(np.float32))
        *fields, image = self._run(inputs)
        return [self._named([values[image == i] for values in fields]) for i in range(len(images))]

    def _named(self, fields: Sequence[np.ndarray]) -> Detections:
        named = dict(zip(OUTPUTS, fields, strict=False))
        return Detections(named, self.class_names, self.description.category_ids)

    def predict(
        self,
        images: ImageLike | list[ImageLike],
        score_threshold: float = 0.0,
        batch_size: int = 1,
        classes: Sequence[str] | None = None,
        agnostic_nms: bool = False,
        tiles: int | None = None,
        overlap: float = 0.2,
        proposals: np.ndarray | list[np.ndarray] | None = None,
    ) -> Detections | list[Detections]:
        """Detect objects.

        Args:
            images: a path, PIL image, uint8 RGB array (H, W, 3) or uint8 tensor (3, H, W), or a list of them.
            score_threshold: leave out detections with a lower score (0-1); the graph's own threshold holds besides.
            batch_size: images of one size that go through the graph together, where they follow each other.
            classes: names of the classes that are kept; None keeps all.
            agnostic_nms, tiles, overlap: see `Detector.predict`; they need torch.
            proposals: of Fast R-CNN: boxes (P, 4) in the image's pixels, or a list with those of each image.

        Returns:
            Of each image ``boxes`` (N, 4) in its own pixels, ``scores`` (N,) and ``labels`` (N,) from 1, best first, as
            NumPy arrays.

        Raises:
            ImageTypeError, DataError: for an image that is none, or cannot be read.
            ConfigError: a class that there is not, a number out of its range, or missing proposals.
        """
        check_range("score_threshold", score_threshold, 0, 1)
        check_range("batch_size", batch_size, 1)
        many = isinstance(images, list | tuple)
        inputs = list(images) if many else [images]
        if agnostic_nms or tiles is not None:
            from detkit.deploy.tensors import predict_by_torch
            from detkit.detectors.tiles import TileSettings

            if proposals is not None:
                raise ConfigError("proposals do not go with agnostic_nms or tiles")
            selection = Selection(score_threshold, classes, agnostic_nms)
            cut = None if tiles is None else TileSettings(tiles, overlap)
            found = predict_by_torch(self.detect, self.class_names, inputs, selection, cut)
            found = [self._named([each[name].numpy() for name in OUTPUTS[:3]]) for each in found]
            return found if many else found[0]
        if proposals is not None:
            boxes = list(proposals) if many else [proposals]
            if len(boxes) != len(inputs):
                raise ConfigError(f"proposals of {len(boxes)} images for {len(inputs)} images")
            batches = ((_planar([as_array(image)]), rows) for image, rows in zip(inputs, boxes, strict=True))
        else:
            batches = ((batch, None) for batch in _batches(inputs, batch_size))
        found = [each for batch, rows in batches for each in self.detect(batch, rows)]
        found = [each.filter(score_threshold, classes) for each in found]
        return found if many else found[0]


def open_without_proposals(path: str | os.PathLike[str]) -> ExportedModel:
    """The detector of a file, for a command.

    Raises:
        CheckpointError, ConfigError: as `ExportedModel`, or the detector wants proposals.
    """
    model = ExportedModel(path)
    if len(model.description.inputs) > 1:
        raise ConfigError(
            f"{path}: an exported {model.description.detector} wants proposals with each image, and commands have "
            "none; use its checkpoint, or detkit.load(...).predict(image, proposals=boxes) in Python"
        )
    return model


def _batches(images: Sequence[Any], size: int) -> Any:
    """Arrays (N, 3, H, W) of images that follow each other and are of one size, at most ``size`` of them."""
    arrays = (as_array(image) for image in images)
    for _, alike in groupby(arrays, lambda array: array.shape):
        batch: list[np.ndarray] = []
        for array in alike:
            batch.append(array)
            if len(batch) == size:
                yield _planar(batch)
                batch = []
        if batch:
            yield _planar(batch)


def _planar(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) of one size as (N, 3, H, W)."""
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


# -- runtimes ----------------------------------------------------------------------------------


def _open(path: Path, device: str, threads: int | None) -> tuple[str, Opened]:
    """Open a file by the first runtime that is installed and reads it."""
    readers = (
        {"openvino": _openvino} if path.suffix.lower() == ".xml" else {"onnxruntime": _onnx, "openvino": _openvino}
    )
    for name, reader in readers.items():
        try:
            return name, reader(path, device, threads)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise ConfigError(f"{path}: needs {' or '.join(readers)}: pip install {next(iter(readers))}")


def _onnx(path: Path, device: str, threads: int | None) -> Opened:
    import onnxruntime

    name, _, number = device.partition(":")
    providers: list[Any] = ["CPUExecutionProvider"]
    if name == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number or "0"}))
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # of the runtime's own classes, which have no common base
        raise CheckpointError(f"{path}: is damaged, or no ONNX file ({_first_line(error)})") from error
    if name == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":  # it falls back without a word
        raise ConfigError(
            f"device {device}: this ONNX Runtime cannot use CUDA; it needs onnxruntime-gpu and CUDA's libraries"
        )
    description = Description.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), path)

    def run(inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return session.run(list(OUTPUTS), dict(zip(description.inputs, inputs, strict=True)))

    return run, description


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry, which it would import."""
    hide = "openvino_telemetry" not in sys.modules
    if hide:
        modules: dict[str, Any] = sys.modules
        modules["openvino_telemetry"] = None  # that is: it cannot be imported
    try:
        import openvino
    finally:
        if hide:
            del sys.modules["openvino_telemetry"]
    return openvino


def _openvino(path: Path, device: str, threads: int | None) -> Opened:
    openvino = import_openvino()
    if device != "cpu":
        raise ConfigError(f"device {device}: OpenVINO runs on the CPU")
    try:
        model = openvino.Core().read_model(str(path))
        known = model.has_rt_info([KEY]) or model.has_rt_info(["framework", KEY])
        where = [KEY] if model.has_rt_info([KEY]) else ["framework", KEY]
        text = str(model.get_rt_info(where).astype(str)) if known else None
        description = Description.from_json(text, path)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or 0}
        compiled = openvino.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: is damaged, or no file of OpenVINO ({_first_line(error)})") from error

    def run(inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        request = compiled.create_infer_request()  # one for each call: threads may not share it
        results = request.infer(dict(zip(description.inputs, inputs, strict=True)))
        return [results[name] for name in OUTPUTS]

    return run, description


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
