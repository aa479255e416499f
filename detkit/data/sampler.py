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
    ) -> None:
        super().__init__(range(size), **_world(num_replicas, rank), seed=seed)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.wide = wide
        self.samples_done = samples_done

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))  # type: ignore[arg-type]
        order = np.resize(order, self.total_size)
        mine = order[self.rank :: self.num_replicas] if self.wide is None else self._grouped(order, self.wide[order])
        indices = mine[self.samples_done() :].tolist()
        seeds = (np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0] for index in indices)
        return zip(indices, map(int, seeds), strict=True)

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
