"""Where Fast R-CNN's proposals come from: stores of a data set's splits, or the image itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detkit.errors import ConfigError, DataError
from detkit.system import available_cores

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations
    from detkit.proposals.store import ProposalStore

#: What is computed from the pixels alone; the RPN's proposals are made by `detkit propose`.
COMPUTED = ("selective_search", "sliding_window")
METHODS = (*COMPUTED, "rpn")


class ProposalSource:
    """Finds, computes and opens proposals.

    Args:
        method: selective_search, sliding_window or rpn.
        mode: of selective search: fast, quality or single.
        options: further options of the method.
        place: a store's file, which serves every split, or the folder of the splits' stores; None: the data set's.

    Raises:
        ConfigError: for an unknown method, an option that it does not have, or a value that it does not take.
    """

    def __init__(self, method: str, mode: str, options: Mapping[str, Any] | None, place: str | None) -> None:
        if method not in METHODS:
            raise ConfigError(f"unknown proposal_method {method!r}; the known ones are {', '.join(METHODS)}")
        self.method, self.place = method, None if place is None else Path(place)
        self.options = ({"mode": mode} if method == "selective_search" else {}) | dict(options or {})
        if method in COMPUTED:
            from detkit.data.proposal_methods import resolve_options

            resolve_options(method, self.options)

    def compute(self, annotations: Annotations, split: str) -> None:
        """Compute the store of a split if it is missing, and say so.

        Raises:
            DataError: if there is a store of other proposals or another data set, or none can be made.
        """
        from detkit.data.proposals import load_or_compute

        if self.method in COMPUTED and not self._is_file:
            load_or_compute(annotations, self._path(annotations, split), method=self.method, options=self.options)
        else:
            self.open(annotations, split)

    def has(self, annotations: Annotations, split: str) -> bool:
        """Whether a split's proposals are in a store, or must be: they cannot be computed, or the user names a file."""
        return self.method not in COMPUTED or self._is_file or self._path(annotations, split).exists()

    def open(self, annotations: Annotations, split: str) -> ProposalStore:
        """The store of a split.

        Raises:
            DataError: if there is none, or it is damaged.
        """
        from detkit.proposals.store import ProposalStore

        return ProposalStore.open(self._path(annotations, split))

    def of_image(self, image: Tensor, image_id: str | int | None = None) -> Tensor:
        """Proposals (P, 4) of an image, uint8 (3, H, W), in its pixels.

        They are those that its data set's store would have; the store rounds what lies between pixels, as boxes of
        images wider than `resize_width` do, to eighths of a pixel (more coarsely for images of 8192 pixels and more).

        Raises:
            ConfigError: for proposals that are not made from pixels.
        """
        return self.of_images([image], [image_id])[0]

    def of_images(self, images: Sequence[Tensor], image_ids: Sequence[str | int | None]) -> list[Tensor]:
        """`of_image` of several images, side by side on all cores."""
        from detkit.data.proposal_methods import propose_for_pixels, resolve_options

        if self.method not in COMPUTED:
            raise ConfigError(
                f"an image came without proposals, and proposal_method: {self.method} makes none of pixels alone; make "
                "a store with `detkit propose` and give it as `proposals`, or set proposal_method: selective_search"
            )
        options = resolve_options(self.method, self.options)

        def one(image: Tensor, image_id: str | int | None) -> Tensor:
            pixels = np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy())
            found = propose_for_pixels(pixels, self.method, options, image_id)
            return torch.as_tensor(found, dtype=torch.float32).reshape(-1, 4)

        if len(images) == 1:
            return [one(images[0], image_ids[0])]
        with ThreadPoolExecutor(available_cores(), "proposals") as pool:
            return list(pool.map(one, images, image_ids))

    def of_first(self, annotations: Annotations, count: int) -> dict[str | int, np.ndarray]:
        """Proposals (P, 4) of the first `count` images of a split, by their ids, computed now and kept nowhere."""
        from detkit.data.proposal_methods import propose, resolve_options

        options = resolve_options(self.method, self.options)
        return {annotations.image_id(i): propose(annotations, i, self.method, options)[0] for i in range(count)}

    @property
    def _is_file(self) -> bool:
        from detkit.data.proposals import SUFFIX

        # One that is not there by that name is a slip, and no folder to be made.
        return self.place is not None and (self.place.is_file() or self.place.suffix == SUFFIX)

    def _path(self, annotations: Annotations, split: str) -> Path:
        from detkit.data.proposals import SUFFIX, default_store_path

        if self._is_file:
            return self.place
        if self.method in COMPUTED:
            return default_store_path(annotations, split, self.method, self.options, self.place)
        # Their options are those of a network that need not be at hand.
        folder = self.place or default_store_path(annotations, split, self.method, {}).parent
        found = sorted(folder.glob(f"{split}-{self.method}-*{SUFFIX}"))
        if len(found) != 1:
            raise DataError(
                f"{folder}: holds {len(found) or 'no'} stores of {self.method} proposals for {split}, and one is "
                "needed: make it with `detkit propose`, or name the file as `proposals`"
            )
        return found[0]
