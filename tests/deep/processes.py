"""Two and three commands at once in one folder, one of them killed: every file is whole, and what one of them made."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deep import commands, kills, scenes
from tests.deep.campaign import Campaign
from tests.deep.kills import Lost

RUN = ["--ckpt_path", "run"]


@dataclass
class Meeting:
    """Commands that run at once.

    Attributes:
        name: of its row in the table.
        args: of each command; the last may be killed.
        base: the folder that each meeting gets a copy of.
        result: what they make.
    """

    name: str
    args: list[list[str]]
    base: Path
    result: Callable[[Path], Any]

    def alone(self, folder: Path) -> list[Any]:
        """What each command makes without the others."""
        found = []
        for args in self.args:
            copy_of(self.base, folder)
            commands.run(args, folder)
            found.append(self.result(folder))
        return found


def copy_of(base: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)


def meetings(campaign: Campaign, folder: Path) -> list[Meeting]:
    """The commands that meet, and what they need."""
    trained, empty = folder / "trained", folder / "empty"
    scenes.train(trained, "FasterRCNN", campaign.shapes)
    empty.mkdir()
    fast = scenes.write_config(folder, "FastRCNN", campaign.many, max_epochs=1)
    threshold = "--model.detection.score_threshold"
    predict = [["predict", *RUN, threshold, value] for value in ("0.02", "0.05", "0.1")]
    test = [["test", *RUN, "--score_threshold", value] for value in ("0.1", "0.2", "0.3")]
    propose = ["propose", "--config", str(fast), "--split", "train", "--output"]
    one, beside_fit = [*propose, "out.proposals"], [*propose, "stores"]
    fit = ["fit", "--config", str(fast), "--model.proposals.path", "stores"]
    return [
        Meeting("predict twice", predict[:2], trained, kills.result_of_predict),
        Meeting("predict 3 times", predict, trained, kills.result_of_predict),
        Meeting("test twice", test[:2], trained, kills.result_of_test),
        Meeting("test 3 times", test, trained, kills.result_of_test),
        Meeting("propose twice", [one] * 2, empty, kills.result_of_propose),
        Meeting("propose 3 times", [one] * 3, empty, kills.result_of_propose),
        Meeting("fit and propose", [fit, beside_fit], empty, result_of_fit_and_propose),
    ]


def result_of_fit_and_propose(folder: Path) -> dict[str, Any]:
    """The store of the training split, and the weights of the fit if it has come to its end."""
    from detkit.engine.checkpoints import read_checkpoint

    (store,) = (folder / "stores").glob("train-*.proposals")
    last = folder / "run" / "version_0" / "checkpoints" / "last.ckpt"
    state = read_checkpoint(last)["state_dict"] if last.is_file() else {}
    weights = {name: value.tolist() for name, value in state.items()}
    return {"boxes": kills.boxes_of(store), "weights": weights}


def run(campaign: Campaign) -> None:
    """Let commands meet until the campaign's time is over."""
    folder = campaign.folder / "processes"
    folder.mkdir()
    all_ = meetings(campaign, folder)
    expected = {meeting.name: meeting.alone(folder / "alone") for meeting in all_}
    case, longest = campaign.case or 0, 10.0
    while campaign.left > longest:
        began, meeting = time.monotonic(), all_[case % len(all_)]
        place = folder / f"case-{case}"
        failed = 0
        try:
            meet(meeting, expected[meeting.name], place, random.Random(f"{campaign.seed}/processes/{case}"))
        except Exception as error:
            failed = 1
            campaign.explain("processes", case, f"{meeting.name}: {type(error).__name__}: {error}", place)
        campaign.report(meeting.name, 1, time.monotonic() - began, failed)
        if not failed:
            shutil.rmtree(place)
        case += 1
        if campaign.case is not None:
            return
        longest = max(longest, 1.5 * (time.monotonic() - began))


def meet(meeting: Meeting, expected: list[Any], folder: Path, rng: random.Random) -> None:
    """Run the commands at once, kill one of them in every second case, and look at what is there."""
    copy_of(meeting.base, folder)
    running = []
    for number, args in enumerate(meeting.args):
        running.append(commands.start(args, folder, str(number)))
        time.sleep(rng.choice((0, 0, 0.1, 0.5)) * rng.random())
    killed = rng.choice(running) if rng.random() < 0.5 else None
    if killed is not None:
        at = time.monotonic() + 2 * rng.random()
        killed.wait(lambda: time.monotonic() >= at)
        killed.kill(signal.SIGKILL)
    for command in running:
        command.wait()
    for command in running:
        if command is not killed and command.code != 0:
            raise Lost(f"{command}: {command.output[-1500:]}")
    if meeting.result(folder) not in expected:
        raise Lost("what is there is what none of the commands makes alone")
