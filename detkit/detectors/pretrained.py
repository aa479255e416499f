"""Initialise a detector from another network: copy every tensor that fits, and report what was copied and what not.

A `Source` is a state dict with its settings and class names, as far as they are known. `transfer` copies its tensors
into a new detector. Layers of a backbone are compared by their names in the whole classification network, so that a
layer is found where another generation has it in another part: ResNet's conv5 is the head of a detector without a
pyramid, and belongs to the backbone of one that has it.

Rows of the predictor belong to classes. The rows of a class that both have by the same name are copied; the rows of
other classes are new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from detkit.detectors.sources import Source
from detkit.detectors.torchvision_files import (
    BBOX_PRED,
    CLS_SCORE,
    COUNTER,
)
from detkit.errors import WeightsError
from detkit.features.architectures import (
    architecture,
    classification_network,
    classifier_layers,
    convolution_layers,
)
from detkit.features.backbones import is_named
from detkit.settings import parameters_of, to_plain

#: The least share of a backbone's values that must be found in the source.
LEAST_SHARE = 0.9
RCNN_SCORE = "roi_heads.cls_score"
#: Where a backbone's convolutions are.
BODIES = ("backbone.body.", "network.backbone.body.")
#: Number of classes that are listed.
SHOWN_NAMES = 8


class Count(NamedTuple):
    """Number of tensors, and of the values in them."""

    tensors: int = 0
    numbers: int = 0

    def plus(self, numbers: int) -> Count:
        return Count(self.tensors + 1, self.numbers + numbers)

    def __str__(self) -> str:
        return f"{self.tensors} ({self.numbers:,})" if self.tensors else "-"


@dataclass
class Transfer:
    """What was copied from a source into a detector, and what was not.

    ``copied`` tensors are in the same part of the network as in the source, ``remapped`` ones in another part or with
    some of their rows, ``new`` ones keep their random initialisation; ``skipped`` ones are the source's, and not used.

    Args:
        source: its description.
        parts: part of the network -> column of the table -> count.
        lines: notes below the table.
    """

    COLUMNS = ("copied", "remapped", "new", "skipped")
    source: str
    parts: dict[str, dict[str, Count]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def add(self, part: str, column: str, numbers: int) -> None:
        """Count a tensor; the counters of batch norms are not counted."""
        row = self.parts.setdefault(part, dict.fromkeys(self.COLUMNS, Count()))
        row[column] = row[column].plus(numbers)

    def count(self, column: str, part: str | None = None) -> Count:
        """What is in a column, of one part or of all."""
        rows = self.parts.values() if part is None else [self.parts.get(part, {})]
        counts = [row.get(column, Count()) for row in rows]
        return Count(sum(c.tensors for c in counts), sum(c.numbers for c in counts))

    def __str__(self) -> str:
        """The table, of tensors and the values in them, and the lines below it."""
        rows = [["part", *self.COLUMNS]]
        rows += [[part, *(str(row[column]) for column in self.COLUMNS)] for part, row in sorted(self.parts.items())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        return "\n".join([f"initialised from {self.source}; tensors (values in them):", *table, *self.lines])


# -- the transfer -----------------------------------------------------------------------------------


def transfer(model: nn.Module, source: Source) -> Transfer:
    """Copy every tensor of a source that fits into a detector, in place; the other tensors keep their values.

    Args:
        model: with ``class_names`` and ``hparams``, as a `Detector` has them.

    Raises:
        WeightsError: less than `LEAST_SHARE` of the backbone is in the source; the message names what differs.
    """
    settings, result = to_plain(dict(model.hparams)), Transfer(source.kind)
    theirs, ours = _Names(source.settings), _Names(settings)
    available = {theirs(key): key for key in source.state if not key.startswith("rpn_backbone.")}
    used: set[str] = set()
    trunk, found = 0, 0
    plan: list[tuple[Tensor, Tensor]] = []
    rows = matching_rows(source.class_names, model.class_names)
    for key, tensor in model.state_dict().items():
        if key.endswith(COUNTER) or _is_predictor(key) or _is_statistic(key):
            continue
        # In alternating training the RPN's own backbone has the same initial weights.
        name = ours(key.removeprefix("rpn_"))
        origin = available.get(name)
        fits = origin is not None and source.state[origin].shape == tensor.shape
        if fits:
            plan.append((tensor, source.state[origin]))
            used.add(origin)
        same_part = fits and _part(origin, theirs) in (_part(key.removeprefix("rpn_")), "classifier")
        result.add(_part(key), "copied" if same_part else "remapped" if fits else "new", tensor.numel())
        if ours.in_trunk(name):
            trunk += tensor.numel()
            found += tensor.numel() * fits
    if found < LEAST_SHARE * trunk:
        raise WeightsError(_too_little(found / max(trunk, 1), source, settings, theirs, ours, model))
    with torch.no_grad():
        for tensor, value in plan:
            tensor.copy_(value)
        used |= _copy_predictor(model, source, rows, theirs, result)
    for key in source.state:
        if key not in used and not key.endswith(COUNTER):
            result.add(_part(key, theirs), "skipped", source.state[key].numel())
    result.lines = [*source.notes, *_class_lines(model, source, rows, result), *_lines(model, source, settings, result)]
    return result


class _Names:
    """A tensor's name in a detector -> its name in the whole classification network, where it is a layer of that one.

    Names of backbones that are not torchvision's, and of what a detector adds, stay as they are.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._prefixes: dict[str, str] = {}
        self._trunk: tuple[str, ...] = ("backbone.body.",)
        backbone = settings.get("backbone")
        if not isinstance(backbone, str) or not is_named(backbone):
            return
        spec = architecture(backbone)
        with torch.device("meta"):
            network = classification_network(backbone)
        names = {id(module): name for name, module in network.named_modules()}
        layers = {name: names[id(layer)] for name, layer in convolution_layers(backbone, network).items()}
        rest = {str(i): names.get(id(m)) for i, m in enumerate(classifier_layers(backbone, network)[1])}
        self._trunk += tuple(f"{name}." for name in layers.values())
        tops = {"network.top": rest}
        if (settings.get("roi") or {}).get("head") == "top":
            tops["roi_heads.box_head"] = rest if spec.fully_connected else layers
        for part, children in {"backbone.body": layers, "network.backbone.body": layers, **tops}.items():
            self._prefixes |= {f"{part}.{child}": name for child, name in children.items() if name is not None}

    def __call__(self, key: str) -> str:
        parts = key.split(".")
        for depth in (3, 4):
            prefix = ".".join(parts[:depth])
            if prefix in self._prefixes:
                return ".".join([self._prefixes[prefix], *parts[depth:]])
        return key.removeprefix("network.") if key.startswith("network.backbone.") else key

    def in_trunk(self, name: str) -> bool:
        """Whether this is the name of a convolution of the backbone."""
        return name.startswith(self._trunk)


def _is_predictor(key: str) -> bool:
    return ".".join(key.split(".")[:3]) in (CLS_SCORE, BBOX_PRED) or key.startswith(f"{RCNN_SCORE}.")


def _is_statistic(key: str) -> bool:
    """Box statistics of the training set, which are measured anew, and what R-CNN's later stages learn."""
    return key.startswith(("roi_heads.normalizer.", "roi_heads.svms.", "roi_heads.box_regressors."))


def _part(key: str, names: _Names | None = None) -> str:
    """The row of the table."""
    key = key.removeprefix("network.")
    if key.startswith("roi_heads.box_head."):
        return "box head"
    if _is_predictor(key):
        return "predictor"
    parts = key.split(".")
    if parts[0] in ("rpn", "top"):
        return parts[0]
    if parts[0] in ("backbone", "rpn_backbone", "roi_heads"):
        return ".".join(parts[:2])
    return "backbone.body" if names is not None and names.in_trunk(key) else "classifier"


# -- the predictor ----------------------------------------------------------------------------------


def matching_rows(before: list[str] | None, now: list[str]) -> dict[int, int]:
    """Row of the new predictor -> row of the source's, by the classes' names; background, 0, is in both."""
    rows = {0: 0}
    exact = {name: row for row, name in enumerate(before or [], start=1)}
    folded = {name.casefold(): row for name, row in reversed(exact.items())}
    for row, name in enumerate(now, start=1):
        found = exact.get(name, folded.get(name.casefold()))
        if found is not None:
            rows[row] = found
    return rows


def _copy_predictor(
    model: nn.Module, source: Source, rows: dict[int, int], names: _Names, result: Transfer
) -> set[str]:
    """Copy the rows of background and of the classes of the same names; the names of the source's tensors used."""
    state, used = model.state_dict(), set()
    new, old = torch.tensor(list(rows)), torch.tensor(list(rows.values()))
    theirs = RCNN_SCORE if source.reads_crops else CLS_SCORE
    widths = [
        part[f"{name}.weight"].shape[1:]
        for part in (source.state, state)
        for name in (CLS_SCORE, RCNN_SCORE)
        if f"{name}.weight" in part
    ]
    same_features = len(widths) == 2 and widths[0] == widths[1]
    for key in [key for key in state if _is_predictor(key)]:
        size = 4 if key.startswith(BBOX_PRED) else 1
        origin = key if size == 4 else f"{theirs}.{key.rpartition('.')[2]}"
        target = state[key].unflatten(0, (-1, size))
        if not same_features or origin not in source.state:
            result.add("predictor", "new", state[key].numel())
            continue
        values = source.state[origin].unflatten(0, (-1, size))
        if size == 4:
            values = _recoded(values, model, source, is_bias=key.endswith(".bias"))
            if values is None:
                result.add("predictor", "new", state[key].numel())
                continue
        target[new] = values[old].to(target)
        used.add(origin)
        whole = list(rows.items()) == [(i, i) for i in range(len(values))] and len(values) == len(target)
        result.add("predictor", "copied" if whole else "remapped", target[new].numel())
        for column, others in (("new", len(target) - len(rows)), ("skipped", len(values) - len(set(rows.values())))):
            if others:
                result.add("predictor", column, others * target[0].numel())
    return used


def _recoded(values: Tensor, model: nn.Module, source: Source, is_bias: bool) -> Tensor | None:
    """Box regression, rows (K + 1, 4, ...), for the new detector's scale of the targets; None where it is not known.

    A target is a delta minus a mean, divided by a standard deviation: fixed ones, or statistics of a class.
    """
    if model.roi_heads.normalizer is not None:
        return None  # its statistics are measured when the fit begins
    settings: Any = model.roi_heads.settings
    std = 1 / torch.tensor([*settings.box_weights])
    statistics = {name: source.state.get(f"roi_heads.normalizer.{name}") for name in ("mean", "std")}
    mean = statistics["mean"]
    if mean is not None and statistics["std"] is not None:
        theirs = statistics["std"]
    else:
        weights = (source.settings.get("roi") or {}).get("box_weights")
        theirs, mean = (std if weights is None else 1 / torch.tensor([*weights])), torch.zeros(4)
    if torch.equal(theirs, std):
        return values
    factor = theirs / std
    return values * factor + mean / std if is_bias else values * factor.unsqueeze(-1)


# -- the messages ----------------------------------------------------------------------------------


def _too_little(
    share: float, source: Source, settings: Mapping[str, Any], theirs: _Names, ours: _Names, model: nn.Module
) -> str:
    different = [row for row in differences(source, settings) if row[0] in ("features.fpn", "features.levels")]
    if different:
        hint = "; ".join(f"model.{name} is {own}, the source's is {value}" for name, value, own in different)
        hint = f"{hint}. Remove these settings to use the source's"
    else:
        shapes = {theirs(key): value.shape for key, value in source.state.items()}
        needed = {ours(key): value.shape for key, value in model.state_dict().items() if not key.endswith(COUNTER)}
        missing = [name for name, shape in needed.items() if ours.in_trunk(name) and shapes.get(name) != shape]
        hint = f"it has no {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''} of these shapes"
    return f"{source.name}: only {share:.0%} of the new backbone is in it: {hint}."


def differences(source: Source, settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings of the source that the new detector has otherwise: dotted name, the source's value, the new one."""
    rows = []
    for name, value in source.settings.items():
        group = value if isinstance(value, Mapping) and name != "backbone" else {"": value}
        for part, theirs in group.items():
            own = settings.get(name)
            own = own.get(part, theirs) if part and isinstance(own, Mapping) else (theirs if own is None else own)
            if own != to_plain(theirs):
                rows.append((f"{name}.{part}".rstrip("."), theirs, own))
    return rows


def _class_lines(model: nn.Module, source: Source, rows: dict[int, int], result: Transfer) -> list[str]:
    if not (result.count("copied", "predictor").tensors or result.count("remapped", "predictor").tensors):
        return ["predictor: new, as the source has none on the same features"]
    known = [name for row, name in enumerate(model.class_names, start=1) if row in rows]
    others = [name for name in model.class_names if name not in known]
    return [f"predictor: rows copied: {_listed(['background', *known])}; new: {_listed(others) or 'none'}"]


def _lines(model: nn.Module, source: Source, settings: Mapping[str, Any], result: Transfer) -> list[str]:
    lines = []
    if result.count("skipped", "rpn").tensors:
        lines.append("the source's region proposal network is skipped: this detector reads proposals")
    if result.count("new", "rpn").tensors and not result.count("copied", "rpn").tensors:
        lines.append("the region proposal network is new")
    body = [layer for name, layer in model.named_modules() if name.startswith(BODIES)]
    frozen = sum(isinstance(layer, FrozenBatchNorm2d) for layer in body)
    learning = sum(isinstance(layer, _BatchNorm) for layer in body)
    if frozen or learning:
        counts = [f"{count} {word}" for count, word in ((frozen, "frozen"), (learning, "learning")) if count]
        same = source.frozen is not None and source.frozen == (not learning)
        like = ", as in the source" if same else ", unlike in the source" if source.frozen is not None else ""
        lines.append(f"batch norms of the backbone: {' and '.join(counts)}{like} (features.freeze_batch_norm)")
    if ("crop" in parameters_of(type(model))) == source.reads_crops:
        rows = [f"{name} {own} ({theirs})" for name, theirs, own in differences(source, settings)]
        if rows:
            lines.append(f"settings that differ from the source's (in brackets): {'; '.join(rows)}")
    return lines


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{', '.join(names[:SHOWN_NAMES])}{more}"
