"""Truncated SVD of a checkpoint's fully connected layers: quicker detection, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from detkit.heads.svd import Cost

#: What prediction needs of a checkpoint. The rest belongs to the run, whose optimizer has the state of other layers.
KEPT = ("state_dict", "hyper_parameters", "detkit", "pytorch-lightning_version", "epoch", "global_step")


@dataclass(frozen=True)
class CompressResult:
    """What `compress` returns.

    Attributes:
        path: the new checkpoint.
        layers: the multiplications of each fully connected layer for one region, before and after.
        text: the table of the layers, and where the checkpoint is.
    """

    path: Path
    layers: list[Cost]
    text: str


def compress(ckpt_path: str | Path, rank: dict[str, int] | str, output: str | Path | None = None) -> CompressResult:
    """Write a checkpoint whose fully connected layers are products of two smaller ones, by truncated SVD.

    Args:
        ckpt_path: A run's folder, whose best checkpoint it means, or a checkpoint file.
        rank: How many singular values are kept of each layer, as fc6=1024,fc7=256 (the paper's ranks for VGG16) or
            {fc6: 1024, fc7: 256}. Other layers stay as they are.
        output: The new checkpoint; by default NAME_svd.ckpt, beside the old one.

    Raises:
        DetkitError: an argument or a checkpoint that cannot be used.
    """
    ranks = parse_ranks(rank) if isinstance(rank, str) else dict(rank)
    from detkit.engine.callbacks import AtomicCheckpointIO
    from detkit.engine.checkpoints import find_checkpoint, read_checkpoint
    from detkit.files import check_output, overwrite_note

    source = find_checkpoint(ckpt_path)
    path = source.path.with_name(f"{source.path.stem}_svd.ckpt") if output is None else Path(output)
    check_output(path.parent)
    replaces = path.exists()
    if replaces and path.samefile(source.path):
        raise ConfigError(f"output {path}: is the checkpoint that is compressed; name another file")
    if path.is_dir():
        raise ConfigError(f"output {path}: is a folder; name a file")
    if replaces and not _is_compressed(path):
        raise ConfigError(f"output {path}: exists, and `detkit compress` has not written it; name another file")
    content, layers = compress_checkpoint(read_checkpoint(source.path), ranks, str(source.path))
    AtomicCheckpointIO().save_checkpoint(content, path)
    note = overwrite_note(replaces, "--output", "FILE")
    return CompressResult(path, layers, f"checkpoint: {source}\n{_costs_text(layers)}\ncompressed: {path}{note}")


def _is_compressed(path: Path) -> bool:
    """Whether a file is a checkpoint that `compress` has written."""
    from detkit.engine.checkpoints import hyper_parameters, read_checkpoint

    try:
        content = read_checkpoint(path)
        return "optimizer_states" not in content and bool(hyper_parameters(content)["roi"]["svd_ranks"])
    except (CheckpointError, KeyError, TypeError):
        return False


def parse_ranks(text: str) -> dict[str, int]:
    """Layer and rank of "fc6=1024,fc7=256".

    Raises:
        ConfigError: for anything else.
    """
    ranks: dict[str, int] = {}
    for part in text.split(","):
        name, _, rank = (word.strip() for word in part.partition("="))
        if not (name and rank.isdecimal()) or name in ranks:
            raise ConfigError(f"rank {text}: must be written as fc6=1024,fc7=256, each layer once")
        ranks[name] = int(rank)
    return ranks


def compress_checkpoint(
    content: dict[str, Any], ranks: Mapping[str, int], source: str
) -> tuple[dict[str, Any], list[Cost]]:
    """The content of a checkpoint of the same detector with factored layers, and what the layers cost.

    Raises:
        ConfigError: a layer that does not exist, or a rank that saves nothing; messages name ``source``.
    """
    from detkit.detectors.base import RegionDetector
    from detkit.engine.checkpoints import restore
    from detkit.heads.svd import check_ranks, check_saving, costs, fully_connected, replace_layers

    model = restore(content, source)
    layers = fully_connected(model.roi_heads.box_head) if isinstance(model, RegionDetector) else {}
    check_ranks(layers, ranks)
    box_head = model.roi_heads.box_head
    predictor: Any = model.roi_heads.box_predictor
    layers |= {"cls_score": predictor.cls_score, "bbox_pred": predictor.bbox_pred}
    table = costs(layers, ranks)
    check_saving(table)
    replace_layers(box_head, ranks)
    prefix = "roi_heads.box_head."
    state = {name: value for name, value in content["state_dict"].items() if not name.startswith(prefix)}
    state |= box_head.state_dict(prefix=prefix)
    arguments = content["hyper_parameters"]
    result = {name: content[name] for name in KEPT if name in content}
    result["state_dict"] = state
    roi = arguments["roi"]
    result["hyper_parameters"] = {**arguments, "roi": {**roi, "svd_ranks": (roi["svd_ranks"] or {}) | ranks}}
    not_of_it = ("optimizer", "validation")
    result["detkit"] = {name: value for name, value in content["detkit"].items() if name not in not_of_it}
    return result, table


def _costs_text(layers: Sequence[Cost]) -> str:
    from rich.table import Table

    from detkit.evaluation.tables import render

    table = Table(title="multiplications for each region", title_justify="left", title_style="")
    for name in ("layer", "inputs x outputs", "rank", "before", "after", "saved"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for layer in layers:
        table.add_row(
            layer.name,
            f"{layer.inputs} x {layer.outputs}",
            "" if layer.rank is None else str(layer.rank),
            f"{layer.before:,}",
            f"{layer.after:,}",
            "" if layer.rank is None else _saved(layer.before, layer.after),
        )
    before = sum(layer.before for layer in layers)
    after = sum(layer.after for layer in layers)
    table.add_section()
    table.add_row("total", "", "", f"{before:,}", f"{after:,}", _saved(before, after))
    saving = f"{_saved(before, after)} of their multiplications are saved ({before / after:.1f} times fewer)"
    return f"{render(table)}\npredicted for the fully connected layers: {saving}"


def _saved(before: int, after: int) -> str:
    return f"{100 * (1 - after / before):.1f} %"
