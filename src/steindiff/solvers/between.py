"""A table for a scale of guidance between those of two tables.

The points that the network sees are combinations p_k = α_k x_0 + Σ_j β_kj D_j (`as_table`). Between two tables of scales w < w'
every α, every β and the logarithm of every told level is interpolated linearly in log w. Rows interpolated one by one would
compound their errors: each acts on the state that the row before it has made.
"""

import math
from dataclasses import replace

from steindiff.errors import InputError
from steindiff.solvers.as_table import points_of, rows_of
from steindiff.solvers.tabulated import Tabulated

RATIO = 2.5
"""The most that one scale may be of the next for the tables between them (`docs/calibration.md` has the measurements)."""
_LARGEST = 10.0
"""How much larger than its neighbours' a weight of the state may be: it amplifies rounding."""


def between(low: Tabulated, high: Tabulated, scale: float) -> Tabulated:
    """The table of a scale of guidance between the scales that two tables are for.

    Raises:
        InputError: the scales are too far apart, or the tables are not of one kind; the error says what to do.
    """
    ends = [(table.purpose.guidance if table.purpose else None) or math.nan for table in (low, high)]
    near = 0 < ends[0] < scale < ends[1] <= RATIO * ends[0]
    free = [[bool(row.values) for row in table.rows] for table in (low, high)]
    alike = low.name == high.name and free[0] == free[1] and low.mean is None and high.mean is None
    if not (near and alike):
        raise _refusal(ends, scale, "they are of different kinds" if near else f"only a ratio up to {RATIO:g} is")
    share = math.log(scale / ends[0]) / math.log(ends[1] / ends[0])
    (mine, told), (theirs, others) = (points_of(replace(table, purpose=None), table.own_grid) for table in (low, high))
    levels = tuple(_geometric(*pair, share) for pair in zip(low.levels, high.levels, strict=True))
    rows = rows_of([p.lerp(q, share) for p, q in zip(mine, theirs, strict=True)], "the table between")
    if max(abs(row.a) for row in rows) > _LARGEST * max(1.0, *(abs(row.a) for row in (*low.rows, *high.rows))):
        raise _refusal(ends, scale, "their weights are too different")
    asked = iter(_geometric(*pair, share) for pair in zip(told, others, strict=True))
    q = tuple(next(asked) / level if row.values else 1.0 for row, level in zip(rows, levels, strict=False))
    name = f"{low.name}, between w = {ends[0]:g} and {ends[1]:g},"
    purpose = low.purpose and replace(low.purpose, guidance=scale)
    return replace(low, levels=levels, rows=tuple(rows), told=q, name=name, purpose=purpose)


def _geometric(a: float, b: float, share: float) -> float:
    return math.exp((1 - share) * math.log(a) + share * math.log(b))


def _refusal(ends: list[float], scale: float, reason: str) -> InputError:
    return InputError(
        f"there are tables for guidance {ends[0]:g} and {ends[1]:g}, and {scale:g} is not served between them, since {reason}: "
        "calibrate one for it (steindiff calibrate --guidance), best together with its neighbours"
    )
