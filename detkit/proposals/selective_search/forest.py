"""Felzenszwalb and Huttenlocher's merging, compiled, for several thresholds k over one sorted list of edges.

The rule (IJCV 2004, section 3): an edge of weight w joins two components when w is at most Int(C) + k / |C| of both,
Int(C) being the heaviest edge that joined C so far. A component that refuses an edge never grows again, as later edges
are heavier still. Two facts follow, and make the work for the second, third, ... k small:

- Until a component has been party to a refusal, it is what it would be without any threshold: all that hangs together
  by edges so far. A larger k refuses less, so up to there it merges exactly the same. These groups of pixels
  ("atoms") are found once, with the smallest k; each k then only looks at the edges between atoms.
- Among edges of equal weight the order does not matter: who may join at w is settled before the first of them, and
  whoever joins may go on joining at w. (It does matter when small components are absorbed: see ties.py.)

A parent always has the smaller number, so one pass in ascending order flattens a forest, and a root is its component's
first pixel in reading order.
"""

from __future__ import annotations

import numpy as np

from detkit.compiled import jit

BLOCK = 4096  # edges that are looked at together
FLATTEN = 10  # blocks after which all paths are made short


@jit
def find_both(parents: np.ndarray, a: int, b: int) -> tuple[int, int]:
    """The roots of a and b, sought side by side: one loop's end to guess wrong for the processor instead of two."""
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
        weights, edges: (E,) ascending; see `graph.sort_edges`.
        steps: (D,) see `graph.edge_steps`.
        pixels: H * W.
        k: the smallest threshold.

    Returns:
        parents (pixels,) uint32, flat; sizes (pixels,) int32 and internal (pixels,) float32, right at roots; and open
        (O,) int64, ascending: the positions of the edges that each k must judge for itself.
    """
    parents = np.empty(pixels, np.uint32)
    for i in range(pixels):
        parents[i] = i
    sizes, internal = np.ones(pixels, np.int32), np.zeros(pixels, np.float32)
    k = np.float32(k)
    limits = np.full(pixels, k, np.float32)  # below every weight once the component has been party to a refusal
    shift, mask = np.uint32(len(steps) >> 1), np.uint32(len(steps) - 1)  # for dividing by 2 or 4 directions
    open_edges, opened = np.empty(len(edges), np.int64), 0
    ends_a, ends_b = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint32)
    positions = np.empty(BLOCK, np.int64)
    for start in range(0, len(edges), BLOCK):
        if (start // BLOCK) % FLATTEN == FLATTEN - 1:
            for i in range(pixels):
                parents[i] = parents[parents[i]]
        # Most edges lie within a component, and mostly that shows after one step: they are sorted out without a branch.
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
def merge_atoms(weights, ends_a, ends_b, sizes, internal, k):
    """The rest of the merging, for one k.

    Args:
        weights, ends_a, ends_b: (O,) the open edges, ascending.
        sizes, internal: (A,) of the atoms.
        k: the threshold.

    Returns:
        parents (A,) uint32; sizes (A,) int32, right at roots; refused (R,) int64: the edges between what are now two
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
def absorb_small(refused, weights, ends_a, ends_b, settled, parents, sizes, min_size):
    """Joins components of fewer than min_size pixels to the nearest beside them, in place; edges ascending.

    Returns:
        (T,) float32: weights at which the result hangs on the order of equally heavy edges, and at which that order is
        not `settled` (bool, one for each open edge).
    """
    unsettled, count = np.empty(len(refused), np.float32), 0
    # Components as the edges of one weight would join them all: a forest, when it was begun, and sums at its roots.
    trial, begun = np.zeros(len(parents), np.uint32), np.full(len(parents), -1, np.int64)
    total, largest = np.zeros(len(parents), np.int64), np.zeros(len(parents), np.int64)
    start = 0
    while start < len(refused):
        weight, stop = weights[refused[start]], start + 1
        while stop < len(refused) and weights[refused[stop]] == weight:
            stop += 1
        doubtful = False
        if stop > start + 1 and not settled[refused[start]]:
            for position in range(start, stop):
                a, b = find_both(parents, ends_a[refused[position]], ends_b[refused[position]])
                if a == b or (sizes[a] >= min_size and sizes[b] >= min_size):
                    continue
                for end in (a, b):
                    if begun[end] != start:
                        begun[end], trial[end], total[end], largest[end] = start, end, sizes[end], sizes[end]
                a, b = find_both(trial, a, b)
                if a != b:
                    trial[b] = a
                    total[a] += total[b]
                    largest[a] = max(largest[a], largest[b])
                # While all but the largest are small even together, they end in one component whatever the order.
                doubtful |= total[a] - largest[a] >= min_size
        if doubtful:
            unsettled[count] = weight
            count += 1
        for position in range(start, stop):
            a, b = find_both(parents, ends_a[refused[position]], ends_b[refused[position]])
            if a != b and (sizes[a] < min_size or sizes[b] < min_size):
                root, other = min(a, b), max(a, b)
                parents[other] = root
                sizes[root] += sizes[other]
        start = stop
    return unsettled[:count].copy()
