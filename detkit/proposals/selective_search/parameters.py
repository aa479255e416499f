"""What selective search varies, and by how much: OpenCV's numbers and the authors'."""

from __future__ import annotations

from dataclasses import dataclass

from detkit.errors import ConfigError

MODES = ("single", "fast", "quality")
SETS = ("opencv", "paper")

#: 0.8 in single precision, in which OpenCV passes it on: enough of a difference to change a region now and then.
OPENCV_SIGMA = 0.800000011920929

ALL = ("colour", "texture", "size", "fill")
NO_COLOUR = ("texture", "size", "fill")


@dataclass(frozen=True)
class SearchParameters:
    """One grouping is done for each colour space, k and strategy.

    Attributes:
        colour_spaces: see `COLOUR_SPACES`.
        ks: thresholds of the initial segmentation; see `segment`.
        strategies: what similarity is the mean of, for each strategy; see `similarities`.
        min_sizes: initial regions of fewer pixels are absorbed, for each k.
        sigma: smoothing before segmentation, in pixels.
        connectivity: 4 or 8 neighbours of a pixel.
        min_side: boxes with a shorter side are dropped, in pixels of the image as it was searched.
    """

    colour_spaces: tuple[str, ...]
    ks: tuple[float, ...]
    strategies: tuple[tuple[str, ...], ...]
    min_sizes: tuple[int, ...]
    sigma: float = 0.8
    connectivity: int = 4
    min_side: int = 0


def parameters_of(name: str, mode: str) -> SearchParameters:
    """The parameters of a set and a mode.

    "opencv": those of cv2.ximgproc's selective search (contrib 4.x, selectivesearchsegmentation.cpp), as they take
    effect (see `colour_spaces` on hue). With them the regions are OpenCV's, and so are the boxes, but for what hangs on
    the order of equally similar pairs.

    "paper": those of Uijlings et al. (IJCV 2013, table 5) as R-CNN used them (papers.md 2.1), with the graph of 8
    neighbours that Felzenszwalb and Huttenlocher describe. The authors' histograms and similarities cannot be read,
    being compiled MATLAB: those are the same in both sets, and so are the conversions to 8 bits. There "paper" differs
    from the authors' program.

    Args:
        name: "opencv" or "paper".
        mode: "single" (one grouping), "fast" or "quality".

    Raises:
        ConfigError: an unknown set or mode.
    """
    if name not in SETS:
        raise ConfigError(f"unknown parameters {name!r} of selective search: use one of {', '.join(SETS)}")
    if mode not in MODES:
        raise ConfigError(f"unknown mode {mode!r} of selective search: use one of {', '.join(MODES)}")
    if name == "opencv":
        spaces: tuple[str, ...] = ("hsv", "lab", "gray", "blue", "rgi")
        ks: tuple[float, ...] = {"single": (200,), "fast": (150, 300, 450), "quality": (150, 300, 450, 600, 750)}[mode]
        min_sizes, sigma, connectivity, min_side = (100,) * len(ks), OPENCV_SIGMA, 4, 0
    else:
        spaces = ("hsv_full", "lab", "normalized_rgi", "h_full", "gray")
        ks = {"single": (100,), "fast": (50, 100), "quality": (50, 100, 150, 300)}[mode]
        min_sizes, sigma, connectivity, min_side = tuple(int(k) for k in ks), 0.8, 8, 20
    strategies = (ALL, NO_COLOUR, ("fill",), ("size",))
    count, kinds = {"single": (1, 1), "fast": (2, 2), "quality": (5, 4)}[mode]
    return SearchParameters(spaces[:count], ks, strategies[:kinds], min_sizes, sigma, connectivity, min_side)
