"""How reports write numbers, and the signs of verdicts."""

import math
from dataclasses import fields, is_dataclass
from typing import Any

from steindiff.metrics import Value

NONE, SAME = "–", "″"
MARKS = {"win": "▲", "loss": "▼", "noise": "·", "diverged": "✕", "missing": NONE}


def show(number: Value | None, signed: bool = False) -> str:
    """Value ± standard error, the error to two digits and the value as far; powers of ten where it would be long.

    Example:
        >>> show(Value(0.01234, 0.00041)), show(Value(-0.5, 0.12), signed=True), show(Value(123456.0, 7000.0)), show(None)
        ('0.01234 ± 0.00041', '−0.50 ± 0.12', '1.2e5 ± 7e3', '–')
    """
    if number is None:
        return NONE
    value, se = number
    if not math.isfinite(value):
        return "diverged"
    if max(abs(value), se if math.isfinite(se) else 0.0) >= 10_000:
        text, error = f"{value:.1e}", f"{se:.0e}"
    elif se >= 1e-5:
        digits = max(0, 1 - math.floor(math.log10(se)))
        text, error = f"{value:.{digits}f}", f"{se:.{digits}f}"
    else:
        text, error = f"{value:.4g}", f"{se:.0e}" if se > 0 else "0" if se == 0 else NONE
    sign = "+" if signed and value > 0 else ""
    return compact(f"{sign}{text} ± {NONE if error == 'nan' else error}")


def number(value: float | None) -> str:
    """Three digits without an error; a dash for what is not a number."""
    return NONE if value is None or math.isnan(value) else f"{value:.3g}"


def compact(text: str) -> str:
    """1.2e+05 as 1.2e5, with a true minus."""
    return text.replace("e+0", "e").replace("e+", "e").replace("e-0", "e-").replace("-", "−")


def tree(item: Any) -> Any:
    """Dataclasses as dictionaries, for JSON, and a `Value` as {"value": …, "se": …}."""
    if isinstance(item, Value):
        return item._asdict()
    if is_dataclass(item):
        return {f.name: tree(getattr(item, f.name)) for f in fields(item)}
    return [tree(entry) for entry in item] if isinstance(item, (list, tuple)) else item
