"""Matplotlib figures as inline SVG that belongs to the page.

Text stays text and takes the page's fonts; colours are CSS variables, so that a chart follows light, dark and
print; series differ by marker and dash as well as by colour. Lengths are SVG user units, 1/72 inch at full size.
"""

import io
import re
import unicodedata
import warnings
from typing import Literal, NamedTuple

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from featkd.result import Candidate, Interval
from reports import numbers

WIDTH = 390.0
FONT = 11.0
ROW = 17.0
PATH_WIDTH, PATH_ALPHA = 6.0, 0.3
# Placeholders that matplotlib writes and `to_svg` turns into CSS variables of the page.
INK, MUTED, GRID, BAND = "#010101", "#020202", "#030303", "#040404"
SERIES = [f"#05050{index}" for index in range(1, 8)]
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule", BAND: "--band"} | {
    colour: f"--s{index}" for index, colour in enumerate(SERIES, 1)
}
MARKERS = "os^vDPX*"
DASHES = ["-", (0, (6, 2)), (0, (2, 1.6)), (0, (7, 2, 1.5, 2)), (0, (10, 3)), (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1))]
RC = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": FONT,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.color": MUTED,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}


class Style(NamedTuple):
    colour: str
    marker: str
    dash: object


class Entry(NamedTuple):
    """One line of a legend; `kind` is line, path (broad, pale), marker, ring, band, bar (filled), box (outlined)."""

    label: str
    style: Style
    kind: str = "line"


REFERENCE = Style(MUTED, "", (0, (3, 2)))
TEACHER = Style(INK, "D", "-")


def styles(candidates: dict[str, Candidate]) -> dict[str, Style]:
    """Name to style: one style per arm and precision, the same in every chart."""
    pairs = list(dict.fromkeys((c.arm, c.precision) for c in candidates.values() if c.arm != "teacher"))
    return {
        name: TEACHER
        if c.arm == "teacher"
        else (lambda i: Style(SERIES[i % 7], MARKERS[i % 8], DASHES[i % 7]))(pairs.index((c.arm, c.precision)))
        for name, c in candidates.items()
    }


def frame(
    plot_height: float, rows: list[str] | None = None, x_label: str = "", y_label: str = "", legend: list[Entry] = ()
) -> tuple[Figure, Axes]:
    """A figure with room for its own labels. `rows` are names down the left side, first on top."""
    lines = _legend_lines(legend)
    left = max(map(text_width, rows)) + 14 if rows else 50.0
    top = 8 + ROW * len(lines) + (ROW if y_label else 0)
    height = top + plot_height + 24 + (ROW if x_label else 0)
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    bottom = height - top - plot_height
    axes = figure.add_axes((left / WIDTH, bottom / height, (WIDTH - left - 16) / WIDTH, plot_height / height))
    for index, line in enumerate(lines):
        _draw_legend_line(figure, line, y=height - 12 - ROW * index, height=height)
    if y_label:
        figure.text(2 / WIDTH, 1 - (top - 10) / height, y_label, color=MUTED, size=10, va="baseline")
    if x_label:
        figure.text(1 - 16 / WIDTH, 6 / height, x_label, color=MUTED, size=10, ha="right", va="baseline")
    if rows:
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure, axes


def text_width(text: str, size: float = 10.0) -> float:
    """Estimated width: the fonts are the browser's, so matplotlib cannot measure them."""
    return sum(size if unicodedata.east_asian_width(sign) in "WF" else 0.58 * size for sign in text)


def _legend_lines(entries: list[Entry]) -> list[list[tuple[float, Entry]]]:
    lines: list[list[tuple[float, Entry]]] = []
    x = WIDTH
    for entry in entries:
        width = 30 + text_width(entry.label) + 14
        if x + width > WIDTH:
            lines.append([])
            x = 2.0
        lines[-1].append((x, entry))
        x += width
    return lines


def _draw_legend_line(figure: Figure, line: list[tuple[float, Entry]], y: float, height: float) -> None:
    for x, (label, style, kind) in line:
        if kind in ("band", "bar", "box"):
            face = {"band": BAND, "bar": style.colour, "box": "none"}[kind]
            box = Rectangle(
                (x / WIDTH, (y - 1) / height),
                24 / WIDTH,
                9 / height,
                facecolor=face,
                edgecolor=style.colour,
                linewidth=0 if kind == "band" else 1,
                transform=figure.transFigure,
            )
            figure.add_artist(box)
        else:
            figure.add_artist(
                Line2D(
                    [x / WIDTH, (x + 12) / WIDTH, (x + 24) / WIDTH],
                    [(y + 3.5) / height] * 3,
                    color=style.colour,
                    linestyle=style.dash if kind in ("line", "path") else "none",
                    marker=style.marker or None,
                    markevery=[1],
                    markersize=8 if kind == "ring" else 5.5,
                    linewidth=PATH_WIDTH if kind == "path" else 1.6,
                    alpha=PATH_ALPHA if kind == "path" else None,
                    solid_capstyle="butt",
                    mew=1.4 if kind == "ring" else None,
                    fillstyle="none" if kind == "ring" else None,
                    transform=figure.transFigure,
                )
            )
        figure.text((x + 30) / WIDTH, y / height, label, size=10, va="baseline")


def point(axes: Axes, interval: Interval, y: float, style: Style, scale: float) -> None:
    """An estimate with its 95 % interval lying on row `y`."""
    axes.errorbar(
        interval.value * scale,
        y,
        xerr=error_lengths(interval, scale),
        fmt=style.marker,
        color=style.colour,
        markersize=7,
        linewidth=1.8,
        capsize=3,
    )


def line(axes: Axes, points: list[tuple[float, float]], style: Style, every: int) -> None:
    axes.plot(
        *zip(*points, strict=True),
        color=style.colour,
        linestyle=style.dash,
        marker=style.marker,
        markevery=every,
        markersize=5.5,
        linewidth=1.6,
    )


def error_lengths(interval: Interval, scale: float) -> list[list[float]] | None:
    """Lengths below and above for matplotlib; a bound on the wrong side of the value is drawn as no length."""
    if not numbers.has_interval(interval):
        return None
    below, above = interval.value - interval.low, interval.high - interval.value
    return [[max(below, 0) * scale], [max(above, 0) * scale]]


def log_axis(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(short_number))
    axis.set_minor_formatter(NullFormatter())


def short_number(value: float, _: object = None) -> str:
    """1,500,000 as 1.5M, for ticks."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}".replace("-", "\N{MINUS SIGN}")
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an `<svg>` element with unique ids; the same figure gives the same bytes."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**RC, "svg.hashsalt": f"featkd-{name}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the glyphs
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\b(id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable})")
    size = re.search(r'viewBox="[^"]*"', svg).group(0)
    return Markup(re.sub(r"<svg[^>]*>", f'<svg {size} role="img" aria-label="{escape(label)}">', svg, count=1).strip())
