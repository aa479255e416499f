"""`detkit compress`: truncated SVD of a checkpoint's fully connected layers, for quicker detection without training."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from detkit.errors import ConfigError

if TYPE_CHECKING:
    from detkit.heads.svd import Cost

EXAMPLES = """examples:
  detkit compress --ckpt_path runs/paper_voc07_vgg16 --rank fc6=1024,fc7=256    (the paper's ranks for VGG16)
  detkit test --ckpt_path runs/paper_voc07_vgg16/version_0/checkpoints/best_svd.ckpt
"""
#: What of a checkpoint is needed to predict; the rest is of the run that made it, whose optimizer knows other layers.
KEPT = ("state_dict", "hyper_parameters", "detkit", "pytorch-lightning_version", "epoch", "global_step")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n`detkit compress --help` shows all options.")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    result = _Parser(
        "detkit compress",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--ckpt_path", "--ckpt-path", required=True, metavar="PATH", help="a run's folder, or a checkpoint file")
    add(
        "--rank", required=True, metavar="LAYER=RANK,...",
        help="singular values kept of each layer, for example fc6=1024,fc7=256; other layers stay as they are",
    )  # fmt: skip
    add("--output", metavar="FILE", help="the new checkpoint (default: NAME_svd.ckpt, beside the old one)")
    return result


def main(args: Sequence[str]) -> int:
    """Compress a checkpoint and say what it saves.

    Args:
        args: the arguments after ``compress``; see ``detkit compress --help``.

    Raises:
        DetkitError: an option or a checkpoint that cannot be used.
    """
    options = parser().parse_args(list(args))
    ranks = parse_ranks(options.rank)
    from detkit.engine.checkpoints import find_checkpoint, read_checkpoint

    found = find_checkpoint(options.ckpt_path)
    output = Path(options.output) if options.output else found.path.with_name(f"{found.path.stem}_svd.ckpt")
    if output.exists() and output.samefile(found.path):
        raise ConfigError(f"--output {output}: is the checkpoint that is compressed; name another file")
    if output.is_dir():
        raise ConfigError(f"--output {output}: is a folder; name a file")
    print(f"checkpoint: {found}", flush=True)
    content, layers = compress(read_checkpoint(found.path), ranks, str(found.path))
    print_costs(layers)
    save(content, output)
    print(f"compressed: {output}", flush=True)
    return 0


def parse_ranks(text: str) -> dict[str, int]:
    """Layer and rank of "fc6=1024,fc7=256".

    Raises:
        ConfigError: for anything else.
    """
    ranks: dict[str, int] = {}
    for part in text.split(","):
        name, equals, rank = (each.strip() for each in part.partition("="))
        if not (name and equals and rank.isdecimal()) or name in ranks:
            raise ConfigError(f"--rank {text}: must be written as fc6=1024,fc7=256, each layer once")
        ranks[name] = int(rank)
    return ranks


def compress(content: dict[str, Any], ranks: dict[str, int], source: str) -> tuple[dict[str, Any], list[Cost]]:
    """A checkpoint of the same detector with factored layers, and what its fully connected layers cost.

    Args:
        content: of the checkpoint, as `read_checkpoint` gives it.
        ranks: of each layer, by its name.
        source: where it came from, for messages.

    Raises:
        ConfigError: for layers that are not there, or ranks that save nothing.
    """
    from detkit.detectors.loading import restore
    from detkit.heads.svd import check_ranks, check_saving, costs, fully_connected, replace_layers

    model = restore(content, source)
    classifier = getattr(model, "roi_heads", None)
    layers = {} if classifier is None else fully_connected(classifier.box_head)
    check_ranks(layers, ranks)
    predictor = classifier.box_predictor
    layers |= {"cls_score": predictor.cls_score, "bbox_pred": predictor.bbox_pred}
    table = costs(layers, ranks)
    check_saving(table)
    replace_layers(classifier.box_head, ranks)
    prefix = "roi_heads.box_head."
    state = {name: value for name, value in content["state_dict"].items() if not name.startswith(prefix)}
    state |= classifier.box_head.state_dict(prefix=prefix)
    arguments = content["hyper_parameters"]
    result = {name: content[name] for name in KEPT if name in content}
    result["state_dict"] = state
    result["hyper_parameters"] = {**arguments, "svd_ranks": (arguments.get("svd_ranks") or {}) | ranks}
    result["detkit"] = {name: value for name, value in content["detkit"].items() if name != "optimizer"}
    return result, table


def print_costs(layers: Sequence[Cost]) -> None:
    """Print the multiplications of each layer and of all, before and after."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="multiplications for each region", title_justify="left", title_style="")
    for name in ("layer", "inputs x outputs", "rank", "before", "after", "saved"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for each in layers:
        table.add_row(
            each.name,
            f"{each.inputs} x {each.outputs}",
            "" if each.rank is None else str(each.rank),
            f"{each.before:,}",
            f"{each.after:,}",
            "" if each.rank is None else _saved(each.before, each.after),
        )
    before, after = (sum(getattr(each, when) for each in layers) for when in ("before", "after"))
    table.add_section()
    table.add_row("total", "", "", f"{before:,}", f"{after:,}", _saved(before, after))
    Console().print(table)
    saving = f"{_saved(before, after)} of their multiplications are saved ({before / after:.1f} times fewer)"
    print(f"predicted for the fully connected layers: {saving}")


def save(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint beside its place, and rename it.

    Raises:
        ConfigError: if it cannot be written.
    """
    import torch

    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch.save has errors of its own
        with suppress(OSError):
            part.unlink()
        raise ConfigError(f"--output {path}: cannot be written ({error})") from None


def _saved(before: int, after: int) -> str:
    return f"{100 * (1 - after / before):.1f} %"
