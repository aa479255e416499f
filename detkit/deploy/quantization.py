"""An exported detector in 8-bit integers: static quantisation by ONNX Runtime, with its own tool."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detkit.data.image_io import as_array
from detkit.deploy.description import IMAGES, Description
from detkit.errors import ConfigError, DataError

#: Layers whose outputs are scores and boxes; with the first convolutions they stay in float32.
LAST_LAYERS = ("cls_logits", "bbox_pred", "cls_score")
#: So many: MobileNetV2's up to stride 4. In 8 bits they alone cost it 3 points of AP (benchmarks/results/int8_bccd.md).
FIRST_LAYERS = 6
#: Images that calibration reads at most, spread evenly. Rare values widen the ranges: 100 images cost 0.4 points of AP
#: (benchmarks/results/int8_bccd.md).
MOST_IMAGES = 50
#: Operations with weights.
WEIGHTED = ("Conv", "Gemm", "MatMul")


def quantize(file: Path, images: Sequence[str], description: Description, path: Path) -> None:
    """Write an ONNX file of ours anew with convolutions and linear layers in 8 bits (QDQ, weights by channel).

    Args:
        file: in float32, its batch norms folded into convolutions: where they are not, accuracy is lost.
        images: files such as the detector will see, from which the ranges of activations are taken.
        description: of the file.
        path: the new file.

    Raises:
        ConfigError: the detector has more inputs than images.
        DataError: an image cannot be read, or there is none.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    if description.inputs != (IMAGES,):
        raise ConfigError(f"int8: a {description.detector}, which needs proposals, cannot be calibrated with images")
    if not images:
        raise DataError("int8: there are no images to calibrate with")
    count = min(len(images), MOST_IMAGES)
    chosen = iter([images[i * len(images) // count] for i in range(count)])

    class Images(CalibrationDataReader):
        """One image after the other, as the runtime asks for them."""

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(chosen, None)
            return None if image is None else {IMAGES: np.ascontiguousarray(as_array(image).transpose(2, 0, 1)[None])}

    nodes = [node for node in onnx.load(str(file), load_external_data=False).graph.node if node.op_type in WEIGHTED]
    kept = [node.name for node in nodes if any(layer in node.input[1] for layer in LAST_LAYERS)]
    first = [node.name for node in nodes if node.op_type == "Conv"][:FIRST_LAYERS]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises to fold batch norms
    try:
        quantize_static(
            str(file),
            str(path),
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(WEIGHTED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*first, *kept],
        )
    finally:
        logging.disable(level)
