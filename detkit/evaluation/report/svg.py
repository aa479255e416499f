"""Figures of matplotlib as SVG inside a page: real text, the page's own colours, and light.

The figures are made with the object-oriented API (no pyplot, no global state) and drawn in stand-in colours, which the
written SVG has replaced by CSS variables: the same picture serves the light and the dark scheme.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-in colour -> the CSS variable of style.css that takes its place.
INK, MUTED, LINE, ACCENT, GOOD, BAD = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
SERIES = tuple(f"#0a0a{number:02x}" for number in range(1, 9))
VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", GOOD: "--good", BAD: "--bad"},
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)},
}
KIND_COLOURS = {
    "classification": "#0b0b01",
    "localization": "#0b0b02",
    "both": "#0b0b03",
    "duplicate": "#0b0b04",
    "background": "#0b0b05",
    "missed": "#0b0b06",
}
VARIABLES |= {colour: f"--{kind}" for kind, colour in KIND_COLOURS.items()}

SETTINGS = {
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@contextlib.contextmanager
def drawing(name: str) -> Iterator[None]:
    """Within it, figures are made and written in the report's style, whatever the user's matplotlibrc says.

    Args:
        name: the figure's name in the page; the ids within its SVG are made from it, the same in each run.
    """
    import matplotlib.style

    with matplotlib.style.context(["default", {**SETTINGS, "svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the glyph, or a box for it
        yield


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of width x height inches (a phone shows four of them at the size of print) with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an `<svg>` element for a page.

    Args:
        figure: drawn within `drawing(name)`.
        name: the figure's name in the page.
        alt: what it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return Markup(_lighten(buffer.getvalue(), name, alt))


def plain_label(text: str, longest: int = 24) -> str:
    """A name as a plot can take it: one line, without control characters, cut where it is too long."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _lighten(svg: str, name: str, alt: str) -> str:
    """matplotlib's file without what a page does not need, its ids made the page's own."""
    view_box = re.search(r'viewBox="([^"]*)"', svg)[1]
    widest = float(view_box.split()[2]) * 4 / 3 * 1.25  # a little larger than print, in CSS pixels
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r"url\(#([^)]+)\)", body)) | set(re.findall(r'href="#([^"]+)"', body))

    def lighten_tag(match: re.Match[str]) -> str:
        tag = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", match[0])
        tag = re.sub(r'(url\(|href=")#', rf"\1#{name}-", tag).replace("xlink:href", "href")
        tag = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", tag)
        tag = re.sub(r" ?font-family: [^;\"]*;?| ?stroke-linejoin: miter;?", "", tag)
        tag = re.sub(r"#0[0-9a-f]{5}\b", lambda m: f"var({VARIABLES.get(m[0], '--ink')})", tag)
        return re.sub(r'(?<= d=")[^"]*|(?<= points=")[^"]*|(?<= [xy]=")[^"]*', lambda m: _round(m[0]), tag)

    body = re.sub(r">\s+<", "><", re.sub(r"<[^>]*>", lighten_tag, body).strip())
    body = re.sub(r'<path d="[^"]*" style="fill: none"/>', "", body)  # grounds without colour
    for empty in ("<g/>", "<defs></defs>", "<g></g>", "<g></g>"):
        body = body.replace(empty, "")
    style = f"max-width:{widest:.0f}px"
    return f'<svg viewBox="{view_box}" style="{style}" role="img" aria-label="{escape(alt)}">{body}</svg>'


def _round(numbers: str) -> str:
    """Coordinates to a tenth of a point, on one line."""
    text = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), numbers)
    return re.sub(r"\s*([MLCz])\s*", r"\1", text).strip()
