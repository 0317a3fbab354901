"""What all figures share: panels of lines, their settings, one legend, PNG and SVG of one drawing, rows of sample images.

`charts` draws panels of lines. Any other figure is made as

    with style():
        plot = figure(width, height)
        …
        return drawing("figures/name", "What it shows.", plot, legend=names)
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from steindiff.errors import needs
from steindiff.report.blocks import Figure, Strips
from steindiff.report.palette import INK

Image: TypeAlias = npt.NDArray[np.uint8]

_SETTINGS = {
    **{f"{name}.color": INK for name in ("text", "xtick", "ytick")},
    **{f"axes.{name}": INK for name in ("edgecolor", "labelcolor", "titlecolor")},
    "axes.facecolor": "none", "figure.facecolor": "none", "legend.facecolor": "none", "legend.edgecolor": "none",
    "font.size": 9, "axes.titlesize": 9, "svg.fonttype": "none", "svg.hashsalt": "steindiff", "text.parse_math": False,
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Settings that hold while figures are made and saved: ticks are drawn late."""
    with needs("cli", "a figure"):
        from matplotlib import rc_context

    with rc_context(_SETTINGS):  # type: ignore[arg-type]
        yield


def figure(width: float, height: float) -> Any:
    """A matplotlib figure of this size in inches."""
    with needs("cli", "a figure"):
        from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout="constrained")


def drawing(name: str, caption: str, figure: Any, legend: Sequence[str] = ()) -> Figure:
    """The block of a figure, with one legend below all panels for the lines of these labels, in this order."""
    _legend(figure, legend)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, saved twice
    png, svg = _save(figure, "png"), _save(figure, "svg").decode()
    return Figure(name, caption[0].upper() + caption[1:], png, _inline(svg))


@dataclass(frozen=True)
class Line:
    """One line of a panel: matplotlib's settings, and y over x or over steps 0, 1, …; lines of one label share a legend."""

    label: str
    look: Mapping[str, Any]
    y: Sequence[float]
    x: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """Lines, a horizontal line at `level`, and the limits of y where they are not those of the lines."""

    title: str
    lines: Sequence[Line]
    level: float = 1.0
    limits: tuple[float, float] | None = None


def charts(
    name: str,
    caption: str,
    rows: Sequence[Sequence[Panel]],
    *,
    x: str,
    y: Sequence[str],
    width: float = 3.0,
    log: bool = True,
    share: bool = False,
    abscissa: Callable[[Any], None] | None = None,
) -> Figure:
    """The block of rows of panels, each `width` inches wide; a column has one abscissa, `x`, and a row one title, of `y`.

    Ordinates are logarithmic or not, and one for a row (`share`) or not. `abscissa` sets the scale and ticks of an axis' x,
    which else counts steps.
    """
    with style():
        plot = figure(width * len(rows[0]), 2.3 * len(rows) + 0.4)
        axes = plot.subplots(len(rows), len(rows[0]), squeeze=False, sharex="col", sharey="row" if share else False)
        for line_of_axes, panels, title in zip(axes, rows, y, strict=True):
            line_of_axes[0].set_ylabel(title)
            for axis, panel in zip(line_of_axes, panels, strict=True):
                for line in panel.lines:
                    axis.plot(range(len(line.y)) if line.x is None else line.x, line.y, **line.look, label=line.label)
                axis.axhline(panel.level, color=INK, lw=0.6, alpha=0.5)
                axis.set(title=panel.title, yscale="log" if log else "linear", ylim=panel.limits)
                if abscissa:
                    abscissa(axis)
                else:
                    axis.xaxis.get_major_locator().set_params(integer=True)
                plain_ticks(axis)
        for axis in axes[-1]:
            axis.set_xlabel(x)
        labels = dict.fromkeys(line.label for panels in rows for panel in panels for line in panel.lines)
        return drawing(name, caption, plot, list(labels))


def strips(name: str, caption: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image | None]]]) -> Strips:
    """The block of labelled rows of images.

    A row is a label and, for each column's title, a set (k, H, W, C) uint8 whose images stand side by side; None for no images.
    """
    joined = [(label, [None if x is None else _side_by_side(x) for x in sets]) for label, sets in rows]
    found = tuple((label, tuple(b"" if x is None else _png(x) for x in sets)) for label, sets in joined)
    return Strips(name, caption, _sheet(columns, joined), tuple(columns), found)


def plain_ticks(axis: Any) -> None:
    """Numbers as text: mathematics is not parsed, since names may hold a dollar sign; few decades get more ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_ylim()
    if axis.get_yscale() == "log" and high < 300 * low:
        axis.yaxis.set_major_locator(MaxNLocator(5) if high < 12 * low else LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
    for scale, ticks in ((axis.get_xscale(), axis.xaxis), (axis.get_yscale(), axis.yaxis)):
        if scale != "linear":
            ticks.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "−")))
            ticks.set_minor_formatter(FuncFormatter(lambda x, _: ""))


def _legend(figure: Any, titles: Sequence[str]) -> None:
    """As wide as fits; a line's look goes before the crosses of its diverged runs."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True):
            if text not in handles or getattr(handles[text], "get_marker", str)() == "x":
                handles[text] = handle
    entries = {text: handles[text] for text in titles if text in handles}
    for columns in range(min(8, len(entries)), 0, -1):
        legend = figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _side_by_side(images: Image) -> Image:
    """(k, H, W, C) to (H, k (W + 1) − 1, C): one white pixel apart; without C for grey images."""
    strip = np.concatenate(np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255), axis=1)[:, :-1]
    return strip.squeeze(-1) if strip.shape[-1] == 1 else strip


def _sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image | None]]]) -> bytes:
    """All strips in one picture."""
    shapes = [x.shape[:2] for _, sets in rows for x in sets if x is not None]
    ratio = max((width / height for height, width in shapes), default=1.0)
    with style():
        plot = figure(0.5 * ratio * len(columns) + 1.4, 0.55 * len(rows) + 0.4)
        axes = plot.subplots(len(rows), len(columns), squeeze=False)
        for line, (label, sets) in zip(axes, rows, strict=True):
            for axis, image in zip(line, sets, strict=True):
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if image is None:
                    axis.text(0.02, 0.5, "–", transform=axis.transAxes)
                    continue
                axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            line[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for axis, title in zip(axes[0], columns, strict=True):
            axis.set_title(title)
        return _save(plot, "png")


def _png(pixels: Image) -> bytes:
    with needs("cli", "writing images"):
        from PIL import Image as pillow

    buffer = io.BytesIO()
    pillow.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _inline(svg: str) -> str:
    """Without prologue, metadata and fixed height, in short numbers, at most as wide as drawn; the ink becomes the page's."""
    bare = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    bare = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", bare, count=1)
    bare = re.sub(r'<svg([^>]*?) width="([^"]*)"', r'<svg role="img"\1 style="max-width: \2"', bare, count=1)
    bare = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", " ".join(tag.group().split())), bare)
    bare = re.sub(r'<g id="[^"]*">', "<g>", re.sub(r">\s+<", "><", bare))
    return bare.replace(INK, "currentColor")


def _save(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    settings: dict[str, Any] = {"dpi": 110, "facecolor": "white"} if kind == "png" else {"metadata": {"Date": None}}
    figure.savefig(buffer, format=kind, **settings)
    return buffer.getvalue()
