"""What R-CNN and Fast R-CNN share: their proposals are given, by stores of the data set's splits."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from detkit.data.datamodule import STAGES, DetectionDataModule
from detkit.detectors.proposal_source import ProposalSource
from detkit.errors import ConfigError
from detkit.types import Batch


class GivenProposals:
    """The hooks by which samples get their ``proposals``; mixed into a `Detector`.

    They come from stores, which a fit computes where they are missing. An image without them (`predict`, or
    ``fast_dev_run`` where there is no store) is searched on the spot.
    """

    trainer: L.Trainer
    training: bool

    def set_source(self, source: ProposalSource, max_proposals: tuple[int | None, int | None]) -> None:
        """Say where proposals come from, and how many of an image's best are used, in training and otherwise.

        Raises:
            ConfigError: for a limit below 1.
        """
        if any(limit is not None and limit < 1 for limit in max_proposals):
            raise ConfigError(f"max_proposals {max_proposals} must be at least 1")
        self.source, self.max_proposals = source, tuple(max_proposals)
        self._given: list[str] = []

    def proposals_of(self, batch: Batch) -> list[Tensor]:
        """The best proposals (P, 4) of each image, in its own pixels."""
        given = [sample.get("proposals") for sample in batch]
        bare = [i for i, boxes in enumerate(given) if boxes is None]
        if bare:
            found = self.source.of_images([batch[i]["image"] for i in bare], [batch[i].get("image_id") for i in bare])
            for i, boxes in zip(bare, found, strict=True):
                given[i] = boxes
        limit = self.max_proposals[0 if self.training else 1]
        return [boxes[:limit] for boxes in given]

    # -- Lightning -----------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Compute the stores that are missing; Lightning calls it on one process of each machine.

        Not with ``fast_dev_run``: it reads a few images, which are searched on the spot.
        """
        for split in self._splits(self.trainer.state.fn):
            annotations = self.trainer.datamodule.annotations(split)
            if not self.trainer.fast_dev_run or self.source.has(annotations, split):
                self.source.compute(annotations, split)

    def setup(self, stage: str) -> None:
        """Give the data set's samples their proposals."""
        data = self.trainer.datamodule
        stores = {
            split: self.source.open(data.annotations(split), split)
            for split in self._splits(stage)
            if not self.trainer.fast_dev_run or self.source.has(data.annotations(split), split)
        }
        if stores:
            data.use_proposals(stores)
            self._given = list(stores)

    def teardown(self, stage: str) -> None:
        """Take the proposals back: the next detector may want others."""
        while self._given:
            self.trainer.datamodule.proposals.pop(self._given.pop(), None)

    def _splits(self, stage: str) -> list[str]:
        """The splits of the trainer's data set that a stage reads, and that nobody has given proposals."""
        data: Any = self.trainer.datamodule
        if not isinstance(data, DetectionDataModule):
            return []
        splits = [data.test_split if split == "test" else split for split in STAGES[stage]]
        if stage == "fit" and self.trainer.limit_val_batches == 0:
            splits.remove("val")
        return [split for split in splits if split not in data.proposals and data.annotations(split) is not None]
