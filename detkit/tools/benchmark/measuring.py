"""Seconds an image of each generation, stage by stage, and how good it is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detkit.detectors import Detector, FasterRCNN
from detkit.detectors.base import RegionDetector
from detkit.evaluation import MeanAveragePrecision, ProposalRecall
from detkit.tools.benchmark.contenders import GENERATIONS, Contender
from detkit.tools.benchmark.stage_clock import PROPOSALS, STAGES, time_detection
from detkit.types import Detections, Sample

#: More proposals than any image has, so that recall is that of all proposals.
ALL = 1_000_000


@dataclass
class Row:
    """What was measured of one generation.

    Attributes:
        key: of `GENERATIONS`.
        checkpoint: None for random weights.
        inputs: sizes of the network's inputs, in pixels.
        seconds: stage of `STAGES` -> seconds an image: the mean over the images of the median over the rounds.
        boxes: mean number of proposals of an image.
        recall_50, recall_70: share of the objects that the proposals cover at IoU 0.5 and 0.7; None without ground
            truth, and for an RPN with random weights.
        map: mAP by ``protocol``; None without ground truth or a checkpoint.
        protocol: its description.
        times: (images, rounds), each the seconds of each stage.
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
        """Name of the generation."""
        return GENERATIONS[self.key].name

    def total(self, with_proposals: bool = True) -> float:
        """Seconds an image of all stages."""
        return sum(value for stage, value in self.seconds.items() if with_proposals or stage != PROPOSALS)

    @property
    def seconds_2015(self) -> float:
        """Seconds an image of the course's table; see `Generation`."""
        return GENERATIONS[self.key].seconds_2015


def measure(
    contenders: Sequence[Contender],
    samples: Sequence[Sample],
    rounds: int,
    protocol: str,
    step: Callable[[], None] = lambda: None,
    warm: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Time the generations in turns: every image in each round, every generation on each image.

    Before the rounds each generation detects the first image untimed, since code is compiled and memory allocated once;
    ``warm`` is called then, and ``step`` after each image of each round.
    """
    quality = [Quality(contender, protocol) for contender in contenders]
    for contender in contenders:
        time_detection(contender.detector, _without_truth(samples[0]))
    warm()
    times: list[list[list[dict[str, float]]]] = [[[] for _ in samples] for _ in contenders]
    for turn in range(rounds):
        for i, sample in enumerate(samples):
            for contender, measured, taken in zip(contenders, quality, times, strict=True):
                detections, seconds = time_detection(contender.detector, _without_truth(sample))
                taken[i].append(seconds)
                if turn == 0:
                    measured.update(sample, detections)
            step()
    rows = []
    for contender, measured, taken in zip(contenders, quality, times, strict=True):
        seconds = {stage: seconds_an_image(taken, stage) for stage in STAGES}
        about = (contender.key, contender.checkpoint, contender.inputs)
        rows.append(Row(*about, seconds, **measured.compute(), times=taken))
    return rows


def seconds_an_image(times: Sequence[Sequence[dict[str, float]]], stage: str) -> float:
    """Mean over the images of the median over the rounds."""
    return statistics.fmean(statistics.median(each[stage] for each in rounds) for rounds in times)


class Quality:
    """The number of a generation's proposals and, with ground truth, their recall and the mAP of the detections."""

    def __init__(self, contender: Contender, protocol: str) -> None:
        names = contender.detector.class_names
        self.detector = contender.detector
        self.trained = contender.checkpoint is not None
        self.recall = ProposalRecall(names, counts=[ALL])
        self.precision = MeanAveragePrecision(protocol, names)
        self.has_truth = False

    def update(self, sample: Sample, detections: Detections) -> None:
        """Add an image and its detections."""
        self.has_truth |= "boxes" in sample
        truth = sample if "boxes" in sample else {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
        self.recall.update([proposals(self.detector, _without_truth(sample)).cpu()], [truth])
        if self.trained and self.has_truth:
            self.precision.update([{name: value.cpu() for name, value in detections.items()}], [truth])

    def compute(self) -> dict[str, Any]:
        """``boxes``, ``recall_50``, ``recall_70``, ``map`` and ``protocol`` of a `Row`."""
        recall = self.recall.compute()
        has_recall = self.has_truth and (self.trained or not isinstance(self.detector, FasterRCNN))
        result: dict[str, Any] = {"boxes": float(recall["num_proposals"][0]), "map": None, "protocol": None}
        result |= {name: float(recall[name][0]) if has_recall else None for name in ("recall_50", "recall_70")}
        if self.trained and self.has_truth:
            metrics = self.precision.compute()
            result |= {"map": float(metrics["map"]), "protocol": metrics["protocol"]}
        return result


@torch.no_grad()
def proposals(detector: Detector, sample: Sample) -> Tensor:
    """The proposals (P, 4) that a detector uses of an image, in its pixels, best first."""
    if not isinstance(detector, RegionDetector):
        return detector.given.of_batch([sample], training=False)[0]
    encoded = detector.encode([sample])
    (found,) = detector.propose([sample], encoded)
    return encoded.images.to_original(found.boxes[found.valid], 0)


def _without_truth(sample: Sample) -> Sample:
    """The sample without ground truth and without stored proposals."""
    return {"image": sample["image"], "image_id": sample["image_id"]}
