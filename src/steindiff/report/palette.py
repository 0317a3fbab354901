"""The looks of lines in every figure: Okabe–Ito colours, which colour-blind readers tell apart on white and on black."""

from typing import Any

INK = "#1b1e21"
"""Text and the plain solver; a page replaces it by its own text colour."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#858585")
MARKERS = "sD^vPX*<>ph8"
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def look(place: int) -> dict[str, Any]:
    """matplotlib's settings of line number `place`; 0 is the plain solver."""
    if place == 0:
        return {"color": INK, "ls": "-", "lw": 1.8, "marker": "o", "ms": 4}
    i = place - 1
    style = {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i % len(DASHES)], "marker": MARKERS[i % len(MARKERS)]}
    return {**style, "lw": 1.2, "ms": 4}
