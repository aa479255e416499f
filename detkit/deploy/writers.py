"""The formats: ONNX, OpenVINO, and PyTorch's own. Each writer is given a traced detector and a new file's path."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.export import ExportedProgram

from detkit.boxes.suppression import together
from detkit.deploy.description import KEY, OUTPUTS, Description
from detkit.deploy.quantization import quantize
from detkit.deploy.runtime import import_openvino
from detkit.errors import ConfigError
from detkit.features.roi_align import weighted_sums

OPSET = 18


@dataclass(frozen=True)
class Numbers:
    """How a file's numbers are kept.

    Args:
        int8: images with which the ranges of 8-bit integers are found; empty: float32. See `quantize`.
        half: the weights take half as much room (float16), of OpenVINO; it computes in float32.
    """

    int8: Sequence[str] = ()
    half: bool = False


def write_onnx(program: ExportedProgram, description: Description, path: Path, numbers: Numbers = Numbers()) -> None:
    """By PyTorch's exporter, with the operations that it does not know."""
    if numbers.int8:
        with needed("onnxruntime"), TemporaryDirectory() as folder:
            import onnxruntime  # noqa: F401  before the work begins

            write_onnx(program, description, Path(folder, path.name))
            quantize(Path(folder, path.name), numbers.int8, description, path)
        return
    with needed("onnx", "onnxscript"), _quiet():
        import onnxscript  # noqa: F401  torch imports it
        from torch.onnx import OnnxExporterError, export

        from detkit.deploy.onnx_operators import TABLE

        try:
            result = export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=TABLE,
                input_names=list(description.inputs),
                output_names=list(OUTPUTS),
                verbose=False,
            )
        except OnnxExporterError as error:
            reason = str(error.__cause__ or error).splitlines()[0][:200]
            raise ConfigError(
                f"PyTorch's exporter does not write this detector: {reason}; PyTorch is {torch.__version__}, a newer "
                "one may do it"
            ) from error
        result.model.metadata_props[KEY] = description.to_json()
        result.model.producer_name, result.model.producer_version = "detkit", description.version
        result.save(str(path))


def write_openvino(
    program: ExportedProgram, description: Description, path: Path, numbers: Numbers = Numbers()
) -> None:
    """By OpenVINO's own reader of ONNX; the weights lie beside ``path``, in a file with the suffix .bin."""
    with needed("openvino"), TemporaryDirectory() as folder:
        import_openvino()  # before the work begins
        file = Path(folder, "model.onnx")
        write_onnx(program, description, file, numbers)
        convert_onnx(file, description, path, numbers.half)


def convert_onnx(file: Path, description: Description, path: Path, half: bool = False) -> None:
    """From ONNX to OpenVINO, by the reader of its runtime: ``openvino.convert_model`` would send telemetry."""
    openvino = import_openvino()
    model = openvino.Core().read_model(str(file))
    model.set_rt_info(description.to_json(), KEY)
    openvino.save_model(model, str(path), compress_to_fp16=half)


def write_torch(program: ExportedProgram, description: Description, path: Path, numbers: Numbers = Numbers()) -> None:
    """A file for `torch.export.load`, which needs torch and torchvision."""
    ours = {
        torch.ops.detkit.kept_by_nms.default: together,
        torch.ops.detkit.multiscale_roi_align.default: weighted_sums,
        torch.ops.detkit.as_symbol.default: lambda size: size,
    }
    program = program.run_decompositions(ours)
    torch.export.save(program, str(path), extra_files={f"{KEY}.json": description.to_json()})


#: By the name of the format: the writer, and the suffix of its file.
FORMATS: dict[str, tuple[Callable[[ExportedProgram, Description, Path, Numbers], None], str]] = {
    "onnx": (write_onnx, ".onnx"),
    "openvino": (write_openvino, ".xml"),
    "torch_export": (write_torch, ".pt2"),
}


@contextmanager
def needed(*packages: str) -> Iterator[None]:
    """Turn a package that is not installed into a ConfigError that names the extra."""
    try:
        yield
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in packages:
            raise
        raise ConfigError(f"{error.name} is not installed: pip install onnx onnxscript onnxruntime openvino") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own working."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
