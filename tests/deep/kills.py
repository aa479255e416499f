"""Kills: commands get SIGKILL, SIGTERM or SIGINT at any moment, go on or are run again, and nothing is lost.

What they have made in the end is equal to what a run makes that nobody disturbs. The moments are drawn stage by stage,
so that short stages are hit, too.
"""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.deep import commands, scenes
from tests.deep.campaign import Campaign
from tests.deep.commands import Command

SIGNALS = (*[signal.SIGKILL] * 4, signal.SIGTERM, signal.SIGINT)
REPORT = ("index.html", "metrics.json", "per_class.csv")


class Lost(AssertionError):
    """Something is lost, damaged, or not as an undisturbed run makes it."""


@dataclass
class Scenario:
    """A command that is killed.

    Attributes:
        name: of its row in the table.
        args: the command.
        stages: name of each stage and how often it is aimed at.
        markers: pattern of the line with which each stage but the first begins.
        base: folder that is copied before the command runs; None for an empty one.
        result: what it has made in a folder.
        check: raises where something is lost or damaged while the command has not ended.
        go_on: the arguments after a kill; those of the command itself by default.
        lengths: seconds of each stage of a run that nobody disturbs.
        hits: kills that fell into each stage.
    """

    name: str
    args: list[str]
    stages: dict[str, int]
    markers: list[str]
    result: Callable[[Path], Any]
    check: Callable[[Scenario, Path, Command], None]
    base: Path | None = None
    go_on: Callable[[Scenario, Path, Command], list[str]] = lambda scenario, folder, command: scenario.args
    expected: Any = None
    before: Any = None
    lengths: list[float] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)

    def stage_of(self, output: str) -> int:
        """The stage that a command is in."""
        return sum(re.search(marker, output, re.MULTILINE) is not None for marker in self.markers)

    def prepare(self, folder: Path) -> None:
        """A fresh folder for a run."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.base is None:
            folder.mkdir(parents=True)
        else:
            shutil.copytree(self.base, folder)

    def run_undisturbed(self, folder: Path) -> None:
        """Run the command as it should be, and note how long its stages take."""
        self.prepare(folder)
        if self.base is not None:
            self.before = self.result(folder)
        command, marks = commands.start(self.args, folder), [0.0]
        while not command.poll():
            marks += [time.monotonic() - command.began] * (self.stage_of(command.output) + 1 - len(marks))
            time.sleep(commands.POLL)
        if command.code:
            raise AssertionError(f"{command}:\n{command.output[-2000:]}")
        marks += [time.monotonic() - command.began] * (len(self.stages) + 1 - len(marks))
        self.lengths = [after - before for before, after in pairwise(marks)]
        self.expected = self.result(folder)


def scenarios(campaign: Campaign, folder: Path) -> list[Scenario]:
    """The commands that are killed, and what they need."""
    faster, rcnn, fast = (folder / name for name in ("faster", "rcnn", "fast"))
    for path in (faster, rcnn, fast):
        path.mkdir(parents=True)
    workers = ["--data.num_workers", "1"]
    fit = ["fit", "--config", str(scenes.write_config(faster, "FasterRCNN", campaign.shapes, max_epochs=4)), *workers]
    fit_rcnn = ["fit", "--config", str(scenes.write_config(rcnn, "RCNN", campaign.many, max_epochs=2))]
    fast_config = scenes.write_config(fast, "FastRCNN", campaign.many)
    trained = folder / "trained"
    scenes.train(trained, "FasterRCNN", campaign.shapes)
    commands.run(["predict", "--ckpt_path", "run", "--model.detection.score_threshold", "0.1"], trained, "predict")
    commands.run(["test", "--ckpt_path", "run", "--score_threshold", "0.2"], trained, "test")
    return [
        Scenario(
            "kill fit",
            fit,
            {"start": 1, "epoch 1": 2, "epoch 2": 2, "epoch 3": 2, "epoch 4": 2},
            ["^run: ", "^epoch 1/", "^epoch 2/", "^epoch 3/"],
            result_of_fit,
            check_fit,
            go_on=go_on_fit,
        ),
        Scenario(
            "kill R-CNN",
            fit_rcnn,
            {"start": 1, "fine-tuning": 2, "features": 2, "SVMs": 5, "box regressors": 1, "comparison": 1},
            ["^run: ", "^features of ", "^features: .* read", "^SVMs: ", "^box regressors: "],
            result_of_fit,
            check_fit,
            go_on=go_on_fit,
        ),
        Scenario(
            "kill propose",
            ["propose", "--config", str(fast_config), "--split", "train", "--output", "out.proposals"],
            {"start": 1, "work": 4},
            ["^proposals of "],
            result_of_propose,
            check_propose,
        ),
        Scenario(
            "kill predict",
            ["predict", "--ckpt_path", "run", *workers],
            {"start": 1, "work": 3},
            ["^checkpoint: "],
            result_of_predict,
            check_output,
            base=trained,
        ),
        Scenario(
            "kill test",
            ["test", "--ckpt_path", "run"],
            {"start": 1, "work": 1, "report": 3},
            ["^checkpoint: ", "^test: "],
            result_of_test,
            check_output,
            base=trained,
        ),
    ]


ORDER = ("fit", "R-CNN", "predict", "R-CNN", "test", "propose", "R-CNN", "fit", "test", "predict")


def run(campaign: Campaign) -> None:
    """Kill commands until the campaign's time is over."""
    folder = campaign.folder / "kills"
    all_ = {scenario.name.removeprefix("kill "): scenario for scenario in scenarios(campaign, folder)}
    for scenario in all_.values():
        began = time.monotonic()
        scenario.run_undisturbed(folder / "undisturbed")
        lengths = ", ".join(f"{name} {s:.1f} s" for name, s in zip(scenario.stages, scenario.lengths, strict=True))
        print(f"{scenario.name}: {lengths} (measured in {time.monotonic() - began:.0f} s)", flush=True)
    case, longest = campaign.case or 0, 20.0
    while campaign.left > longest:
        began = time.monotonic()
        run_case(campaign, all_[ORDER[case % len(ORDER)]], folder, case)
        case += 1
        if campaign.case is not None:
            return
        longest = max(longest, time.monotonic() - began)


def run_case(campaign: Campaign, scenario: Scenario, folder: Path, case: int) -> None:
    """One run that is killed once or twice; its folder is kept where it did not hold."""
    rng, began, kills = random.Random(f"{campaign.seed}/kills/{case}"), time.monotonic(), 0
    place = folder / f"case-{case}"
    scenario.prepare(place)
    failed = 0
    try:
        group = rng.choice((False, True))  # as a terminal or systemd sends a signal: it reaches the workers, too
        args, command = scenario.args, None
        for attempt in range(rng.choice((1, 1, 2))):
            number = rng.choice(SIGNALS)
            command, stage = kill_at(scenario, args, place, rng, number, group, attempt)
            if stage is None:
                break  # it had ended before
            kills += 1
            scenario.hits[list(scenario.stages)[stage]] += 1
            check_end(command, number)
            scenario.check(scenario, place, command)
            args, command = scenario.go_on(scenario, place, command), None
        if command is None:
            command = commands.start(args, place, "last")
            if command.wait() != 0:
                raise Lost(f"going on fails: {command}: {command.output[-1500:]}")
            scenario.check(scenario, place, command)
        compare(scenario.result(place), scenario.expected)
    except (Lost, TimeoutError) as error:
        failed = 1
        campaign.explain("kills", case, f"{scenario.name}: {error}", place)
    except Exception as error:  # a file that cannot be read, or the like
        failed = 1
        campaign.explain("kills", case, f"{scenario.name}: {type(error).__name__}: {error}", place)
    hits = ", ".join(f"{name} {scenario.hits[name]}" for name in scenario.stages)
    campaign.report(scenario.name, max(kills, failed), time.monotonic() - began, failed, hits)
    if not failed:
        shutil.rmtree(place)
        for log in folder.glob(f"{place.name}-*.txt"):
            log.unlink()


def kill_at(
    scenario: Scenario, args: list[str], folder: Path, rng: random.Random, number: int, group: bool, attempt: int
) -> tuple[Command, int | None]:
    """Start a command and send it a signal, or its ``group``; also the stage it was in, None if it had ended before."""
    aimed = rng.choices(range(len(scenario.stages)), list(scenario.stages.values()))[0]
    delay = rng.random() * scenario.lengths[aimed]
    command = commands.start(args, folder, f"kill{attempt}")
    command.wait(lambda: scenario.stage_of(command.output) >= aimed)
    # A signal within the first moments meets Python without detkit's handlers.
    reached = max(time.monotonic(), command.began + 0.05)
    command.wait(lambda: time.monotonic() >= reached + delay)
    if command.poll():
        if command.code != 0:
            raise Lost(f"fails: {command}: {command.output[-1500:]}")
        return command, None
    stage = scenario.stage_of(command.output)
    command.kill(number, group)
    command.wait()
    return command, stage


def check_end(command: Command, number: int) -> None:
    """The exit code and the last words of a command that got a signal."""
    if number == signal.SIGKILL or command.code == 0:  # 0: it had just come to its end
        return
    output = command.output
    if command.code != 128 + number or "Traceback" in output or "Stopped. " not in output:
        raise Lost(f"after {signal.Signals(number).name}: {command}: {output[-1500:]}")


def compare(found: Any, expected: Any, where: str = "") -> None:
    """Raise `Lost` where two results differ, naming the first difference."""
    import torch

    if isinstance(expected, dict) and isinstance(found, dict):
        if found.keys() != expected.keys():
            raise Lost(f"{where}: has {sorted(map(str, found.keys() ^ expected.keys()))[:5]} too many or too few")
        for name in expected:
            compare(found[name], expected[name], f"{where}/{name}")
    elif isinstance(expected, torch.Tensor):
        if not found.equal(expected):
            raise Lost(f"{where}: differs by {float((found.double() - expected.double()).abs().max()):g}")
    elif found != expected:
        raise Lost(f"{where}: {str(found)[:200]} instead of {str(expected)[:200]}")


# -- fit --------------------------------------------------------------------------------------------


def versions(folder: Path) -> list[Path]:
    """The versions of the run, the oldest first."""
    return sorted((folder / "run").glob("version_*"), key=lambda path: int(path.name.rpartition("_")[2]))


def result_of_fit(folder: Path) -> dict[str, Any]:
    """Weights, optimizer and steps of the last checkpoint; weights of the best; the last validation."""
    from detkit.engine.checkpoints import read_checkpoint

    with_last = [path for path in versions(folder) if (path / "checkpoints" / "last.ckpt").is_file()]
    last = read_checkpoint(with_last[-1] / "checkpoints" / "last.ckpt")
    best = read_checkpoint(versions(folder)[-1] / "checkpoints" / "best.ckpt")
    with open(with_last[-1] / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/map")]
    if (folder / "run" / "features").exists():
        raise Lost("the features are left over")
    metrics = {name: value for name, value in (rows[-1] if rows else {}).items() if value and name.startswith("val/")}
    return {
        "state_dict": last["state_dict"],
        "best": best["state_dict"],
        "optimizer": {str(key): value for key, value in last["optimizer_states"][0]["state"].items()},
        "step": last["global_step"],
        "epoch": last["epoch"],
        "metrics": metrics,
    }


def check_fit(scenario: Scenario, folder: Path, command: Command) -> None:
    """Every checkpoint is whole, and nothing that an earlier one holds is done again.

    The last one is of the last epoch that was told, or of the one before.
    """
    from detkit.config_files import read_config
    from detkit.engine.checkpoints import read_checkpoint

    epochs, steps = [-1], {}
    for version in versions(folder):
        if (version / "config.yaml").exists():
            read_config(version / "config.yaml")
        for path in (version / "checkpoints").glob("*.ckpt"):
            content = read_checkpoint(path)
            epochs.append(content["epoch"])
            if path.name == "last.ckpt":  # best.ckpt is written first, and may be ahead of it
                steps[path] = content["global_step"]
    told = [int(number) for number in re.findall(r"^epoch (\d+)/", command.output, re.MULTILINE)]
    if told and max(epochs) < told[-1] - 2:  # the line comes before the checkpoint
        raise Lost(f"epoch {told[-1]} had ended, and the last checkpoint is of epoch {max(epochs) + 1}")
    own, began = (re.search(p, command.output) for p in (r"(?m)^run: \S+/(version_\d+)", r"(?m)^goes on .*step (\d+)"))
    earlier = [step for path, step in steps.items() if own is not None and own[1] not in path.parts]
    if began is not None and earlier and int(began[1]) < max(earlier):
        raise Lost(f"{command} goes on at step {began[1]}, and a checkpoint of step {max(earlier)} is there")


def go_on_fit(scenario: Scenario, folder: Path, command: Command) -> list[str]:
    """What the command itself says; after a SIGKILL the run's folder, or from the beginning without a checkpoint."""
    if named := commands.go_on_command(command.output):
        return named
    found = any(path.name == "last.ckpt" for path in (folder / "run").glob("version_*/checkpoints/*"))
    return ["fit", "--ckpt_path", "run"] if found else scenario.args


# -- propose, predict and test ----------------------------------------------------------------------


def result_of_propose(folder: Path) -> dict[str, Any]:
    """The boxes of every image; nothing but the store is there."""
    if len(left := list(folder.iterdir())) > 1:
        raise Lost(f"left over: {left}")
    return boxes_of(folder / "out.proposals")


def boxes_of(path: Path) -> dict[str, Any]:
    """The boxes of every image in a store that is whole."""
    from detkit.proposals.store import ProposalStore

    store = ProposalStore(path)
    store.verify()
    return {str(image_id): store[image_id].tolist() for image_id in store}


def check_propose(scenario: Scenario, folder: Path, command: Command) -> None:
    """There is no store, or a whole one."""
    if (folder / "out.proposals").exists():
        compare(boxes_of(folder / "out.proposals"), scenario.expected)


def result_of_predict(folder: Path) -> Any:
    """The rows of predictions.json."""
    return json.loads((folder / "run" / "version_0" / "predictions.json").read_text())


def result_of_test(folder: Path) -> dict[str, bytes]:
    """The files of the report, without its date."""
    report = folder / "run" / "version_0" / "report"
    return {name: re.sub(rb"<dt>Date</dt><dd>.*?</dd>", b"", (report / name).read_bytes()) for name in REPORT}


def check_output(scenario: Scenario, folder: Path, command: Command) -> None:
    """What was there is there, or what the command makes; it leaves nothing else, if it had time to clean up."""
    found = scenario.result(folder)
    if found not in (scenario.before, scenario.expected):
        raise Lost("the files are neither those of before nor the new ones")
    left = [path for path in (folder / "run").rglob(".*") if path.stat().st_mtime > command.began_at]
    if left and command.code != -signal.SIGKILL:
        raise Lost(f"left over: {left}")
