"""Seconds an image of each generation, stage by stage, and how good it is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detkit.detectors import Detector
from detkit.detectors.region_detector import RegionDetector
from detkit.evaluation import MeanAveragePrecision, ProposalRecall
from detkit.tools.benchmark.generations import GENERATIONS, Contender
from detkit.tools.benchmark.stage_clock import PROPOSALS, STAGES, time_detection

#: More proposals than any image has: recall is that of all.
ALL = 1_000_000


@dataclass
class Row:
    """What was found of one generation.

    Attributes:
        key: of `GENERATIONS`.
        checkpoint: None for random weights.
        inputs: what the network sees, in pixels.
        seconds: an image, of each of `STAGES`: the mean over the images of the median over the rounds.
        boxes: proposals that an image has on average.
        recall_50, recall_70: share of the objects that they cover at that IoU; None without ground truth, and for an
            RPN with random weights.
        map: by ``protocol``; None without ground truth or a checkpoint.
        protocol: in words.
        times: (images, rounds) of the seconds of each stage.
    """

    key: str
    checkpoint: str | None
    inputs: str
    seconds: dict[str, float]
    boxes: float
    recall_50: float | None
    recall_70: float | None
    map: float | None
    protocol: str | None
    times: list[list[dict[str, float]]]

    @property
    def name(self) -> str:
        """The generation's."""
        return GENERATIONS[self.key].name

    def total(self, with_proposals: bool = True) -> float:
        """Seconds of all stages, an image."""
        return sum(value for stage, value in self.seconds.items() if with_proposals or stage != PROPOSALS)

    @property
    def seconds_2015(self) -> float:
        """Of the course's table; see `Known`."""
        return GENERATIONS[self.key].seconds_2015


def measure(
    contenders: Sequence[Contender],
    samples: Sequence[dict[str, Any]],
    rounds: int,
    protocol: str,
    step: Callable[[], None] = lambda: None,
    warm: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Time the generations in turns: in each round every image, and each image by every generation.

    Before the rounds, each detects the first image without a clock, for what is compiled or allocated once.

    Args:
        contenders: on their device.
        samples: images, with ground truth or without.
        rounds: at least 1.
        protocol: of the mAP: coco, voc07 or voc10.
        step: called after each image of each round.
        warm: called once, before the first round.
    """
    quality = [Quality(each, protocol) for each in contenders]
    for each in contenders:
        time_detection(each.detector, _bare(samples[0]))
    warm()
    times: dict[str, list[list[dict[str, float]]]] = {each.key: [[] for _ in samples] for each in contenders}
    for turn in range(rounds):
        for i, sample in enumerate(samples):
            for each, judge in zip(contenders, quality, strict=True):
                found, seconds = time_detection(each.detector, _bare(sample))
                times[each.key][i].append(seconds)
                if turn == 0:
                    judge.see(sample, found)
            step()
    rows = []
    for each, judge in zip(contenders, quality, strict=True):
        seconds = {stage: seconds_an_image(times[each.key], stage) for stage in STAGES}
        rows.append(Row(each.key, each.checkpoint, each.inputs, seconds, **judge.numbers(), times=times[each.key]))
    return rows


def seconds_an_image(times: Sequence[Sequence[dict[str, float]]], stage: str) -> float:
    """Mean over the images of the median over the rounds."""
    return statistics.fmean(statistics.median(each[stage] for each in rounds) for rounds in times)


class Quality:
    """Counts the proposals of a generation and, where there is ground truth, how good they and the detections are.

    Args:
        contender: whose.
        protocol: of the mAP.
    """

    def __init__(self, contender: Contender, protocol: str) -> None:
        names = contender.detector.class_names
        self.detector, self.trained = contender.detector, contender.checkpoint is not None
        self.recall = ProposalRecall(names, counts=[ALL])
        self.precision = MeanAveragePrecision(protocol, names)
        self.known = False  # whether there is ground truth

    def see(self, sample: dict[str, Any], found: dict[str, Tensor]) -> None:
        """Take in an image and what was detected."""
        self.known |= "boxes" in sample
        truth = sample if "boxes" in sample else {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
        self.recall.update([proposals(self.detector, _bare(sample)).cpu()], [truth])
        if self.trained and self.known:
            self.precision.update([{name: value.cpu() for name, value in found.items()}], [truth])

    def numbers(self) -> dict[str, Any]:
        """``boxes``, ``recall_50``, ``recall_70``, ``map`` and ``protocol`` of a `Row`."""
        recall = self.recall.compute()
        judged = self.known and (self.trained or not hasattr(self.detector, "rpn"))
        result = {"boxes": float(recall["num_proposals"][0]), "map": None, "protocol": None}
        result |= {name: float(recall[name][0]) if judged else None for name in ("recall_50", "recall_70")}
        if self.trained and self.known:
            found = self.precision.compute()
            result |= {"map": float(found["map"]), "protocol": found["protocol"]}
        return result


@torch.no_grad()
def proposals(detector: Detector, sample: dict[str, Any]) -> Tensor:
    """The proposals (P, 4) that a detector uses of an image, in its pixels, best first."""
    if not isinstance(detector, RegionDetector):
        return detector.proposals_of([sample])[0]
    encoded = detector.encode([sample])
    (found,) = detector.propose([sample], encoded)
    return encoded.images.to_original(found.boxes[found.usable], 0)


def _bare(sample: dict[str, Any]) -> dict[str, Any]:
    """What a detector may know: neither the ground truth nor proposals from a store."""
    return {name: sample[name] for name in ("image", "image_id")}
