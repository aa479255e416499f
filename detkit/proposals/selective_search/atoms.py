"""Numbers for atoms, regions and pieces: by their first pixel in reading order, as OpenCV numbers regions.

Atoms are what `forest.merge_common` leaves, regions what one k makes of them. Pieces are atoms that no k parts, joined.
"""

from __future__ import annotations

import numpy as np

from detkit.compiled import jit


@jit
def find_ends(atoms, edges, open_edges, steps):
    """The atoms at the two ends of each open edge, (O,) uint32 each."""
    directions = np.uint32(len(steps))
    ends_a, ends_b = np.empty(len(open_edges), np.uint32), np.empty(len(open_edges), np.uint32)
    for i in range(len(open_edges)):
        edge = edges[open_edges[i]]
        pixel = edge // directions
        ends_a[i], ends_b[i] = atoms[pixel], atoms[pixel + steps[edge % directions]]
    return ends_a, ends_b


@jit
def number_atoms(parents, sizes, internal, edges, open_edges, steps):
    """Atoms by their first pixel in reading order.

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
    ends_a, ends_b = find_ends(atoms, edges, open_edges, steps)
    return atoms, sizes[:count].copy(), internal[:count].copy(), ends_a, ends_b


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
