"""Rewrites what the pages show of files that other programs make, so that no number is copied by hand.

The universal tables in docs/universal.md and examples/twenty_lines.py, from the shipped file:

    python -m recipes.pages

The tables of docs/start.md and docs/correction.md and their pictures too, from a run of `make demo`:

    python -m recipes.pages --demo outputs/demo
"""

import math
import re
import shutil
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

from recipes.command import command
from recipes.random_laws import Family
from steindiff.errors import InputError
from steindiff.io.files import write_text
from steindiff.report.blocks import Table
from steindiff.report.markdown import markdown
from steindiff.solvers import table_files, universal

ROOT = Path(__file__).parents[1]
PAGE, EXAMPLE = ROOT / "docs" / "universal.md", ROOT / "examples" / "twenty_lines.py"
RUNG, COUNTS = 160.0, (3, 4, 5, 6, 7, 8)
"""The rung and the numbers of evaluations of the tables that are printed."""
LOW_RUNG, GUIDED_COUNTS = 14.6, (4, 6, 8)
"""The other rung that has tables for guidance, and the numbers of evaluations whose errors under it are printed."""
DEMO = {
    ROOT / "docs" / "start.md": ("The universal solver at few evaluations",),
    ROOT / "docs" / "correction.md": ("The paper's correction", "What the corrections do"),
}
"""The sections of a demo's report by the page that shows them."""
PICTURES = ("cifar10", "cifar10_mixture", "digits", "correction-digits", "gamma")
_PICTURE = re.compile(r"!\[.*?\]\(.*?\)\n\n.*\n+")
SHOWN = 5
"""The number of evaluations in the example."""


def pages() -> dict[Path, str]:
    """The texts of the pages that show universal tables, as the shipped file wants them."""
    example = _example(EXAMPLE.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    for name, body in {
        "coefficients": _python("TABLES = {\n" + "".join(f"    {n}: [\n{_steps(n, ' ' * 8)}    ],\n" for n in COUNTS) + "}"),
        "example": _python(example.split('"""', 2)[2].strip()),
        "levels": markdown([_levels()]),
        "rungs": markdown([_rungs()]),
        "scales": markdown([_scales()]),
        "family": markdown([_family()]),
    }.items():
        text = block(text, name, body)
    return {PAGE: text, EXAMPLE: example}


def block(text: str, name: str, body: str) -> str:
    """The text with another body between `<!-- name -->` and `<!-- end of name -->`. Raises InputError without these marks."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise InputError(f"the page needs the marks {start.strip()} and {end} once each: put them where the block belongs")
    before, rest = text.split(start)
    return before + start + body.strip() + "\n" + end + rest.split(end)[1]


def rewrite(page: Path, name: str, body: str) -> None:
    """Give a block of a page another body. Raises InputError as `block`."""
    write_text(page, block(page.read_text(encoding="utf-8"), name, body))


def _python(code: str) -> str:
    return f"```python\n{code}\n```"


def shown(folder: Path) -> dict[Path, str]:
    """The texts of the pages that show a demo's report. Raises InputError where the folder holds no such report."""
    try:
        report = (folder / "report.md").read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} holds no finished demo ({error}): run make demo") from error
    sections = {head.split(",")[0]: body for head, _, body in (s.partition("\n") for s in report.split("\n## ")[1:])}
    found = dict[Path, str]()
    for path, names in DEMO.items():
        if missing := [name for name in names if name not in sections]:
            raise InputError(f"{folder / 'report.md'} has no section {missing[0]!r}: run make demo of this version")
        body = "\n\n".join(_PICTURE.sub("", sections[name]).strip() for name in names)
        found[path] = block(path.read_text(encoding="utf-8"), "demo", body)
    return found


def _entry(nfe: int, rung: float = RUNG) -> table_files.Entry:
    return universal.shipped()[rung, nfe]


def _short(value: float) -> str:
    """Six digits: end states then agree with the file's to 1e-5."""
    return repr(float(f"{value:.6g}"))


def _steps(nfe: int, indent: str) -> str:
    """A step a line: told level, weight of the state, weights of the values; the free step has the level where it starts."""
    solver, _ = _entry(nfe)
    rows = zip(solver.levels, solver.told, solver.rows, strict=False)
    lines = (f"({_short(q * s)}, {_short(row.a)}, [{', '.join(map(_short, row.values))}])," for s, q, row in rows)
    return "".join(f"{indent}{line}\n" for line in lines)


def _example(text: str) -> str:
    """The example with the numbers of its table."""
    found, count = re.subn(r"^(STEPS = \[.*\n)(?:    \(.*\n)*\]", rf"\g<1>{_steps(SHOWN, '    ')}]", text, flags=re.MULTILINE)
    if count != 1:
        raise InputError(f"{EXAMPLE} assigns STEPS {count} times: need one such assignment")
    return found


def _levels() -> Table:
    """Where the tables go, and what they tell the network there."""
    rows = list[tuple[str, ...]]()
    for nfe in COUNTS:
        solver, report = _entry(nfe)
        levels, told = ", ".join(f"{s:.3g}" for s in solver.levels), solver.told[1:]
        scores = (f"{report['scores'][name]:.2g}" for name in ("median", "worst"))
        rows.append((f"{nfe}", levels, f"{min(told):.2f} to {max(told):.2f}", *scores))
    return Table(("N", "levels σ_i/σ_data", "told/nominal", "error on new random laws, median", "worst"), tuple(rows))


def _rungs() -> Table:
    """For which first levels and numbers of evaluations there are tables."""
    rows = list[tuple[str, ...]]()
    for end, known in sorted(universal.by_end().items()):
        for rung in sorted({rung for rung, _ in known}):
            counts = _spans(sorted(n for r, n in known if r == rung))
            rows.append((f"{rung:g}", f"{0.5 * rung:g}", f"{end:g}", counts))
    heads = ("first level, in units of σ_data", "σ_max at σ_data = 0.5", "last level, in units of σ_data", "N")
    return Table(heads, tuple(rows))


def _scales() -> Table:
    """Which scales of guidance have tables, for how many evaluations, and the median errors on new guided laws."""
    known, rows = universal.guided(), list[tuple[str, ...]]()
    scales, low = sorted(known), 1.0
    for scale, above in zip(scales, (*scales[1:], None), strict=True):
        high = scale * universal.BAND if above is None else math.sqrt(scale * above)
        counts = (_spans(sorted(nfe for rung, nfe in known[scale] if rung == first)) for first in (RUNG, LOW_RUNG))
        medians = (f"{known[scale][RUNG, n][1]['scores']['median']:.2g}" for n in GUIDED_COUNTS)
        rows.append((f"{scale:g}", f"{low:.3g} to {high:.3g}", *counts, *medians))
        low = high
    heads = (f"N from {first:g}" for first in (RUNG, LOW_RUNG))
    return Table(("w", "serves", *heads, *(f"error at N = {n}" for n in GUIDED_COUNTS)), tuple(rows))


def _spans(numbers: list[int]) -> str:
    """Whole numbers in ascending order, runs of them as ranges.

    Example:
        >>> _spans([1, 2, 3, 5])
        '1–3, 5'
    """
    spans = list[list[int]]()
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in spans)


def _family() -> Table:
    """The ranges that the random laws come from."""
    hints, rows = get_type_hints(Family, include_extras=True), list[tuple[str, str]]()
    for name, value in _entry(SHOWN)[1]["family"].items():
        ends = dict.fromkeys(value if isinstance(value, list) else [value])
        rows.append((get_args(hints[name])[1], " to ".join(f"{end:g}" for end in ends)))
    return Table(("a random law's", "range"), tuple(rows))


@command
def main(demo: Annotated[Path | None, "the folder of a finished demo, for its tables and pictures"] = None) -> None:
    """Write the pages."""
    texts = pages()
    if demo is not None:
        texts |= shown(demo)
        for name in PICTURES:
            shutil.copyfile(demo / f"{name}.png", ROOT / "docs" / "images" / f"{name}.png")
    for path, text in texts.items():
        write_text(path, text)
        print(path.relative_to(ROOT))
