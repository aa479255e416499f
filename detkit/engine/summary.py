"""What learns and what is fixed: a few lines at the start of a fit, and all layers in `network.txt` of its folder."""

from __future__ import annotations

from collections import Counter

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from detkit.engine.run_files import RunFileCallback, warn_on_error
from detkit.errors import ConfigError
from detkit.features import Backbone
from detkit.features.receptive_field import extend, receptive_field
from detkit.files import write_text
from detkit.proposals import RegionProposalNetwork

NETWORK = "network.txt"


class NetworkFile(RunFileCallback):
    """Writes `network.txt` when a fit starts: what learns and what is fixed, layer by layer, and the feature maps."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.writes:
            with warn_on_error(NETWORK):
                lines = [trainable_table(pl_module), *getattr(pl_module, "feature_lines", list)()]
                write_text(self.path(NETWORK), "\n".join([*lines, ""]))


def trainable_table(module: nn.Module, detailed: bool = True) -> str:
    """A row for each part of the network: parameters that learn or are fixed, batch norms.

    Args:
        module: the network.
        detailed: a part is a layer of the backbone, or a part of a head; otherwise one of the module's own attributes.
    """
    trainable: Counter[str] = Counter()
    fixed: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        part = _part(name, detailed)
        trainable[part] += parameter.numel() * parameter.requires_grad
        fixed[part] += parameter.numel() * (not parameter.requires_grad)
    frozen_norms: Counter[str] = Counter()
    learning_norms: Counter[str] = Counter()
    for name, layer in module.named_modules():
        part = _part(f"{name}.", detailed)
        if isinstance(layer, FrozenBatchNorm2d):
            frozen_norms[part] += 1
            trainable[part] += 0
            fixed[part] += layer.weight.numel() + layer.bias.numel()
        elif isinstance(layer, _BatchNorm):
            learning_norms[part] += 1
    width = max(map(len, (*trainable, "part")))
    lines = [f"{'part':<{width}}  {'trainable':>12}  {'fixed':>12}  batch norm"]
    for part in trainable:
        counts = ((learning_norms[part], "learning"), (frozen_norms[part], "frozen"))
        norms = [f"{count} {state}" for count, state in counts if count]
        lines.append(f"{part:<{width}}  {trainable[part]:>12,}  {fixed[part]:>12,}  {', '.join(norms)}".rstrip())
    lines.append(f"{'total':<{width}}  {sum(trainable.values()):>12,}  {sum(fixed.values()):>12,}")
    return "\n".join(lines)


def random_lines(module: nn.Module) -> list[str]:
    """A warning for each backbone of which layers are fixed at random values."""
    lines = [
        f"warning: {', '.join(layers)} of {part.name} are fixed at random values, as no weights were loaded; set "
        "--model.weights (DEFAULT or FILE), or --model.features.transfer full, --model.features.trainable_stages null "
        "and --model.features.freeze_batch_norm false"
        for part in module.modules()
        if isinstance(part, Backbone) and (layers := part.random_frozen_layers())
    ]
    return list(dict.fromkeys(lines))


def field_lines(backbone: Backbone, rpn: RegionProposalNetwork | None = None) -> list[str]:
    """One line for each feature map: its stride, its receptive field if it is known and, with an RPN, its anchors.

    With an RPN the field is that of its anchors' scores, with its own convolutions: 228 pixels for VGG16, as in the
    paper (section 3.1).
    """
    ends = [""] * len(backbone.strides)
    if rpn is not None:
        ends = [f", anchors {', '.join(f'{s:g}' for s in level)} px" for level in rpn.anchor_generator.sizes]
    try:
        fields = receptive_field(backbone)
    except ConfigError:  # of Swin, timm's networks and a user's own there is none
        names = [*backbone.levels, "pool"][: len(ends)]
        rows = zip(names, backbone.strides, ends, strict=True)
        return [f"map {name}: stride {stride} px{end}" for name, stride, end in rows]
    if rpn is not None:
        fields = [extend(field, rpn.head.conv) for field in fields]
    note = " without the top-down path" if backbone.fpn is not None else ""
    return [
        f"map {field.name}: stride {field.stride} px, receptive field {field.size} px{note}{end}"
        for field, end in zip(fields, ends, strict=True)
    ]


def _part(name: str, detailed: bool) -> str:
    parts = name.split(".")
    if not detailed:
        return parts[0]
    depth = 3 if parts[:2] == ["backbone", "body"] else 2
    return ".".join(parts[: min(depth, len(parts) - 1)]) or name
