"""What a study says of solvers with grids of their own: against the best of the others, with every losing cell by name."""

from collections import Counter
from collections.abc import Sequence

from steindiff.metrics import HIGHER, TITLES, Value
from steindiff.report.blocks import Block, Bullets, Details, Entry, Figure, Heading, Part, Table, Text, notes, slug
from steindiff.report.figures import Line, Panel, charts
from steindiff.report.numbers import MARKS, NONE, number, show
from steindiff.report.palette import look
from steindiff.report.tables import counts, short
from steindiff.study.compare import Study, Verdict
from steindiff.study.contest import DOUBLED, Duel, Rivals, contenders, duels, on_grids, on_levels, rivals_of
from steindiff.study.grid import OWN

RATIO = "endpoint"
"""The metric whose ratio is reported beside its change."""
_PANELS = 5


def contest_blocks(study: Study) -> list[Block]:
    """A section for each contender; nothing where no solver has a grid of its own, or none has other solvers beside it."""
    rivals = Rivals("best of the others", [*on_grids(study), *on_levels(study)])
    sections = (_section(study, contender, rivals) for contender in contenders(study))
    return [block for section in sections for block in section] if rivals.solvers else []


def _section(study: Study, contender: str, rivals: Rivals) -> list[Block]:
    found = _found(study, contender, rivals)
    blocks: list[Block] = [Heading(f"{short(contender)}, on its own grid, against the best of the others")]
    blocks += [*map(Text, notes("bench contest")), Text(_said(found)), *_figures(study, contender), _count_table(study, found)]
    for bed in (bed for bed, metric in found if metric == RATIO):
        blocks += [Text(f"{short(bed)}: {TITLES[RATIO]}."), _ratios(study, bed, contender)]
    others: list[Block] = []
    for (bed, metric), some in found.items():
        others += [Text(f"{short(bed)}: {_name(metric)}."), _table(some)] if metric != RATIO else []
    title = f"{short(contender)} against the best of the others: every other metric, cell by cell"
    part = Part(f"metrics/{short(contender)}-contest", title, tuple(others))
    return [*blocks, *_losses(found), *_doubled(study, contender), part]


def _found(study: Study, contender: str, rivals: Rivals) -> dict[tuple[str, str], list[Duel]]:
    """All duels of a contender with these rivals, by testbed and metric."""
    return {(bed, m): duels(study, bed, contender, m, rivals) for bed in study.config.beds for m in study.metrics[bed]}


def _doubled(study: Study, contender: str) -> list[Block]:
    """The same counts against published methods that may spend twice the evaluations; nothing where there are no such runs."""
    doubled = next((kind for kind in rivals_of(study, contender) if kind.title == DOUBLED), None)
    if doubled is None:
        return []
    both = {key: [d for d in some if d.verdict != "missing"] for key, some in _found(study, contender, doubled).items()}
    heading = Text(f"Against the {doubled.title}. {_said(both)}")
    return [heading, _count_table(study, both), *_losses(both)]


def _said(found: dict[tuple[str, str], list[Duel]]) -> str:
    """The counts in a sentence, and the range of the ratio."""
    verdicts = Counter(duel.verdict for some in found.values() for duel in some)
    ratios = sorted(duel.ratio for (_, m), some in found.items() if m == RATIO for duel in some if duel.ratio == duel.ratio)
    text = f"Over all testbeds, NFE and metrics, wins / losses / ties / diverged: {counts(verdicts)}."
    if not ratios:
        return text
    low, middle, high = (f"{ratios[i]:.2f}" for i in (0, len(ratios) // 2, -1))
    return f"{text} The best other {TITLES[RATIO]} is {low} to {high} times as large, {middle} times in the median."


def _figures(study: Study, contender: str) -> list[Figure]:
    """How many times as large the errors of the best others are, a panel per testbed."""
    beds = [bed for bed in study.config.beds if RATIO in study.metrics[bed]]
    figures = []
    for i in range(0, len(beds), _PANELS):
        panels = [_panel(study, bed, contender) for bed in beds[i : i + _PANELS]]
        name = f"figures/{slug(contender)}-contest{i // _PANELS or ''}"
        caption = f"{TITLES[RATIO]} of the best of the others over that of {short(contender)}; above 1 the latter is nearer."
        figures.append(charts(name, caption, [panels], x="NFE", y=["times as large"]))
    return figures


def _panel(study: Study, bed: str, contender: str) -> Panel:
    """A line for each kind of others."""
    lines = []
    for place, kind in enumerate(rivals_of(study, contender)):
        some = [d for d in duels(study, bed, contender, RATIO, kind) if d.ratio > 0]
        lines.append(Line(kind.title, look(place), [d.ratio for d in some], [d.cell.nfe for d in some]))
    return Panel(short(bed), lines)


def _count_table(study: Study, found: dict[tuple[str, str], list[Duel]]) -> Table:
    """Wins, losses and ties by testbed and metric."""
    metrics = [m for m in study.all_metrics if any((bed, m) in found for bed in study.config.beds)]

    def entry(bed: str, metric: str) -> str:
        verdicts: Counter[Verdict] = Counter(duel.verdict for duel in found.get((bed, metric), ()))
        return counts(verdicts) if verdicts else NONE

    rows = [(short(bed), *(entry(bed, m) for m in metrics)) for bed in study.config.beds]
    return Table(("testbed", *(TITLES.get(m, m) for m in metrics)), tuple(rows))


def _ratios(study: Study, bed: str, contender: str) -> Table:
    """Per NFE the contender, and the best of each kind of others."""
    kinds = rivals_of(study, contender)
    columns = ["NFE", short(contender), *(column for kind in kinds for column in (kind.title, "times as large", "change"))]
    runs = zip(*(duels(study, bed, contender, RATIO, kind) for kind in kinds), strict=True)
    rows = [(str(some[0].cell.nfe), _value(some[0]), *(e for duel in some for e in _against(duel))) for some in runs]
    return Table(tuple(columns), tuple(rows))


def _against(duel: Duel) -> tuple[str | Entry, ...]:
    return _named(duel), number(duel.ratio), _change(duel)


def _table(some: Sequence[Duel]) -> Table:
    """Per NFE the contender, the best other, and the change."""
    rows = tuple((str(duel.cell.nfe), _value(duel), _named(duel), _change(duel)) for duel in some)
    return Table(("NFE", "own grid", "best of the others", "change"), rows)


def _losses(found: dict[tuple[str, str], list[Duel]]) -> list[Block]:
    """Every losing cell by name."""
    lost = [duel for some in found.values() for duel in some if duel.verdict in ("loss", "diverged")]
    lines = tuple(f"{short(d.cell.bed)}, NFE {d.cell.nfe}, {_name(d.metric)}: {_value(d)} against {_named(d)}" for d in lost)
    return [Details(f"{len(lost)} losing cells, by name", (Bullets(lines),))] if lost else [Text("It loses in no cell.")]


def _name(metric: str) -> str:
    return f"{TITLES.get(metric, metric)}{', higher is better' if metric in HIGHER else ''}"


def _value(duel: Duel) -> str:
    own: Value | None = duel.own.values.get(duel.metric) if duel.own else None
    return "diverged" if duel.verdict == "diverged" else show(own)


def _named(duel: Duel) -> str:
    """The best other with its grid."""
    if duel.other is None:
        return NONE
    cell = duel.other.cell
    where = "" if cell.grid == OWN else f", {cell.grid}"
    return f"{short(cell.solver)}{where}: {show(duel.other.values[duel.metric])}"


def _change(duel: Duel) -> Entry:
    change = f"{show(duel.change, signed=True)} " if duel.change else ""
    return Entry("", change + MARKS[duel.verdict], duel.verdict)
