"""Felzenszwalb and Huttenlocher's merging, compiled, for several thresholds k over one sorted list of edges.

The rule (IJCV 2004, section 3): an edge of weight w joins two components when w is at most Int(C) + k / |C| of both,
where Int(C) is the heaviest edge that joined C so far. An edge that is not joined is refused; a component that refuses
an edge never grows again, since later edges are heavier. Two facts follow, and reduce the work for further k:

- Until one of its edges is refused, a component is the connected component of all edges so far, without any threshold.
  A larger k refuses less, so up to there it merges exactly the same. These groups of pixels ("atoms") are found once,
  with the smallest k; each k then needs only the edges between atoms.
- Among edges of equal weight the order does not matter: which components may join at w is decided before the first of
  them, and components that join at w may join again at w.

After the merging, small components are absorbed by a neighbour. There the order of equal weights does matter, where a
small component has two equally near neighbours: the edge that `segmentation.build_edges` lists first decides. OpenCV
sorts by `std::sort`, which is not stable, so there any of them may be first: about one partition of a hundred differs.

A parent always has the smaller number, so one pass in ascending order flattens a forest, and a root is its component's
first pixel in reading order. Components are numbered by that pixel, as in OpenCV.

Names: atoms are what `merge_common` leaves, regions what one k makes of them, pieces are atoms that lie in the same
region for every k.
"""

from __future__ import annotations

import numpy as np

from detkit.system import jit

BLOCK = 4096  # edges that are processed together
FLATTEN = 10  # blocks after which all paths are shortened


@jit
def find_both(parents: np.ndarray, a: int, b: int) -> tuple[int, int]:
    """The roots of a and b, searched in one loop: one branch for the processor to mispredict instead of two."""
    while True:
        up_a, up_b = parents[a], parents[b]
        if up_a == a and up_b == b:
            return a, b
        parents[a], parents[b] = parents[up_a], parents[up_b]
        a, b = parents[a], parents[b]


@jit
def merge_common(weights, edges, steps, pixels, k):
    """The part of the merging that all thresholds from k on share.

    Args:
        weights, edges: (E,) float32 and uint32, ascending; see `segmentation.sort_edges`.
        steps: (D,) int64; see `segmentation.edge_steps`.
        pixels: H * W.
        k: the smallest threshold.

    Returns:
        parents (pixels,) uint32, flat; sizes (pixels,) int32 and internal (pixels,) float32, valid at roots; and open
        (O,) int64, ascending: the positions of the edges that each k must decide for itself.
    """
    parents = np.empty(pixels, np.uint32)
    for i in range(pixels):
        parents[i] = i
    sizes, internal = np.ones(pixels, np.int32), np.zeros(pixels, np.float32)
    k = np.float32(k)
    limits = np.full(pixels, k, np.float32)  # -1 once the component has refused an edge
    shift, mask = np.uint32(len(steps) >> 1), np.uint32(len(steps) - 1)  # for dividing by 2 or 4 directions
    open_edges, opened = np.empty(len(edges), np.int64), 0
    ends_a, ends_b = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint32)
    positions = np.empty(BLOCK, np.int64)
    for start in range(0, len(edges), BLOCK):
        if (start // BLOCK) % FLATTEN == FLATTEN - 1:
            for i in range(pixels):
                parents[i] = parents[parents[i]]
        # Most edges lie within a component, which mostly shows after one step: they are skipped without a branch.
        candidates = 0
        for i in range(start, min(start + BLOCK, len(edges))):
            pixel = edges[i] >> shift
            a, b = parents[pixel], parents[pixel + steps[edges[i] & mask]]
            ends_a[candidates], ends_b[candidates], positions[candidates] = a, b, i
            candidates += a != b
        for j in range(candidates):
            a, b = find_both(parents, ends_a[j], ends_b[j])
            if a == b:
                continue
            weight = weights[positions[j]]
            if weight <= min(limits[a], limits[b]):
                root, other = min(a, b), max(a, b)
                parents[other] = root
                sizes[root] += sizes[other]
                internal[root] = weight
                limits[root] = weight + k / np.float32(sizes[root])
            else:
                limits[a] = limits[b] = -1
                open_edges[opened] = positions[j]
                opened += 1
    for i in range(pixels):
        parents[i] = parents[parents[i]]
    return parents, sizes, internal, open_edges[:opened].copy()


@jit
def number_atoms(parents, sizes, internal, edges, open_edges, steps):
    """Numbers the atoms by their first pixel in reading order.

    Args:
        parents, sizes, internal: (pixels,) from `merge_common`; sizes and internal are overwritten.
        edges: (E,) uint32, all edges.
        open_edges: (O,) int64, positions of the open ones.
        steps: (D,) int64; see `segmentation.edge_steps`.

    Returns:
        atoms (pixels,) int32, the atom of each pixel; sizes (A,) int32 and internal (A,) float32 of the atoms; and the
        atoms at the two ends of each open edge, (O,) uint32 each.
    """
    atoms = np.empty(len(parents), np.int32)
    count = 0
    for i in range(len(parents)):
        if parents[i] == i:
            atoms[i] = count
            sizes[count], internal[count] = sizes[i], internal[i]
            count += 1
        else:
            atoms[i] = atoms[parents[i]]
    directions = np.uint32(len(steps))
    ends_a, ends_b = np.empty(len(open_edges), np.uint32), np.empty(len(open_edges), np.uint32)
    for i in range(len(open_edges)):
        edge = edges[open_edges[i]]
        pixel = edge // directions
        ends_a[i], ends_b[i] = atoms[pixel], atoms[pixel + steps[edge % directions]]
    return atoms, sizes[:count].copy(), internal[:count].copy(), ends_a, ends_b


@jit
def merge_atoms(weights, ends_a, ends_b, sizes, internal, k):
    """The rest of the merging, for one k.

    Args:
        weights, ends_a, ends_b: (O,) the open edges, ascending.
        sizes, internal: (A,) of the atoms.
        k: the threshold.

    Returns:
        parents (A,) uint32; sizes (A,) int32, valid at roots; refused (R,) int64: the edges between what are now two
        components, ascending.
    """
    count = len(sizes)
    k = np.float32(k)
    parents, limits = np.empty(count, np.uint32), np.empty(count, np.float32)
    for i in range(count):
        parents[i] = i
        limits[i] = internal[i] + k / np.float32(sizes[i])
    sizes = sizes.copy()
    refused, refusals = np.empty(len(weights), np.int64), 0
    for i in range(len(weights)):
        a, b = find_both(parents, ends_a[i], ends_b[i])
        if a == b:
            continue
        if weights[i] <= min(limits[a], limits[b]):
            root, other = min(a, b), max(a, b)
            parents[other] = root
            sizes[root] += sizes[other]
            limits[root] = weights[i] + k / np.float32(sizes[root])
        else:
            refused[refusals] = i
            refusals += 1
    return parents, sizes, refused[:refusals].copy()


@jit
def absorb_small(refused, ends_a, ends_b, parents, sizes, min_size):
    """Joins components of fewer than min_size pixels to their nearest neighbour.

    Args:
        refused: (R,) int64, positions of open edges, ascending in weight; from `merge_atoms`.
        ends_a, ends_b: (O,) uint32, the atoms at both ends of the open edges.
        parents, sizes: (A,) from `merge_atoms`; changed in place.
        min_size: pixels.
    """
    for position in refused:
        a, b = find_both(parents, ends_a[position], ends_b[position])
        if a != b and (sizes[a] < min_size or sizes[b] < min_size):
            root, other = min(a, b), max(a, b)
            parents[other] = root
            sizes[root] += sizes[other]


@jit
def number_regions(parents):
    """(A,) int32: the region of each atom, regions by their first pixel in reading order."""
    regions, count = np.empty(len(parents), np.int32), 0
    for i in range(len(parents)):
        if parents[i] == i:
            regions[i] = count
            count += 1
        else:
            regions[i] = regions[parents[i]]
    return regions


@jit
def join_atoms(regions):
    """Makes atoms that are in one region for every k into one.

    Args:
        regions: (K, A) int32.

    Returns:
        piece (A,) int32 of each atom, pieces by their first pixel in reading order; and (P,) int64, the first atom of
        each piece.
    """
    kinds, count = regions.shape
    piece, pieces = regions[0].copy(), 0
    for i in range(count):
        pieces = max(pieces, piece[i] + 1)
    for kind in range(1, kinds):
        # Of each piece so far, a list of the regions that it falls into.
        first, entries = np.full(pieces, -1, np.int64), 0
        following, region = np.empty(count, np.int64), np.empty(count, np.int32)
        for i in range(count):
            entry = first[piece[i]]
            while entry >= 0 and region[entry] != regions[kind, i]:
                entry = following[entry]
            if entry < 0:
                entry = entries
                following[entry], region[entry] = first[piece[i]], regions[kind, i]
                first[piece[i]] = entry
                entries += 1
            piece[i] = entry
        pieces = entries
    first_atom = np.full(pieces, -1, np.int64)
    for i in range(count):
        if first_atom[piece[i]] < 0:
            first_atom[piece[i]] = i
    return piece, first_atom
