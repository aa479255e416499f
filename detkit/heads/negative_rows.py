"""The negatives that several SVMs train on, each held once.

Shape letters: K classes, D features, P regions of an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # vectors that the memory grows by; nothing is ever moved
FREE = -1  # as the image of a place that nothing is held at


class NegativeRows:
    """Feature vectors, known by their image and row, with the classes that use each.

    Args:
        features: D.
        num_classes: K.
        dtype: in which they are held; half precision halves the memory.
    """

    def __init__(self, features: int, num_classes: int, dtype: torch.dtype = torch.float16) -> None:
        self.dtype = dtype
        self.features = features
        self.block = BLOCK
        self.blocks: list[Tensor] = []
        self.image = np.zeros(0, np.int64)
        self.row = np.zeros(0, np.int64)
        self.used = np.zeros((0, num_classes), bool)

    def __len__(self) -> int:
        """Vectors held, each counted once."""
        return int((self.image != FREE).sum())

    @property
    def nbytes(self) -> int:
        """Memory taken, with the places that are free at the moment."""
        return sum(block.nbytes for block in self.blocks) + self.image.nbytes + self.row.nbytes + self.used.nbytes

    def add(self, image: int, features: Tensor, wanted: np.ndarray) -> np.ndarray:
        """Take what is wanted of an image's vectors, unless it is held already.

        Args:
            image: its number, from 0.
            features: (P, D) on the CPU, the same ones whenever this image comes.
            wanted: bool (P, K), whether a class is to use a vector.

        Returns:
            How many each class did not use before, int64 (K,).
        """
        rows = np.flatnonzero(wanted.any(1))
        place = np.full(len(wanted), FREE)
        held = np.flatnonzero(self.image == image)
        place[self.row[held]] = held
        new = rows[place[rows] == FREE]
        place[new] = self._take(len(new))
        self.image[place[new]], self.row[place[new]] = image, new
        for block, where, source in self._by_block(place[new]):
            block[where] = features[torch.from_numpy(new[source])].to(self.dtype)
        before = self.used[place[rows]]
        self.used[place[rows]] = before | wanted[rows]
        return (wanted[rows] & ~before).sum(0)

    def of(self, k: int) -> np.ndarray:
        """Where the vectors of class k (from 0) are, in the order of image and row, however they came here."""
        places = np.flatnonzero(self.used[:, k])
        return places[np.lexsort((self.row[places], self.image[places]))]

    def read(self, places: np.ndarray, out: Tensor) -> None:
        """Write the vectors at these places to `out` (n, D), in its type."""
        for block, where, target in self._by_block(places):
            out[torch.from_numpy(target)] = block[where].to(out.dtype)

    def drop(self, k: int, places: np.ndarray) -> None:
        """Class k no longer uses these; what no class uses any more makes room."""
        self.used[places, k] = False
        self.image[places[~self.used[places].any(1)]] = FREE

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, the vectors in a list of blocks; they share memory with this object."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ("image", "row", "used")}
        return {"blocks": list(self.blocks), **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, of the same D, K and type; its tensors become this object's own."""
        self.blocks = list(state["blocks"])
        for name in ("image", "row", "used"):
            setattr(self, name, state[name].numpy())

    def _take(self, count: int) -> np.ndarray:
        """Free places, new ones where those are not enough."""
        free = np.flatnonzero(self.image == FREE)
        blocks = -(-max(0, count - len(free)) // self.block)
        if blocks:
            self.blocks += [torch.zeros(self.block, self.features, dtype=self.dtype) for _ in range(blocks)]
            more = blocks * self.block
            self.image = np.concatenate([self.image, np.full(more, FREE)])
            self.row = np.concatenate([self.row, np.zeros(more, np.int64)])
            self.used = np.concatenate([self.used, np.zeros((more, self.used.shape[1]), bool)])
            free = np.flatnonzero(self.image == FREE)
        return free[:count]

    def _by_block(self, places: np.ndarray) -> list[tuple[Tensor, Tensor, np.ndarray]]:
        """Of each block that places lie in: the block, where in it, and which of `places` those are."""
        number, inside = np.divmod(places, self.block)
        which = [(b, np.flatnonzero(number == b)) for b in np.unique(number)]
        return [(self.blocks[b], torch.from_numpy(inside[index]), index) for b, index in which]
