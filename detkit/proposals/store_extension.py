"""Making a store whole whose data set has grown: what is in it is kept, and the rest is computed."""

from __future__ import annotations

import numpy as np

from detkit.errors import DataError

from .store import ProposalStore
from .store_format import Images, finest_scale


def extended(store: ProposalStore, images: Images) -> Images | None:
    """The images of a store made whole: those wanted, in their order, and behind them the store's others.

    None is dropped, as another list of the same data set's images may want it again.

    Args:
        store: without proposals for some of the images.
        images: that are wanted.

    Returns:
        None if the store cannot be made whole: no image is missing; none is common, so that it is another data set's;
        one has another size; or an image is so large that all boxes would have to be kept more coarsely.
    """
    mine, yours = store.common(images.ids)
    same = (store.widths[mine] == images.widths[yours]).all() and (store.heights[mine] == images.heights[yours]).all()
    if not 0 < len(yours) < len(images.ids) or not same:
        return None
    others = np.setdiff1d(np.arange(len(store)), mine)
    own = (store.image_ids, store.widths, store.heights)
    whole = Images.of(*(np.concatenate([b, a[others]]) for a, b in zip(own, images, strict=True)))
    try:
        return whole if finest_scale(whole) == store.scale else None
    except DataError:
        return None
