"""A full disk: every command that writes ends with one message, and earlier files are as they were.

It needs the right to mount a small disk in memory; without it this part is skipped, and says so.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deep import commands, scenes
from tests.deep.campaign import Campaign
from tests.deep.commands import Command
from tests.deep.kills import Lost

SIZE = 24_000_000
FILLER = "filler"


@contextmanager
def mounted(folder: Path) -> Iterator[bool]:
    """A disk of `SIZE` bytes at a folder; False where the system does not allow it."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    allowed = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield allowed
    finally:
        if allowed:
            subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, free: int) -> None:
    """Leave so many bytes free."""
    (disk / FILLER).unlink(missing_ok=True)
    left = max(shutil.disk_usage(disk).free - free, 0)
    with open(disk / FILLER, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, left) if left else None


def files_of(disk: Path) -> dict[str, str]:
    """Every file and its content's digest."""
    files = (path for path in disk.rglob("*") if path.is_file() and path.name != FILLER)
    return {str(path.relative_to(disk)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(campaign: Campaign) -> None:
    """Run commands on a disk that is full until the campaign's time is over."""
    folder = campaign.folder / "disk"
    with mounted(folder / "full") as allowed:
        if not allowed:
            campaign.report("full disk", 0, 0.0, notes="skipped: needs the right to mount a tmpfs")
            return
        disk = folder / "full"
        # The working directory is elsewhere, as is the log: they have room.
        place = folder / "here"
        scenes.train(place, "FasterRCNN", campaign.shapes)
        shutil.move(place / "run", disk / "run")
        args = commands_of(campaign, folder, disk)
        for number, each in enumerate(args):  # as it is with room
            command = commands.start(each, place, f"room-{number}")
            if command.wait() != 0:
                raise AssertionError(f"{command}: {command.output[-1500:]}")
        case, longest = campaign.case or 0, 8.0
        while campaign.left > longest:
            began = time.monotonic()
            failed = run_case(campaign, args, disk, place, case)
            campaign.report("full disk", 1, time.monotonic() - began, failed)
            case += 1
            if campaign.case is not None:
                return
            longest = max(longest, 1.5 * (time.monotonic() - began))


def commands_of(campaign: Campaign, folder: Path, disk: Path) -> list[list[str]]:
    """Every command that writes, with its output on the disk."""
    run, results = str(disk / "run"), campaign.folder / "material"
    faster = scenes.write_config(folder, "FasterRCNN", campaign.shapes, default_root_dir=str(disk / "other"))
    fast = scenes.write_config(folder, "FastRCNN", campaign.shapes)
    evaluate = ["evaluate", "--detections", str(results / "predictions.json")]
    return [
        ["predict", "--ckpt_path", run, "--predictions.draw", "true"],
        ["test", "--ckpt_path", run],
        ["fit", "--config", str(faster), "--trainer.max_epochs", "2"],
        ["fit", "--ckpt_path", run, "--trainer.max_epochs", "4"],
        ["propose", "--config", str(fast), "--split", "train", "--output", str(disk / "stores")],
        [*evaluate, "--annotations", str(results / "coco.json"), "--output", str(disk / "evaluated")],
        ["compress", "--ckpt_path", run, "--rank", "fc6=4", "--output", str(disk / "small.ckpt")],
    ]


def run_case(campaign: Campaign, args: list[list[str]], disk: Path, place: Path, case: int) -> int:
    """One command with little room; returns whether it did not hold."""
    rng = random.Random(f"{campaign.seed}/disk/{case}")
    chosen = args[case % len(args)]
    for path in [*disk.glob("run/version_[1-9]*"), disk / "other", disk / "stores", disk / "small.ckpt"]:
        if rng.random() < 0.5 or path.name.startswith("version_"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    free = rng.choice((0, 4096, 20_000, 100_000, 500_000, 2_000_000, rng.randrange(4_000_000)))
    fill(disk, free)
    before = files_of(disk)
    command = commands.start(chosen, place, "full")
    try:
        command.wait()
        check(command, disk, before)
    except (Lost, TimeoutError) as error:
        campaign.explain("disk", case, f"{free:,} bytes free: {error}")
        return 1
    finally:
        (disk / FILLER).unlink(missing_ok=True)
    return 0


def check(command: Command, disk: Path, before: dict[str, str]) -> None:
    """Either it has had enough room, or it says in one line that there was none; nothing is lost or left over."""
    after, output = files_of(disk), command.output
    if command.code not in (0, 2) or "Traceback" in output:
        raise Lost(f"{command}: {output[-1500:]}")
    if command.code == 2:
        told = [line for line in output.splitlines() if line.startswith("detkit: ")]
        if len(told) != 1 or "are free there" not in told[0]:
            raise Lost(f"{command} does not say that the disk is full: {output[-800:]}")
        changed = [name for name, digest in before.items() if after.get(name) != digest]
        if changed:
            raise Lost(f"{command} has changed or lost {changed[:5]}")
    hidden = [name for name in after if name not in before and Path(name).name.startswith(".")]
    hidden += [name for name in after if name not in before and ".part" in name]
    if hidden and "propose" not in command.args:  # whose part is what the next call goes on with
        raise Lost(f"{command} has left {hidden[:5]}")
