"""Where a run writes: `runs/NAME/version_N`, decided once and known to every process of the run."""

from __future__ import annotations

import os
from pathlib import Path

from detkit.cli.arguments import Arguments
from detkit.engine.checkpoints import versions

__all__ = ["VARIABLE", "new_version", "run_root"]

VARIABLE = "DETKIT_RUN_FOLDER"


def run_root(arguments: Arguments) -> Path:
    """The folder of all versions of a run: `trainer.default_root_dir`, else `runs/` and the name of the first
    config file or, without one, of the model."""
    given = arguments.setting("default_root_dir", "trainer")
    if given is not None:
        return Path(str(given))
    if arguments.configs:
        return Path("runs") / Path(arguments.configs[0]).stem
    name, _ = arguments.class_of("model")
    return Path("runs") / (name or "detkit")


def new_version(root: Path, rank: int) -> Path:
    """The next free `version_N` of a run, made by rank 0 and found in the environment by the processes it starts.

    Args:
        root: the folder of all versions.
        rank: this process's global rank.
    """
    if rank > 0:
        # Under torchrun there is nothing to inherit; only rank 0 writes, so a name is all that is needed.
        return Path(os.environ.get(VARIABLE) or next(iter(versions(root)), root / "version_0"))
    taken = versions(root)
    number = int(taken[0].name.removeprefix("version_")) + 1 if taken else 0
    while True:
        folder = root / f"version_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            continue
        os.environ[VARIABLE] = str(folder)
        return folder
