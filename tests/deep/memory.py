"""A memory soak: predictions, evaluations and reads of a store, again and again, in one process.

After a while to warm up its memory and its open files must not grow.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from pathlib import Path

from tests.deep import scenes
from tests.deep.campaign import Campaign, fork

GROWTH = 24.0  # MB that the process may grow after the first third
WARM = 1 / 3


def run(campaign: Campaign) -> None:
    """Soak until the campaign's time is over, in a child, whose memory is its own."""
    folder = campaign.folder / "memory"
    run_folder = scenes.train(folder, "FasterRCNN", campaign.shapes)
    if os.waitstatus_to_exitcode(os.waitpid(fork(soak, campaign, folder, run_folder), 0)[1]):
        campaign.explain("memory", 0, "the soak has ended with an error; see above")
        campaign.report("memory soak", 1, 0.0, 1)


def soak(campaign: Campaign, folder: Path, run_folder: Path) -> None:
    """The loop."""
    import detkit
    from detkit.data.image_io import read_image
    from detkit.proposals.store import ProposalStore

    material = campaign.folder / "material"
    picture = next((campaign.shapes / "JPEGImages").iterdir())
    began, rounds, whole = time.monotonic(), 0, max(campaign.left, 5.0)
    warm: tuple[float, int] | None = None
    log = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    while time.monotonic() - began < whole:
        model = detkit.load(run_folder)
        model.predict([picture, read_image(picture)])
        detkit.evaluate(material / "predictions.json", material / "coco.json", output=folder / "report")
        store = ProposalStore(material / "train.proposals")
        store.verify()
        detkit.data.VOC(str(material / "voc"), "train", None, None, num_workers=0).dataset("train")[0]
        rounds += 1
        if warm is None and time.monotonic() - began > WARM * whole:
            gc.collect()
            warm = megabytes(), open_files()
    assert warm is not None
    gc.collect()
    now = megabytes(), open_files()
    notes = f"{warm[0]:.0f} MB after a third, {now[0]:.0f} MB at the end; {warm[1]} and {now[1]} open files"
    failed = int(now[0] - warm[0] > GROWTH or now[1] > warm[1])
    if failed:
        campaign.explain("memory", 0, f"grows: {notes}")
    campaign.report("memory soak", rounds, time.monotonic() - began, failed, notes)


def megabytes() -> float:
    """Memory of this process."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6


def open_files() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
