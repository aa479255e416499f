"""Felzenszwalb and Huttenlocher's merging, compiled, for several thresholds k over one sorted list of edges.

The rule (IJCV 2004, section 3): an edge of weight w joins two components when w is at most Int(C) + k / |C| of both,
where Int(C) is the heaviest edge that joined C so far. A component that refuses an edge never grows again, since later
edges are heavier. Until then it is the connected component of all edges so far, whatever k is. So these groups of
pixels ("atoms") are found once, with the smallest k; each k then needs only the edges between atoms. The regions of
one k are unions of atoms; "pieces" are atoms that lie in the same region for every k.

Afterwards small components are absorbed by a neighbour. Of two equally near ones, the edge that
`segmentation.build_edges` lists first decides. OpenCV's sort is not stable: one partition of a hundred differs.

A parent always has the smaller number, so one pass in ascending order flattens a forest. Components are numbered by
their root, the first pixel in reading order, as in OpenCV.
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

    Of weights float32 and edges uint32 (E,), ascending. Returns parents uint32 (pixels,), flat; sizes int32 and
    internal float32 (pixels,), valid at roots; and the positions of the edges that each k must decide itself, int64
    (O,), ascending.
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
def number_regions(parents):
    """int32: the component of each member, components by their first pixel in reading order."""
    regions, count = np.empty(len(parents), np.int32), 0
    for i in range(len(parents)):
        if parents[i] == i:
            regions[i] = count
            count += 1
        else:
            regions[i] = regions[parents[i]]
    return regions


@jit
def number_atoms(parents, sizes, internal, edges, open_edges, steps):
    """Number the atoms of `merge_common`; sizes and internal are overwritten.

    Returns the atom of each pixel, int32 (pixels,); sizes int32 and internal float32 (A,) of the atoms; and the atoms
    at the two ends of each open edge, uint32 (O,) each.
    """
    atoms = number_regions(parents)
    count = 0
    for i in range(len(parents)):
        if parents[i] == i:
            sizes[count], internal[count] = sizes[i], internal[i]
            count += 1
    directions = np.uint32(len(steps))
    ends_a, ends_b = np.empty(len(open_edges), np.uint32), np.empty(len(open_edges), np.uint32)
    for i in range(len(open_edges)):
        edge = edges[open_edges[i]]
        pixel = edge // directions
        ends_a[i], ends_b[i] = atoms[pixel], atoms[pixel + steps[edge % directions]]
    return atoms, sizes[:count].copy(), internal[:count].copy(), ends_a, ends_b


@jit
def merge_atoms(weights, ends_a, ends_b, sizes, internal, k):
    """The rest of the merging, for one k, of the open edges (O,).

    Returns parents uint32 (A,); sizes int32 (A,), valid at roots; and the positions of the edges between what are now
    two components, int64 (R,), ascending.
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
    """Join components of fewer than min_size pixels to their nearest neighbour, in place."""
    for position in refused:
        a, b = find_both(parents, ends_a[position], ends_b[position])
        if a != b and (sizes[a] < min_size or sizes[b] < min_size):
            root, other = min(a, b), max(a, b)
            parents[other] = root
            sizes[root] += sizes[other]


@jit
def join_atoms(regions):
    """Join atoms that are in one region for every k, given the region of each, int32 (K, A).

    Returns the piece of each atom, int32 (A,), and the first atom of each piece, int64 (P,).
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
