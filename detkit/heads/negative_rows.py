"""The cached negatives of several SVMs: a feature vector that more than one class uses is stored once.

Shape letters: K classes, D features, P regions of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # vectors of a block of memory; blocks are added, never moved
FREE = -1  # image number of an empty slot


class NegativeRows:
    """Feature vectors, identified by image and row, and which classes use each of them.

    Vectors are stored in slots, numbered through the blocks; a slot that no class uses is filled again.

    Attributes:
        image: int64 (slots,), the image of each vector, `FREE` for empty slots.
        row: int64 (slots,), its row in the image.
        used: bool (slots, K), whether a class uses it.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        self.features = features
        self.block = BLOCK
        self.blocks: list[Tensor] = []
        self.image = np.zeros(0, np.int64)
        self.row = np.zeros(0, np.int64)
        self.used = np.zeros((0, num_classes), bool)

    def __len__(self) -> int:
        return int((self.image != FREE).sum())

    def add(self, image: int, features: Tensor, wanted: np.ndarray) -> np.ndarray:
        """Store the wanted vectors, bool (P, K), of an image's features (P, D) that are not stored yet.

        Returns:
            The number of vectors that each class did not use before, int64 (K,).
        """
        rows = np.flatnonzero(wanted.any(1))
        slots = np.full(len(wanted), FREE)
        stored = np.flatnonzero(self.image == image)
        slots[self.row[stored]] = stored
        new = rows[slots[rows] == FREE]
        slots[new] = self._free_slots(len(new))
        self.image[slots[new]] = image
        self.row[slots[new]] = new
        for block, inside, index in self._by_block(slots[new]):
            block[inside] = features[torch.from_numpy(new[index])].half()
        before = self.used[slots[rows]]
        self.used[slots[rows]] = before | wanted[rows]
        return (wanted[rows] & ~before).sum(0)

    def slots_of(self, k: int) -> np.ndarray:
        """The slots of class k (from 0), sorted by image and row, in whatever order they were filled."""
        slots = np.flatnonzero(self.used[:, k])
        return slots[np.lexsort((self.row[slots], self.image[slots]))]

    def read(self, slots: np.ndarray, out: Tensor) -> None:
        """Copy the vectors of these slots to `out` (n, D), in its type."""
        for block, inside, index in self._by_block(slots):
            out[torch.from_numpy(index)] = block[inside].to(out.dtype)

    def remove(self, k: int, slots: np.ndarray) -> None:
        """Class k uses these slots no longer; those that no class uses become free."""
        self.used[slots, k] = False
        self.image[slots[~self.used[slots].any(1)]] = FREE

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors that share memory with this object; the vectors are a list of blocks."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ("image", "row", "used")}
        return {"blocks": list(self.blocks), **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same D, K and type; its tensors are used, not copied."""
        self.blocks = list(state["blocks"])
        for name in ("image", "row", "used"):
            setattr(self, name, state[name].numpy())

    def _free_slots(self, count: int) -> np.ndarray:
        """Free slots, in new blocks if there are not enough."""
        free = np.flatnonzero(self.image == FREE)
        blocks = -(-max(0, count - len(free)) // self.block)
        if blocks:
            self.blocks += [torch.zeros(self.block, self.features, dtype=torch.float16) for _ in range(blocks)]
            more = blocks * self.block
            self.image = np.concatenate([self.image, np.full(more, FREE)])
            self.row = np.concatenate([self.row, np.zeros(more, np.int64)])
            self.used = np.concatenate([self.used, np.zeros((more, self.used.shape[1]), bool)])
            free = np.flatnonzero(self.image == FREE)
        return free[:count]

    def _by_block(self, slots: np.ndarray) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """For each block with some of the slots: the block, positions within it, and the slots' indices."""
        number, inside = np.divmod(slots, self.block)
        for b in np.unique(number):
            index = np.flatnonzero(number == b)
            yield self.blocks[b], torch.from_numpy(inside[index]), index
