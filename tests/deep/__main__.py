"""`make test-deep`: a campaign of seeded fuzzing, kills, processes at once, a full disk and a memory soak.

    python -m tests.deep --minutes 30 --seed 0
    python -m tests.deep --only voc-xml --seed 0 --case 17     one case again

It draws and trains what it needs, prints a table at its end, and exits with 1 if anything did not hold. Two processes
share the time: one fuzzes, the other does everything else.
"""

from __future__ import annotations

import os

# Before torch is imported: threads would make results differ, and a process with threads cannot be forked safely.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", NO_ALBUMENTATIONS_UPDATE="1")

import argparse
import importlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.deep import commands, scenes
from tests.deep.campaign import Campaign, fork

#: The parts beside fuzzing, and their shares of the time.
PARTS = {"kills": 0.68, "processes": 0.14, "disk": 0.08, "memory": 0.1}
EVERY = 30.0  # seconds between two lines of progress


def main() -> int:
    """Run the campaign; returns the exit code."""
    from tests.deep.readers import READERS

    parser = argparse.ArgumentParser(prog="python -m tests.deep", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long it runs")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn by chance")
    parser.add_argument("--only", choices=[*READERS, *PARTS, "fuzz"], action="append", help="only this; again for more")
    parser.add_argument("--case", type=int, help="only this case of the reader named by --only")
    parser.add_argument("--folder", type=Path, help="an empty one, for everything that is written")
    options = parser.parse_args()
    if options.case is not None and len(options.only or []) != 1:
        parser.error("--case needs one --only")
    began = time.monotonic()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="detkit-deep-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    campaign = Campaign(folder.resolve(), options.seed, began + options.minutes * 60, options.case)
    campaign.log.write_bytes(b"")
    wanted = options.only or ["fuzz", *PARTS]
    readers = [name for name in READERS if name in wanted or "fuzz" in wanted]
    parts = [name for name in PARTS if name in wanted]
    print(f"deep test: {options.minutes:g} minutes, seed {options.seed}, in {campaign.folder}", flush=True)
    prepare(campaign)
    print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
    children = [fork(run_fuzz, campaign, readers)] if readers else []
    children += [fork(run_parts, campaign, parts)] if parts else []
    codes = watch(campaign, children, began)
    code = summarise(campaign, began, codes)
    if code == 0 and options.folder is None:
        shutil.rmtree(folder)
    return code


def prepare(campaign: Campaign) -> None:
    """Import everything that a command imports, draw the pictures, and make what is damaged by fuzzing."""
    from detkit.cli import lightning_cli
    from tests.deep.readers import make_material

    lightning_cli.base_classes()
    for name in ("evaluate", "propose", "compress"):
        importlib.import_module(f"detkit.tools.{name}")
    scenes.draw(campaign.folder)
    folder = campaign.folder / "first"
    folder.mkdir()
    config = scenes.write_config(folder, "FasterRCNN", campaign.shapes, max_epochs=1)
    names = commands.modules_of(["fit", "--config", str(config)], folder)
    names += commands.modules_of(["test", "--ckpt_path", "run"], folder)
    fast = scenes.write_config(folder, "FastRCNN", campaign.shapes)
    names += commands.modules_of(["propose", "--config", str(fast), "--output", "out.proposals"], folder)
    for name in names:
        if name not in sys.modules and not name.startswith("__"):
            importlib.import_module(name)
    material = campaign.folder / "material"
    if os.waitstatus_to_exitcode(os.waitpid(fork(make_material, material, folder / "run" / "version_0"), 0)[1]):
        raise SystemExit("the files that are to be damaged could not be made")
    if commands.number_of_threads() > 1:
        raise SystemExit("a library has started threads when it was imported: forking is not safe")


def run_fuzz(campaign: Campaign, names: list[str]) -> None:
    """Fuzz these readers."""
    from tests.deep.fuzz import fuzz

    fuzz(campaign, names)


def run_parts(campaign: Campaign, names: list[str]) -> None:
    """Run these of `PARTS` one after the other, each for its share of the time."""
    total, whole, last = sum(PARTS[name] for name in names), campaign.left, campaign.ends
    began, done = time.monotonic(), 0.0
    for name in names:
        done += PARTS[name]
        campaign.ends = min(last, began + whole * done / total)
        part: Callable[[Campaign], None] = importlib.import_module(f"tests.deep.{name}").run
        part(campaign)


def watch(campaign: Campaign, children: list[int], began: float) -> list[int]:
    """Wait for the children, and print a line of progress now and then; returns their exit codes."""
    codes: dict[int, int] = {}
    printed, told = time.monotonic(), 0
    try:
        while len(codes) < len(children):
            for pid in children:
                if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    codes[pid] = os.waitstatus_to_exitcode(ended[1])
            failures = campaign.failures()
            for event in failures[told:]:
                print(f"  FAILED {event['name']} {event['case']}: {event['message']}", flush=True)
            told = len(failures)
            if time.monotonic() - printed > EVERY:
                printed = time.monotonic()
                rows = campaign.rows()
                counts = ", ".join(f"{name} {row.cases:,}" for name, row in rows.items())
                failed = sum(row.failed for row in rows.values())
                print(f"{printed - began:5.0f} s: {counts}; {failed} failed", flush=True)
            time.sleep(0.2)
    except KeyboardInterrupt:
        for pid in children:
            if pid not in codes:
                os.kill(pid, signal.SIGKILL)
        raise
    return list(codes.values())


def summarise(campaign: Campaign, began: float, codes: list[int]) -> int:
    """Print the table and the failures; returns the exit code."""
    rows = campaign.rows()
    width = max(map(len, [*rows, "total"]), default=5)
    print(f"\n{'what':{width}}  {'cases':>9}  {'held':>9}  {'time':>7}")
    for name, row in rows.items():
        notes = f"  {row.notes}" if row.notes else ""
        print(f"{name:{width}}  {row.cases:9,}  {row.cases - row.failed:9,}  {row.seconds:5.0f} s{notes}")
    cases, failed = sum(row.cases for row in rows.values()), sum(row.failed for row in rows.values())
    print(f"{'total':{width}}  {cases:9,}  {cases - failed:9,}  {time.monotonic() - began:5.0f} s")
    for event in campaign.failures():
        print(f"\nFAILED {event['name']}, case {event['case']}: {event['message']}")
        print(f"  again: {event['again']}\n  kept: {event['kept']}")
    if any(codes):
        print("\na part of the campaign itself has ended with an error; see above")
    return int(bool(failed or any(codes)))


if __name__ == "__main__":
    sys.exit(main())
