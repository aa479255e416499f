"""Checkpoints on disk: which one a path means, what is in it, and the model that it holds.

A run's folder is laid out as

    runs/NAME/version_0/config.yaml
    runs/NAME/version_0/checkpoints/best.ckpt    the best validation so far
    runs/NAME/version_0/checkpoints/last.ckpt    the last epoch that ended
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detkit.classes import find_class
from detkit.engine.torchvision_detectors import name_in
from detkit.errors import CheckpointError, ConfigError
from detkit.files import path_alike, versions
from detkit.settings import construct
from detkit.torch_files import check_fits, is_plain_tensor, read_torch_file

if TYPE_CHECKING:
    from detkit.engine.module import TrainableModule

ORDER = ("best", "last")
#: Arguments that name the initial weights of a fit.
INITIAL_WEIGHTS = ("weights", "init_from")
#: What is said of other files, and how these are used.
NOT_OURS = (
    "not a checkpoint written by detkit, nor a Faster R-CNN of torchvision's. A fit can be initialised from "
    "torchvision's detectors and classification networks by --model.init_from (FasterRCNN.from_pretrained in Python), "
    "a backbone alone by --model.weights"
)
VERSION = "pytorch-lightning_version"  # Lightning brings the entries of earlier ones into its own form


class FoundCheckpoint(NamedTuple):
    """A checkpoint file, and why it was chosen: "best", "last" or "file"; or torchvision:NAME and "torchvision"."""

    path: Path
    kind: str

    def __str__(self) -> str:
        return f"{self.path} ({self.kind})" if self.kind in ORDER else str(self.path)

    @property
    def folder(self) -> Path:
        """Where its results go: its run's folder (`run_folder`); of torchvision's, runs/NAME."""
        return Path("runs", name_in(self.path)) if self.kind == "torchvision" else run_folder(self.path)


def find_checkpoint(path: str | PathLike[str], prefer: tuple[str, ...] = ORDER) -> FoundCheckpoint:
    """The checkpoint that a path means.

    Args:
        path: a checkpoint file, one version's folder (with `checkpoints/`), its `checkpoints` folder, or a run's
            folder with `version_N` in it, of which the newest that has a checkpoint is used.
        prefer: the names to look for, in this order. Where "last" comes first, any last.ckpt comes before the first
            best.ckpt: a run that was stopped before its first epoch ended has only the copied best of the run before.

    Raises:
        CheckpointError: nothing there; the message names every folder that was searched.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return FoundCheckpoint(root, root.stem if root.stem in ORDER else "file")
    if not root.is_dir():
        what = "is neither a file nor a folder" if root.exists() else "no such checkpoint or run folder"
        alike = path_alike(root)
        raise CheckpointError(f"{root}: {what}{f'; did you mean {alike}?' if alike else '.'}")
    folders = [root, root / "checkpoints", *(v / "checkpoints" for v in versions(root))]
    found = [(folder / f"{name}.ckpt", name) for folder in folders for name in prefer]
    if prefer[0] == "last":
        found.sort(key=lambda each: prefer.index(each[1]))  # stable: the newest version first
    for file, name in found:
        if file.is_file():
            return FoundCheckpoint(file, name)
    names = " or ".join(f"{name}.ckpt" for name in prefer)
    searched = ", ".join(str(f) for f in folders)
    others = sorted(f for folder in folders if folder.is_dir() for f in folder.glob("*.ckpt"))
    hint = f" There is {others[-1]}: name that file itself to use it." if others else ""
    raise CheckpointError(f"{root}: no {names} found (searched: {searched}).{hint}")


def run_folder(checkpoint: str | PathLike[str]) -> Path:
    """The folder for the results of a checkpoint: that of its run (`version_N`), else the file's own."""
    parent = Path(checkpoint).parent
    return parent.parent if parent.name == "checkpoints" else parent


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """Reads a detkit checkpoint onto the CPU, with `weights_only=True` (no code in the file is run).

    Raises:
        CheckpointError: as `read_torch_file`; or it is not a checkpoint of detkit's.
    """
    path = Path(path)
    content = read_torch_file(path, CheckpointError, "Take another checkpoint of the run (best.ckpt, last.ckpt).")
    return check_checkpoint(content, path)


def check_checkpoint(checkpoint: Any, path: Path) -> dict[str, Any]:
    """What a file holds, if it is a checkpoint of detkit's; else a CheckpointError that names the file."""
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "detkit" not in checkpoint:
        raise CheckpointError(f"{path}: {NOT_OURS}.")
    about, state = checkpoint["detkit"], checkpoint["state_dict"]
    right = {
        "detkit": isinstance(about, dict) and isinstance(about.get("class"), str),
        "state_dict": isinstance(state, dict)
        and all(isinstance(n, str) and is_plain_tensor(v) for n, v in state.items()),
        "hyper_parameters": isinstance(checkpoint.get("hyper_parameters", {}), dict),
        "pytorch-lightning_version": bool(re.fullmatch(r"[2-9](\.\w+)+", str(checkpoint.get(VERSION, "2.6")))),
    }
    for name in [name for name in right if not right[name]]:
        raise CheckpointError(f"{path}: is damaged: its entry {name!r} is not as detkit writes it.")
    return checkpoint


def hyper_parameters(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments kept in a checkpoint.

    Without what Lightning notes for itself (`_class_path`, ...), and without an optimizer or schedule: detkit does not
    keep them, a fit has them from its config or code.
    """
    arguments = checkpoint.get("hyper_parameters", {}).items()
    return {k: v for k, v in arguments if not str(k).startswith("_") and k not in ("optimizer", "lr_scheduler")}


def restore(checkpoint: dict[str, Any], source: str) -> TrainableModule:
    """The model of a checkpoint that was read by `read_checkpoint`; `source` is its file, for messages.

    Its class is looked up by its full name among those that are imported: nothing is imported because a file says so.

    Raises:
        CheckpointError: if its class is not known, or its arguments or weights do not fit this version.
    """
    from detkit.engine.module import TrainableModule

    name = checkpoint["detkit"]["class"]
    try:
        model_class = find_class(name, TrainableModule)
        # The weights come from the checkpoint: the initial ones are not read (or downloaded) again.
        arguments = hyper_parameters(checkpoint)
        initial = {name: arguments[name] for name in INITIAL_WEIGHTS if name in arguments}
        model = construct(model_class, {**arguments, **dict.fromkeys(initial)})
        model.hparams.update(initial)  # for information
        model.on_load_checkpoint(checkpoint)
        check_fits(checkpoint["state_dict"], model.state_dict(), source)
        model.load_state_dict(checkpoint["state_dict"])
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except (TypeError, ValueError, AttributeError, RuntimeError, LookupError, ArithmeticError, MemoryError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{source}: does not fit {name.rpartition('.')[2]} of this version ({reason})") from error
    return model
