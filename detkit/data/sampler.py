"""The order in which samples are read, and the seed that goes with each.

Both samplers are DistributedSamplers, so that Lightning leaves them in place and tells them the epoch. Order and seeds
are pure functions of (seed, epoch, index), whatever the number of workers, and after a resumption too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch.distributed
from torch.utils.data import DistributedSampler


def _world(num_replicas: int | None, rank: int | None) -> dict[str, int | None]:
    """DistributedSampler's arguments, which ask torch.distributed where they are None; 1 and 0 if it does not run."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        num_replicas, rank = num_replicas or 1, rank or 0
    return {"num_replicas": num_replicas, "rank": rank}


class EvalSampler(DistributedSampler):
    """Every index in order, shared out among the ranks.

    The last ones are repeated where the ranks would get unequal shares; a metric drops
    repeated images by their image_id.

    Args:
        size: number of samples.
        num_replicas, rank: as in DistributedSampler; None asks torch.distributed (1 and 0 where it is not running).
    """

    def __init__(self, size: int, num_replicas: int | None = None, rank: int | None = None) -> None:
        super().__init__(range(size), **_world(num_replicas, rank), shuffle=False)  # type: ignore[arg-type]


class TrainSampler(DistributedSampler):
    """Shuffled (index, seed) pairs.

    Args:
        size: number of samples.
        seed: of the shuffle and of the augmentation.
        batch_size: of the loader (per rank); needed for grouping only.
        wide: (size,) bool, which images are wider than tall: runs of `batch_size` then are all
            wide or all tall, except in the last batches of an epoch, which take what is left.
        repeats: (size,) of 1 and more, how often each is read in an epoch, on average where it is no whole number; an
            epoch has as many samples as their sum. None: each once.
        num_replicas, rank: as in EvalSampler.
        samples_done: how many of this rank's samples of the epoch are left out, since they were done before a
            resumption; asked each time an iterator begins. `len()` counts them nevertheless.
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        batch_size: int = 1,
        wide: np.ndarray | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        samples_done: Callable[[], int] = lambda: 0,
        repeats: np.ndarray | None = None,
    ) -> None:
        self.repeats = repeats
        count = size if repeats is None else round(float(repeats.sum()))
        super().__init__(range(count), **_world(num_replicas, rank), seed=seed)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.wide = wide
        self.samples_done = samples_done

    def __iter__(self) -> Iterator[tuple[int, int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        index, copy = self._epoch()
        order = np.resize(random.permutation(len(index)), self.total_size)
        if self.wide is None:
            mine = order[self.rank :: self.num_replicas]
        else:
            mine = self._grouped(order, self.wide[index[order]])
        mine = mine[self.samples_done() :]
        for sample, number in zip(index[mine].tolist(), copy[mine].tolist(), strict=True):
            entropy = (self.seed, self.epoch, sample, *([number] if number else []))
            yield sample, int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _epoch(self) -> tuple[np.ndarray, np.ndarray]:
        """The indices of an epoch, in order, and the number of each among those that are equal, from 0."""
        if self.repeats is None:
            indices = np.arange(len(self.dataset))  # type: ignore[arg-type]
            return indices, np.zeros_like(indices)
        # Systematic sampling: the sum of the counts is the same in every epoch, and each is right on average.
        start = np.random.default_rng((self.seed, self.epoch, 2)).random()
        ends = np.floor(np.cumsum(self.repeats) * len(self.dataset) / self.repeats.sum() + start)  # type: ignore[arg-type]
        counts = np.diff(ends, prepend=0).astype(np.int64)
        indices = np.repeat(np.arange(len(counts)), counts)
        return indices, np.arange(len(indices)) - np.repeat(np.cumsum(counts) - counts, counts)

    def _grouped(self, order: np.ndarray, wide: np.ndarray) -> np.ndarray:
        """This rank's indices in batches of one orientation."""
        batch = self.batch_size
        groups = [(group, len(group) // batch * batch) for group in (order[wide], order[~wide])]
        batches = np.concatenate([group[:full] for group, full in groups]).reshape(-1, batch)
        batches = batches[np.random.default_rng((self.seed, self.epoch, 1)).permutation(len(batches))]
        flat = np.concatenate([batches.reshape(-1), *(group[full:] for group, full in groups)])
        # Whole batches go round the ranks; what is left over is shared out singly.
        dealt = self.num_samples // batch * batch * self.num_replicas
        mine = flat[:dealt].reshape(-1, self.num_replicas, batch)[:, self.rank].reshape(-1)
        return np.concatenate([mine, flat[dealt:][self.rank :: self.num_replicas]])


def classes_of_images(labels: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Which image has which class: int64 (P, 2), an image and a label, each pair once.

    Args:
        labels: (N,) of all objects; those of image i are labels[offsets[i]:offsets[i + 1]].
        offsets: (I + 1,).
    """
    images = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.unique(np.stack([images, labels.astype(np.int64)], axis=1), axis=0)


def repeat_factors(labels: np.ndarray, offsets: np.ndarray, threshold: float) -> np.ndarray:
    """How often each image is read in an epoch, so that rare classes are seen more often (Gupta et al. 2019, LVIS).

    The factor of a class is max(1, sqrt(threshold / f)), f the share of the images that have it; that of an image is
    the largest of its classes'.

    Args:
        labels, offsets: as in `classes_of_images`.
        threshold: share (0-1) of the images below which a class is rare; 0.001 in the paper, more for small sets.

    Returns:
        float64 (I,) of 1 and more.
    """
    images, classes = classes_of_images(labels, offsets).T
    factors, count = np.ones(len(offsets) - 1), len(offsets) - 1
    of_class = np.sqrt(threshold * count / np.maximum(np.bincount(classes), 1))
    np.maximum.at(factors, images, of_class[classes])
    return factors
