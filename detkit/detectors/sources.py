"""Sources of initial weights for a detector: where they are, what they hold, and the settings that come with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from detkit.detectors.torchvision_files import (
    CLS_SCORE,
    COUNTER,
    class_names_of,
    downloaded,
    is_detector,
    recognise,
    settings_of,
    state_dict_in,
)
from detkit.engine.checkpoints import NOT_OURS, check_checkpoint, find_checkpoint, hyper_parameters
from detkit.engine.torchvision_detectors import name_in
from detkit.errors import CheckpointError, WeightsError
from detkit.features.architectures import ARCHITECTURES, classification_network
from detkit.features.backbones import is_named
from detkit.features.weights import last_layer
from detkit.settings import parameters_of, to_plain
from detkit.torch_files import read_torch_file

#: The arguments of a detector's constructor that say how it is built and what it makes of an image.
ARCHITECTURE = ("backbone", "features", "image", "anchors", "rpn", "roi")
#: What an R-CNN and the other generations have in common of these; crops and feature maps are built otherwise.
OF_ANY = ("backbone", "image")
NORMALISATION = ("mean", "std")
#: The names of the networks that a state dict is compared with, those in wide use first.
NETWORKS = list(ARCHITECTURES)


@dataclass(frozen=True)
class Source:
    """Initial weights of a detector.

    Args:
        name: the source, for messages.
        kind: what it is, in words.
        state: its tensors by name.
        settings: arguments of the constructor, nested, as far as they are known; some of `ARCHITECTURE`.
        class_names: of the predictor's rows 1, 2, ...; None where it has none or their names are not known.
        frozen: whether its backbone's batch norms were a fixed scale and shift; None: not known.
        notes: what was assumed.
    """

    name: str
    kind: str
    state: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    class_names: list[str] | None = None
    frozen: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def reads_crops(self) -> bool:
        """Whether it is an R-CNN, whose network reads crops."""
        return any(key.startswith("network.") for key in self.state)


def read_source(source: str | PathLike[str] | Mapping[str, Tensor], given: Mapping[str, Any] | None = None) -> Source:
    """Read the source of a detector's initial weights.

    Args:
        source: a run's folder or a checkpoint of ours (a detector's, or `ImageClassifier`'s), the file of a state dict
            (one of torchvision's Faster R-CNNs, or a classification network that may be a backbone),
            ``torchvision:NAME``, or a state dict.
        given: the user's own settings, nested: they tell the backbone where its tensors do not.

    Raises:
        CheckpointError: there is no such file, it cannot be read or downloaded, or holds something else.
        ConfigError: torchvision has no such detector.
    """
    given = given or {}
    if isinstance(source, Mapping):
        state = state_dict_in(source)
        if state is None:
            raise CheckpointError("the source is a mapping, but not a state dict of tensors")
        return _of_state_dict(state, "the state dict", given)
    name = name_in(source)
    if name is not None:
        return _of_torchvision(name, downloaded(name), str(source))
    path = find_checkpoint(source).path
    content = read_torch_file(path, CheckpointError, "Take another checkpoint, or the file of a state dict of tensors")
    state = state_dict_in(content)
    if state is not None:
        return _of_state_dict(state, str(path), given)
    return _of_checkpoint(check_checkpoint(content, path), str(path))


def _of_checkpoint(checkpoint: dict[str, Any], name: str) -> Source:
    arguments, state = to_plain(hyper_parameters(checkpoint)), checkpoint["state_dict"]
    kind = checkpoint["detkit"]["class"].rpartition(".")[2]
    class_names = arguments.get("class_names")
    if not isinstance(class_names, list) or not all(isinstance(each, str) for each in class_names):
        raise CheckpointError(f"{name}: is damaged: it holds no class_names.")
    settings = {each: arguments[each] for each in ARCHITECTURE if each in arguments}
    if kind == "ImageClassifier":
        state = {key.removeprefix("network."): value for key, value in state.items()}
        settings = {"backbone": arguments.get("backbone", "lenet5")}
        settings["image"] = {each: arguments[f"image_{each}"] for each in NORMALISATION if f"image_{each}" in arguments}
        return Source(name, f"{name}, an {kind}", state, settings)
    features = settings.get("features")
    frozen = features.get("freeze_batch_norm") if isinstance(features, Mapping) else None
    return Source(name, f"{name}, a {kind}", state, settings, class_names, frozen)


def _of_state_dict(state: dict[str, Tensor], name: str, given: Mapping[str, Any]) -> Source:
    if is_detector(state, name):
        image = given.get("image") or {}
        found = recognise(state, name, image.get("min_size"))
        notes: tuple[str, ...] = ()
        if "mobilenet" in found and "320" not in found:
            notes = (
                "read as the detector for 800 pixels; the one for 320 has the same tensors: set image.min_size 320",
            )
        return _of_torchvision(found, state, name, notes)
    backbone = given.get("backbone")
    known = [backbone] if isinstance(backbone, str) and is_named(backbone) else NETWORKS
    network = next((each for each in known if len(known) == 1 or _is_network(each, state)), None)
    if network is None:
        raise CheckpointError(f"{name}: {NOT_OURS}; its first tensor is {next(iter(state))}")
    return Source(name, f"{name}, a classification network ({network})", state, {"backbone": network})


def _is_network(backbone: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the tensors of that classification network, apart from its last layer."""
    with torch.device("meta"):  # shapes without numbers
        network = classification_network(backbone)
    last = last_layer(network)
    wanted = {k: v.shape for k, v in network.state_dict().items() if not k.startswith(last) and not k.endswith(COUNTER)}
    return all(key in state and state[key].shape == shape for key, shape in wanted.items())


def _of_torchvision(name: str, state: Mapping[str, Tensor], where: str, notes: tuple[str, ...] = ()) -> Source:
    settings = settings_of(name, state)
    features = settings.setdefault("features", {})
    frozen = features.get("freeze_batch_norm", False)
    features["freeze_batch_norm"] = True  # the batches of a fine-tuning are small
    kind = where if name_in(where) else f"{where}, torchvision's {name}"
    class_names = class_names_of(name, state)
    if class_names is None:
        count = len(state[f"{CLS_SCORE}.weight"]) - 1
        notes += (f"the source does not say the names of its {count} classes, so all are new",)
    return Source(where, kind, state, settings, class_names, frozen, notes=notes)


def settings_for(cls: type, source: Source, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, nested, of a detector that is initialised from a source: the source's, overridden by ``given``.

    Arguments that the class does not have are left out. From another kind of network (R-CNN's reads crops) only the
    backbone and the normalisation of images are used.

    Raises:
        WeightsError: another backbone is given than the source has.
    """
    result, known = dict(given), parameters_of(cls)
    backbone = source.settings.get("backbone", given.get("backbone"))
    if given.get("backbone", backbone) != backbone:
        raise WeightsError(
            f"{source.name}: model.backbone is {given['backbone']}, the source's is {backbone}. Remove this "
            "setting to use the source's"
        )
    same_kind = source.reads_crops == ("crop" in known)
    for name, value in source.settings.items():
        if name not in (ARCHITECTURE if same_kind else OF_ANY) or name not in known:
            continue
        own = given.get(name)
        default = known[name][1]
        if not is_dataclass(default) or not isinstance(value, Mapping):
            result[name] = value if own is None else own
            continue
        names = [each.name for each in fields(default)]
        if not same_kind:
            names = [each for each in names if each in NORMALISATION]
        result[name] = {k: v for k, v in value.items() if k in names} | dict(own or {})
    return result
