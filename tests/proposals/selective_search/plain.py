"""The algorithms as one would write them down: slow, short, and sharing nothing with detkit's but the definitions."""

from __future__ import annotations

import numpy as np


def partition(image: np.ndarray, k: float, min_size: int, connectivity: int = 4) -> np.ndarray:
    """Felzenszwalb and Huttenlocher's segmentation of float32 (H, W, C); equal weights in reading order."""
    height, width, channels = image.shape
    directions = [(0, 1), (1, 0), (1, 1), (1, -1)][: connectivity // 2]
    edges = []
    for y in range(height):
        for x in range(width):
            for dy, dx in directions:
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    total = np.float32(0)
                    for c in range(channels):
                        difference = image[y, x, c] - image[y + dy, x + dx, c]
                        total = total + difference * difference
                    edges.append((np.sqrt(total), y * width + x, (y + dy) * width + x + dx))
    edges.sort(key=lambda edge: edge[0])
    component = list(range(height * width))
    members = {i: [i] for i in component}
    limit = {i: np.float32(k) for i in component}

    def join(a: int, b: int) -> None:
        for pixel in members[b]:
            component[pixel] = a
        members[a] += members.pop(b)

    for weight, p, q in edges:
        a, b = component[p], component[q]
        if a != b and weight <= limit[a] and weight <= limit[b]:
            join(a, b)
            limit[a] = weight + np.float32(k) / np.float32(len(members[a]))
    for _, p, q in edges:
        a, b = component[p], component[q]
        if a != b and min(len(members[a]), len(members[b])) < min_size:
            join(a, b)
    names: dict[int, int] = {}
    return np.array([names.setdefault(c, len(names)) for c in component]).reshape(height, width)


def neighbours(labels: np.ndarray) -> set[tuple[int, int]]:
    """Pairs that touch to the left, above, or above to the left of a pixel that is not in the first row or column."""
    height, width = labels.shape
    pairs = set()
    for y in range(height):
        for x in range(width):
            if (y == 0 and height > 1) or (x == 0 and width > 1):
                continue
            for dy, dx in ((0, -1), (-1, 0), (-1, -1)):
                if y + dy >= 0 and x + dx >= 0 and labels[y, x] != labels[y + dy, x + dx]:
                    pairs.add(tuple(sorted((int(labels[y, x]), int(labels[y + dy, x + dx])))))
    return pairs


class PlainRegions:
    """Regions as masks; every similarity is computed from the pixels."""

    def __init__(self, image: np.ndarray, bins: np.ndarray, labels: np.ndarray) -> None:
        self.image, self.bins = image, bins.reshape(4, *image.shape)
        self.masks = {r: labels == r for r in range(labels.max() + 1)}

    def colour(self, region: int) -> np.ndarray:
        """25 bins a channel, all together 1."""
        pixels = self.image[self.masks[region]]
        counts = [np.histogram(channel, 25, (0, 256))[0] for channel in pixels.T]
        return np.concatenate(counts) / pixels.size

    def texture(self, region: int) -> np.ndarray:
        """Ten bins for each of eight directions of each channel, all together 1."""
        counts = []
        for axis in self.bins:
            for channel in axis[self.masks[region]].T:
                counts.append(np.bincount(np.where(channel < 10, channel, 9), minlength=10))
                counts.append(np.bincount(np.where(channel < 10, 0, channel.astype(int) - 10), minlength=10))
        counts = np.concatenate(counts)
        return counts / counts.sum()

    def box(self, *regions: int) -> tuple[int, int, int, int]:
        """x1 y1 x2 y2 around the regions."""
        y, x = np.nonzero(np.any([self.masks[r] for r in regions], axis=0))
        return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1

    def similarity(self, a: int, b: int, measures: tuple[str, ...]) -> float:
        """The mean of the measures."""
        area, both = self.image[..., 0].size, int(self.masks[a].sum() + self.masks[b].sum())
        x1, y1, x2, y2 = self.box(a, b)
        values = {
            "colour": lambda: np.minimum(self.colour(a), self.colour(b)).sum(),
            "texture": lambda: np.minimum(self.texture(a), self.texture(b)).sum(),
            "size": lambda: 1 - both / area,
            "fill": lambda: 1 - ((x2 - x1) * (y2 - y1) - both) / area,
        }
        return float(np.mean([values[name]() for name in measures]))

    def group(self, pairs: set[tuple[int, int]], measures: tuple[str, ...]) -> list[tuple[int, int, float]]:
        """Merges (a, b, similarity) in order; a merged region has the next number."""
        similarity = {pair: self.similarity(*pair, measures) for pair in pairs}
        merges = []
        while similarity:
            a, b = max(similarity, key=similarity.get)
            new = max(self.masks) + 1
            self.masks[new] = self.masks[a] | self.masks[b]
            merges.append((a, b, similarity[a, b]))
            touching = {r for pair in similarity for r in pair if {a, b} & set(pair)} - {a, b}
            similarity = {pair: value for pair, value in similarity.items() if not {a, b} & set(pair)}
            similarity |= {(r, new): self.similarity(r, new, measures) for r in touching}
        return merges
