"""Initial regions: Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004).

Pixels are joined where the edge between two components is no heavier than what holds each of them together, plus k
over its size; components that stay too small are then absorbed by a neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detkit.errors import ConfigError

from . import atoms, forest, graph, ties
from .colour_spaces import as_channels


class Segmentations(NamedTuple):
    """Partitions of one image, one for each k, as unions of common pieces.

    Attributes:
        pieces: (H, W) int32, the piece that each pixel lies in, 0..P-1 in reading order of their first pixels.
        regions: (K, P) int32, the region of each piece, for each k; 0..R-1 likewise.
    """

    pieces: np.ndarray
    regions: np.ndarray

    def labels(self, index: int = 0) -> np.ndarray:
        """The label map (H, W) int32 of the k at that index."""
        return self.regions[index][self.pieces]


def segment(
    image: np.ndarray, k: float = 150.0, sigma: float = 0.8, min_size: int = 100, connectivity: int = 4
) -> np.ndarray:
    """The initial regions of an image for one k, as a label map.

    Args:
        image: uint8 (H, W, C), see `to_colour_space`.
        k: the larger, the larger the regions; in units of colour times pixels.
        sigma: of the Gaussian that smoothes the image first, in pixels.
        min_size: regions of fewer pixels are absorbed.
        connectivity: 4 (OpenCV's graph) or 8 (the authors') neighbours of a pixel.

    Returns:
        (H, W) int32, regions 0..R-1 in reading order of their first pixels. With 4 neighbours it equals the result of
        OpenCV's GraphSegmentation on the same image, of the same version and processor.
    """
    return segment_many(image, [k], sigma, min_size, connectivity).labels(0)


def segment_many(
    image: np.ndarray,
    ks: Sequence[float],
    sigma: float = 0.8,
    min_size: int | Sequence[int] = 100,
    connectivity: int = 4,
) -> Segmentations:
    """`segment` for several k at little more than the cost of one; min_size may differ for each.

    Raises:
        ConfigError: no k, a k or sigma that is not positive, or another number of neighbours than 4 or 8.
        ImageTypeError: an image of another type or shape.
    """
    image = as_channels(image)
    least = [min_size] * len(ks) if isinstance(min_size, int) else list(min_size)
    if not len(ks) or min(ks) <= 0 or sigma <= 0 or connectivity not in (4, 8) or len(least) != len(ks):
        raise ConfigError(
            f"segmentation needs one or more k above 0 (here {list(ks)}), a min_size for each or for all (here "
            f"{min_size}), sigma above 0 (here {sigma}) and 4 or 8 neighbours (here {connectivity})"
        )
    height, width, _ = image.shape
    steps = graph.edge_steps(width, connectivity)
    weights, edges = graph.unpack(graph.sort_edges(graph.build_edges(smooth(image, sigma), connectivity)))
    parents, sizes, internal, open_edges = forest.merge_common(weights, edges, steps, height * width, min(ks))
    atom_of, sizes, internal, ends_a, ends_b = atoms.number_atoms(parents, sizes, internal, edges, open_edges, steps)
    open_weights = weights[open_edges]
    settled = np.full(len(open_edges), connectivity == 8)
    regions = np.empty((len(ks), len(sizes)), np.int32)
    todo = list(range(len(ks)))
    while todo:
        unsettled = {}
        for row in todo:
            tree, tree_sizes, refused = forest.merge_atoms(open_weights, ends_a, ends_b, sizes, internal, ks[row])
            unsettled[row] = forest.absorb_small(
                refused, open_weights, ends_a, ends_b, settled, tree, tree_sizes, least[row]
            )
            regions[row] = atoms.number_regions(tree)
        todo = [row for row in todo if len(unsettled[row])]
        if todo:
            wanted = np.unique(np.concatenate([unsettled[row] for row in todo]))
            order = ties.equal_weight_order(weights, edges, wanted, height, width)
            ties.settle(order, open_weights, open_edges, edges, wanted, settled)
            ends_a, ends_b = atoms.find_ends(atom_of, edges, open_edges, steps)
    piece, first = atoms.join_atoms(regions)
    return Segmentations(piece[atom_of].reshape(height, width), regions[:, first])


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """float32 (H, W, C): each channel under a Gaussian of that sigma, as OpenCV computes it."""
    import cv2

    smoothed = image.astype(np.float32)
    return cv2.GaussianBlur(smoothed, (0, 0), sigma, dst=smoothed, sigmaY=sigma).reshape(image.shape)
