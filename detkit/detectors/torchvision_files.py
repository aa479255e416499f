"""torchvision's Faster R-CNNs as checkpoints of ours: by name, downloaded once, or from a file of a state dict.

What a file holds is known by its keys and shapes, which are compared with those of torchvision's own models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from detkit.__about__ import __version__
from detkit.engine.checkpoints import NOT_OURS, check_checkpoint
from detkit.engine.torchvision_detectors import ARCHITECTURES, name_in
from detkit.errors import CheckpointError
from detkit.settings import nested
from detkit.torch_files import read_torch_file

CLS_SCORE = "roi_heads.box_predictor.cls_score"
BBOX_PRED = "roi_heads.box_predictor.bbox_pred"
#: torchvision's name of a category number that COCO does not use; the network has a row for it.
UNUSED = "N/A"
#: Layers of torchvision's other detectors, which are none of the R-CNNs that there are here.
OTHERS = {
    "roi_heads.mask_": "a Mask R-CNN",
    "roi_heads.keypoint_": "a Keypoint R-CNN",
    "head.classification_head.": "a RetinaNet, an FCOS or an SSD",
}
COUNTER = "num_batches_tracked"
DETECTOR = "detkit.detectors.faster_rcnn.FasterRCNN"


def read_detector(path: str | Path) -> dict[str, Any]:
    """What `detkit.engine.checkpoints.restore` takes: a checkpoint of ours, or one made of torchvision's detector.

    Args:
        path: a checkpoint, the file of a torchvision Faster R-CNN's state dict, or ``torchvision:NAME``.

    Raises:
        CheckpointError: it cannot be read or downloaded, or is neither; or a state dict whose classes have no names.
    """
    name = name_in(path)
    if name is not None:
        return as_checkpoint(name, downloaded(name), str(path))
    content = read_torch_file(Path(path), CheckpointError, "Take another checkpoint of the run (best.ckpt, last.ckpt).")
    state = state_dict_in(content)
    if state is None or not is_detector(state, str(path)):
        return check_checkpoint(content, Path(path))
    return as_checkpoint(recognise(state, str(path)), state, str(path))


def state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """The state dict in a file's content, with today's names; None for a checkpoint of ours and for anything else."""
    if isinstance(content, Mapping) and "detkit" in content:
        return None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        return None
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        return None
    return with_current_names(content)


def with_current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which the layers that torchvision 0.13 and earlier named otherwise have their names of today."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", key)
        key = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)
        renamed[key] = value
    return renamed


def is_detector(state: Mapping[str, Tensor], where: str) -> bool:
    """Whether a state dict is of a Faster R-CNN; a CheckpointError where it is of another detector of torchvision's."""
    for prefix, kind in OTHERS.items():
        if any(key.startswith(prefix) for key in state):
            raise CheckpointError(f"{where}: holds {kind} of torchvision's; known are {', '.join(ARCHITECTURES)}")
    return f"{CLS_SCORE}.weight" in state


def recognise(state: Mapping[str, Tensor], where: str, min_size: Any = None) -> str:
    """The name in `ARCHITECTURES` of a Faster R-CNN's state dict.

    The two of MobileNetV3 have the same tensors: 320 is meant where the file's name says so (``where``), or the wanted
    ``min_size`` of the images.

    Raises:
        CheckpointError: it is none of them; the message names the tensors that differ from the nearest.
    """
    small = "320" in Path(where).name or min_size in (320, [320])
    if any(key.startswith("backbone.body.layer1.") for key in state):
        name = "fasterrcnn_resnet50_fpn" + ("_v2" if "rpn.head.conv.1.0.weight" in state else "")
    else:
        name = f"fasterrcnn_mobilenet_v3_large{'_320' if small else ''}_fpn"
    with torch.device("meta"):  # shapes without numbers
        rows = len(state[f"{CLS_SCORE}.weight"])
        network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=rows)
    wanted = {key: value.shape for key, value in network.state_dict().items() if not key.endswith(COUNTER)}
    found = {key: value.shape for key, value in state.items() if not key.endswith(COUNTER)}
    differing = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
    if differing:
        raise CheckpointError(
            f"{where}: not a checkpoint written by detkit, and a detector that is none of torchvision's "
            f"{', '.join(ARCHITECTURES)}: beside {name}, {len(differing)} tensors differ "
            f"({', '.join(differing[:3])}{', ...' if len(differing) > 3 else ''})"
        )
    return name


def settings_of(name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of `FasterRCNN` for a state dict of torchvision's detector of that name, nested.

    Batch norms without a counter were fixed ones. torchvision sets their epsilon to 0 where it loads its own COCO
    weights of the ResNet-50-FPN; a state dict does not say so, but it has 91 classes.
    """
    settings = {"rpn__min_size": 1e-3, **ARCHITECTURES[name]}
    if not any(key.startswith("backbone.body.") and key.endswith(COUNTER) for key in state):
        settings["features__freeze_batch_norm"] = True
        if name == "fasterrcnn_resnet50_fpn" and class_names_of(name, state) is not None:
            settings["features__batch_norm_eps"] = 0.0
    return nested(settings)


def class_names_of(name: str, state: Mapping[str, Tensor]) -> list[str] | None:
    """COCO's names for the rows 1, 2, ... of the predictor, some of them `UNUSED`; None for other numbers of rows."""
    categories = torchvision.models.get_model_weights(name).DEFAULT.meta["categories"]
    return list(categories[1:]) if len(state[f"{CLS_SCORE}.weight"]) == len(categories) else None


def as_checkpoint(name: str, state: dict[str, Tensor], where: str) -> dict[str, Any]:
    """A checkpoint of `FasterRCNN` for COCO's 80 classes, without the rows of numbers that COCO does not use.

    Raises:
        CheckpointError: the classes are not COCO's, so that their names are not known.
    """
    names = class_names_of(name, state)
    if names is None:
        raise CheckpointError(
            f"{where}: holds {name} for {len(state[f'{CLS_SCORE}.weight']) - 1} classes, and their names are not in "
            f"the file. In Python, FasterRCNN.from_torchvision({name!r}, state_dict, class_names) takes it as it is; "
            "--model.init_from (FasterRCNN.from_pretrained) teaches it other classes"
        )
    ids = [number for number, each in enumerate(names, start=1) if each != UNUSED]
    rows, state = torch.tensor([0, *ids]), dict(state)
    for layer, size in ((CLS_SCORE, 1), (BBOX_PRED, 4)):
        for key in (f"{layer}.weight", f"{layer}.bias"):
            state[key] = state[key].unflatten(0, (-1, size))[rows].flatten(0, 1)
    arguments = {**settings_of(name, state), "class_names": [names[i - 1] for i in ids], "category_ids": ids}
    about = {"class": DETECTOR, "version": __version__, "torchvision": name}
    return {"detkit": about, "hyper_parameters": arguments, "state_dict": state}


def downloaded(name: str) -> dict[str, Tensor]:
    """torchvision's COCO weights of a detector, from torch's cache or, the first time, from torchvision's server.

    Raises:
        CheckpointError: the download fails, or the file's SHA-256 is not the one that its name tells.
    """
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    expected = re.search(r"-([0-9a-f]{8,})\.", file.name)[1]
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), expected)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: the checksum differs
            raise CheckpointError(
                f"torchvision:{name}: {url} could not be downloaded ({error}). Download it elsewhere and put it at "
                f"{file}, or give the file's path instead of the name"
            ) from error
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise CheckpointError(
            f"torchvision:{name}: {file} is damaged or another file: its SHA-256 begins with {digest[:8]}, not with "
            f"{expected}. Delete it, and it is downloaded again"
        )
    state = state_dict_in(read_torch_file(file, CheckpointError, "Delete it, and it is downloaded again"))
    if state is None or not is_detector(state, str(file)):
        raise CheckpointError(f"torchvision:{name}: {file}: {NOT_OURS}")
    return state
