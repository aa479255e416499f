"""Weights for a classification network: by torchvision's name, or from a local file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torchvision
from torch import Tensor, nn

from detkit.errors import WeightsError
from detkit.features.architectures import architecture
from detkit.torch_files import read_torch_file


class Loaded(NamedTuple):
    """What a classification network was given.

    Attributes:
        source: where from, in words.
        tensors: so many were taken over.
        left_out: name of a last layer that was not; "" where there is none.
        crop_size: pixels a side of the images that the weights were trained with; None where it is not known.
    """

    source: str
    tensors: int
    left_out: str
    crop_size: int | None = None

    def __str__(self) -> str:
        rest = f"; left out: {self.left_out}, its last layer" if self.left_out else ""
        return f"{self.tensors} tensors from {self.source}{rest}"


def load_classification_weights(network: nn.Module, name: str, weights: str, classify: bool = False) -> Loaded:
    """Load weights into a classification network, in place and strictly, and say what was loaded.

    Args:
        network: as `detkit.features.architectures.classification_network` builds it.
        name: the backbone's name, for torchvision's table of weights and for messages.
        weights: ``DEFAULT``, a torchvision weight name such as ``IMAGENET1K_V1`` (both are downloaded once by
            torchvision), or the path of a file: a state dict of the network, or a checkpoint of `ImageClassifier`.
        classify: the last layer is of use, too: that of a backbone will be cut off.

    Raises:
        WeightsError: if the name or the file does not exist, the file holds more than tensors, or keys or
            shapes do not fit; the message names them. A last classifier of another number of classes is fine.
    """
    path, source, crop_size = Path(weights).expanduser(), weights, architecture(name).crop_size
    if path.is_file():
        content = _read(path)
        if isinstance(content, dict) and isinstance(content.get("detkit"), dict):
            state = _of_classifier(content, name, path)
            crop_size = content.get("hyper_parameters", {}).get("crop_size", crop_size)
        else:
            state = _state_dict(content, path)
    elif path.is_dir():
        file = _newest_checkpoint(path)
        hint = f"name a file in it{f', such as {file}' if file else ', of which none is a checkpoint'}"
        raise WeightsError(f"weights {weights} is a folder; {hint}")
    elif path.suffix in {".pth", ".pt", ".ckpt", ".bin"} or path.name != weights:
        what = "is no file" if path.exists() else "does not exist"
        raise WeightsError(f"weights file {weights} {what}")
    else:
        state = _torchvision_weights(name, weights)
        source = f"torchvision's {torchvision.models.get_model_weights(name)[weights].name}"
    last = last_layer(network)
    taken = fit_state_dict(network, state, source=weights, optional=last)
    if not classify:
        taken = [key for key in taken if not key.startswith(last)]
    left_out = any(key.startswith(last) for key in state) and not any(key.startswith(last) for key in taken)
    return Loaded(f"{source} ({name})", len(taken), last[0].rstrip(".") if left_out else "", crop_size)


def last_layer(network: nn.Module) -> tuple[str, ...]:
    """The prefix of the last classifier, which knows the classes of its own training set and is in no detector."""
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) or n.startswith("classifier.")]
    layers = [n for n in layers if any(True for _ in network.get_submodule(n).parameters(recurse=False))]
    return (f"{layers[-1]}.",)


def _newest_checkpoint(folder: Path) -> Path | None:
    """The best checkpoint, else any, of the newest version in a run's folder that has one; None if none has."""
    places = ("*.ckpt", "checkpoints/*.ckpt", "version_*/checkpoints/*.ckpt")
    files = [file for place in places for file in folder.glob(place)]

    def newest_and_best(file: Path) -> tuple[int, bool, str]:
        version = file.parent.parent.name.removeprefix("version_")
        return int(version) if version.isdecimal() else -1, file.name == "best.ckpt", file.name

    return max(files, key=newest_and_best, default=None)


def load_state_dict_file(module: nn.Module, weights: str, name: str, optional: tuple[str, ...] = ()) -> Loaded:
    """Load a local file of tensors into a module of timm's or of a user's own, in place and strictly.

    Args:
        weights: the file's path; ``{"state_dict": ...}`` and ``{"model": ...}`` are opened.
        name: the module's, for messages.
        optional: prefixes of what may be missing or left over, such as a last layer.

    Raises:
        WeightsError: if there is no such file, it holds more than tensors, or keys or shapes do not fit.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(f"weights {weights} of {name}: there is no such file; give the path of a local state dict")
    state = _state_dict(_read(path), path)
    taken = fit_state_dict(module, state, source=weights, optional=optional)
    return Loaded(f"{weights} ({name})", sum(not key.startswith(optional) for key in taken), "")


def _read(path: Path) -> Any:
    hint = "Weights are a state dict of tensors, written by torch.save(model.state_dict(), file)"
    return read_torch_file(path, WeightsError, hint)


def _state_dict(state: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise WeightsError(f"weights file {path} holds a {type(state).__name__}, not a state dict of tensors")
    return state


def _of_classifier(checkpoint: dict[str, Any], name: str, path: Path) -> dict[str, Tensor]:
    """The network's weights in a checkpoint of `ImageClassifier`; not of a detector, nor of another backbone."""
    model = str(checkpoint["detkit"].get("class")).rpartition(".")[2]
    if model != "ImageClassifier":
        raise WeightsError(
            f"weights file {path} is a checkpoint of a {model}; a backbone is initialised from one of "
            "ImageClassifier, torchvision's weights or a state dict"
        )
    backbone = checkpoint.get("hyper_parameters", {}).get("backbone", "lenet5")
    if backbone != name:
        raise WeightsError(f"weights file {path} holds a {backbone}, the model's backbone is {name}")
    state = _state_dict(checkpoint, path)
    return {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}


def fit_state_dict(
    network: nn.Module, state: dict[str, Tensor], source: str, optional: tuple[str, ...] = ()
) -> list[str]:
    """`load_state_dict`, strict; the keys of what was taken over, without the counters of batch norms.

    Keys that begin with one of ``optional`` may be missing, left over or of another shape: those are skipped.

    Raises:
        WeightsError: naming up to three missing, unexpected and misshapen keys each.
    """
    wanted = network.state_dict()
    counter = "num_batches_tracked"  # absent from frozen batch norms
    needed = {k: v for k, v in wanted.items() if not k.startswith(optional)}
    missing = [k for k in needed if k not in state and not k.endswith(counter)]
    unexpected = [k for k in state if k not in wanted and not k.startswith(optional) and not k.endswith(counter)]
    misshapen = [
        f"{k}: {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in needed.items()
        if k in state and state[k].shape != v.shape
    ]
    kinds = ((missing, "are missing"), (unexpected, "are not in the network"), (misshapen, "have another shape"))
    problems = [
        f"{len(keys)} keys {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for keys, what in kinds
        if keys
    ]
    if problems:
        raise WeightsError(f"weights {source} do not fit {type(network).__name__}: " + "; ".join(problems))
    taken = {k: v for k, v in state.items() if k in wanted and v.shape == wanted[k].shape}
    network.load_state_dict(taken, strict=False)
    return [k for k in taken if not k.endswith(counter)]


def _torchvision_weights(name: str, weights: str) -> dict[str, Tensor]:
    try:
        known = torchvision.models.get_model_weights(name)
    except ValueError as error:
        raise WeightsError(f"torchvision has no weights for {name}; use weights: null or a local file") from error
    if weights not in known.__members__:
        names = ", ".join(known.__members__)
        raise WeightsError(f"weights {weights!r} of {name}: no such file, and torchvision has only {names}")
    try:
        return known[weights].get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the checksum differs
        raise WeightsError(
            f"weights {weights} of {name} could not be downloaded ({error}); download them elsewhere and give "
            "the file: --model.weights FILE, in Python weights=FILE"
        ) from error
