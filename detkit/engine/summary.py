"""The table printed at the start of a fit: which parts learn, which are fixed."""

from __future__ import annotations

from collections import defaultdict

from torch import nn
from torchvision.ops import FrozenBatchNorm2d


def trainable_table(module: nn.Module) -> str:
    """One row for each part of the network: parameters that learn, parameters that are fixed, batch norms' state.

    The backbone is shown layer by layer, everything else by its second name.
    """
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in module.named_parameters():
        rows[_part(name)][0 if parameter.requires_grad else 1] += parameter.numel()
    frozen: dict[str, int] = defaultdict(int)
    norms: dict[str, int] = defaultdict(int)
    for name, layer in module.named_modules():
        if isinstance(layer, FrozenBatchNorm2d):
            frozen[_part(name + ".")] += 1
            rows[_part(name + ".")][1] += layer.weight.numel() + layer.bias.numel()
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            norms[_part(name + ".")] += 1
    width = max([*map(len, rows), len("part")])
    lines = [f"{'part':<{width}}  {'trainable':>12}  {'fixed':>12}  batch norm"]
    for part, (learns, fixed) in rows.items():
        kinds = [f"{norms[part]} learning"] * bool(norms[part]) + [f"{frozen[part]} frozen"] * bool(frozen[part])
        lines.append(f"{part:<{width}}  {learns:>12,}  {fixed:>12,}  {', '.join(kinds)}".rstrip())
    learns, fixed = (sum(row[i] for row in rows.values()) for i in (0, 1))
    lines.append(f"{'total':<{width}}  {learns:>12,}  {fixed:>12,}")
    return "\n".join(lines)


def _part(name: str) -> str:
    parts = name.split(".")
    depth = 3 if parts[:2] == ["backbone", "body"] else 2
    return ".".join(parts[: min(depth, len(parts) - 1)]) or name
