"""The SteinDiff paper's Tables 1 and 2: their layouts from a study's cells, and the paper's own numbers beside ours.

Table 1 is method × NFE, on LSUN-Bedroom 256. Table 2 is metric × schedule × steps, on ImageNet-64, with Base, Stein and
Improvement for three solvers. A published number and ours are subtracted only where the study is said to be of the paper's
model; everywhere else they stand in columns of their own.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from steindiff.errors import require, unknown_name
from steindiff.metrics import TITLES, Value
from steindiff.report.blocks import Block, Heading, Part, Table, Text, notes
from steindiff.report.numbers import NONE, show
from steindiff.report.published import PUBLISHED, Published, Setting
from steindiff.report.tables import improvement, improvement_table, label, quality_table, short
from steindiff.study.compare import HEADLINE, Study
from steindiff.study.grid import OWN, PLAIN, TWICE, Cell

MODELS = {"lsun": 1, "imagenet64": 2}
"""The paper's models, and the number of the table on each."""
IMAGES = 50_000
"""Images behind a published FID."""
_FID = "fid"
_METRICS = (_FID, "fd_dinov2", "inception_score")
_OURS = (HEADLINE, "features", "frechet")
_SOLVERS = {"dpmpp": "dpmpp_3m", "unipc": "unipc_3", "heun": "heun"}
"""The families of the paper's three solvers, and which of each we show first; the paper's order in Table 2 is not known."""
_TITLES = {"dpmpp": "DPM-Solver++", "unipc": "UniPC", "heun": "Heun"}
_BESIDE = ("as published", "ours", "difference")


class _Pair(NamedTuple):
    """A published number and ours; both as percentages, or both not."""

    labels: tuple[str, ...]
    published: str
    ours: Value | None
    percent: bool = False

    def row(self, same: bool) -> tuple[str, ...]:
        """The labels, and three columns; without a difference unless both are of the `same` model and metric."""
        unit = " %" if self.percent else ""
        ours, difference = show(self.ours), NONE
        if same and self.ours is not None and self.published != NONE:
            difference = show(Value(self.ours.value - float(self.published), self.ours.se), signed=True)
        return (*self.labels, *(text if text == NONE else text + unit for text in (self.published, ours, difference)))


def check(model: str, beds: Sequence[str], inception: bool) -> None:
    """Raise InputError where a study cannot be set against the numbers of the paper's model: "" is none."""
    if not model:
        return
    if model not in MODELS:
        raise unknown_name("model of the paper", model, MODELS)
    require(len(beds) == 1, f"{model} is the model of one testbed: choose it by --beds", beds=list(beds))
    require(inception, "the paper's numbers are FID: name the extractor by --inception", paper_model=model)


def paper_blocks(study: Study, model: str = "") -> list[Block]:
    """The section of a report; `model` is the paper's model that the study is of, a key of MODELS.

    Nothing where every solver has a grid of its own.
    """
    if study.config.used_grids == (OWN,):
        return []
    parts = [Part("paper/table-1", "Table 1, method × NFE, with the paper's numbers beside ours", tuple(_first(study, model)))]
    if _rules(study):
        title = "Table 2, metric × schedule × steps: Base, Stein and Improvement, with the paper's numbers beside ours"
        parts.append(Part("paper/table-2", title, tuple(_second(study, model))))
    return [Heading("The paper's Tables 1 and 2"), *map(Text, notes("bench paper")), *parts]


def trio(study: Study) -> tuple[str, ...]:
    """The study's solvers of the paper's three families; its first three where it has none of these."""
    solvers = [solver for solver in study.config.solvers if study.config.grids_of(solver) != (OWN,)]
    found = filter(None, (_of_family(solvers, family) for family in _SOLVERS))
    return tuple(found) or tuple(solvers[:3])


def _rules(study: Study) -> list[str]:
    """The corrections; a plain run of twice the NFE is none."""
    return [rule for rule in study.corrections if rule != TWICE]


def _of_family(solvers: Sequence[str], family: str) -> str | None:
    """The one we show first, else the first whose name begins so; a plain solver of that very name is its own family."""
    names = [family, _SOLVERS.get(family, family), *(s for s in solvers if s.startswith(family))]
    return next((name for name in names if name in solvers), None)


def _first(study: Study, model: str) -> Iterator[Block]:
    """Table 1's layout and the numbers side by side, for every testbed and grid."""
    setting = _setting("lsun")
    for bed in study.config.beds:
        metric, same = _metric(study, bed), model == "lsun"
        yield Heading(f"Table 1: {short(bed)}", 3)
        yield Text(_said(study, bed, setting, metric, same))
        for grid in (grid for grid in study.config.grids if study.config.solvers_on(grid)):
            yield Text(f"{short(bed)}, grid {grid}: {TITLES[metric]} in the layout of Table 1.")
            yield quality_table(study, bed, grid, metric)
            yield Text(f"{short(bed)}, grid {grid}: Table 1 as published beside {TITLES[metric]} here.")
            pairs = _pairs_1(study, bed, grid, metric, setting)
            yield Table(("method", "NFE", *_BESIDE), tuple(pair.row(same and metric == _FID) for pair in pairs))


def _pairs_1(study: Study, bed: str, grid: str, metric: str, setting: Setting) -> Iterator[_Pair]:
    """Plain rows beside our run of that solver; the paper's own method beside each correction of DPM-Solver++."""
    solvers = study.config.solvers_on(grid)
    for row in setting.of_paper:
        assert row.place
        solver = _of_family(solvers, row.place.solver or "dpmpp") or row.place.solver or _SOLVERS["dpmpp"]
        for i, rule in enumerate(_rules(study) if row.place.stein else [PLAIN]):
            for nfe, fid in row.fid.items():
                cell = Cell(bed, solver, grid, nfe, rule)
                method, ours = f"{row.method}; ours: {label(cell)}", _value(study, cell, metric)
                if i == 0 or ours is not None:  # one row says that there is nothing beside a published number
                    yield _Pair((method, str(nfe)), fid, ours)


def _second(study: Study, model: str) -> Iterator[Block]:
    """Table 2's layout for every testbed and correction, and the numbers side by side."""
    setting, solvers = _setting("imagenet64"), trio(study)
    for bed in study.config.beds:
        metric, same = _metric(study, bed), model == "imagenet64"
        measured = study.metrics[bed]
        metrics = [m for m in _METRICS if m in measured] or [m for m in _OURS if m in measured] or [HEADLINE]
        yield Heading(f"Table 2: {short(bed)}", 3)
        yield Text(_said(study, bed, setting, metric, same))
        for rule in _rules(study):
            yield Text(f"{short(bed)}: Stein is the solver under {short(rule)}.")
            yield improvement_table(study, bed, rule, solvers, metrics)
        yield Text(f"{short(bed)}: Table 2 as published beside {TITLES[metric]} here.")
        pairs = _pairs_2(study, bed, metric, setting)
        columns = ("schedule", "solver", "steps (NFE)", "quantity", *_BESIDE)
        yield Table(columns, tuple(pair.row(same and metric == _FID) for pair in pairs))


def _pairs_2(study: Study, bed: str, metric: str, setting: Setting) -> Iterator[_Pair]:
    """Of every published cell Base, and Stein and Improvement beside each of our corrections."""
    known = {row.place: row for row in setting.of_paper}
    for place, corrected in known.items():
        if place is None or not place.stein:
            continue
        base = known[place._replace(stein=False)]
        for nfe in base.fid:
            cell, labels = _cell(study, bed, place.solver, place.grid, nfe)
            yield _Pair((*labels, "Base"), base.fid[nfe], _value(study, cell, metric))
            yield from _corrected(study, cell, labels, metric, corrected.fid.get(nfe, NONE), _percent(base, corrected, nfe))
    for one in setting.improvements:
        cell, labels = _cell(study, bed, one.solver, one.grid, one.nfe)
        yield from _corrected(study, cell, labels, metric, NONE, one.percent)


def _corrected(study: Study, cell: Cell, labels: tuple[str, ...], metric: str, fid: str, percent: str) -> Iterator[_Pair]:
    """Stein, where it is published, and Improvement, beside each correction."""
    for i, rule in enumerate(_rules(study)):
        run = Cell(cell.bed, cell.solver, cell.grid, cell.nfe, rule)
        if i and _value(study, run, metric) is None:
            continue
        if fid != NONE:
            yield _Pair((*labels, f"Stein; ours: {short(rule)}"), fid, _value(study, run, metric))
        yield _Pair((*labels, f"Improvement; ours: {short(rule)}"), percent, improvement(study, run, metric), percent=True)


def _cell(study: Study, bed: str, family: str, grid: str, nfe: int) -> tuple[Cell, tuple[str, ...]]:
    """Our plain cell of a published one, and the labels of both."""
    solver = _of_family(study.config.solvers_on(grid), family) or _SOLVERS[family]
    return Cell(bed, solver, grid, nfe, PLAIN), (grid, f"{_TITLES[family]}; ours: {solver}", f"{(nfe + 1) / 2:g} ({nfe})")


def _percent(base: Published, corrected: Published, nfe: int) -> str:
    """How much lower the published FID is with the correction, in percent of Base."""
    if nfe not in corrected.fid:
        return NONE
    return f"{100 * (1 - float(corrected.fid[nfe]) / float(base.fid[nfe])):.1f}"


def _said(study: Study, bed: str, setting: Setting, metric: str, same: bool) -> str:
    """What is beside what, and whether it can be subtracted."""
    published = f"As published: FID of {IMAGES:,} images of {setting.name}."
    ours = f"Ours: {TITLES[metric]} of {study.config.n:,} images of {short(bed)}."
    if not same:
        return f"{published} {ours} The study is not of the paper's model: the two stand apart and are never subtracted."
    if metric != _FID:
        return f"{published} {ours} No run has an FID yet, so that nothing is subtracted."
    few = "" if study.config.n >= IMAGES else " FID grows as images become fewer: a difference holds that bias too."
    return (
        f"{published} {ours} The study is said to be of the paper's model, so that the difference is ours less published.{few}"
    )


def _metric(study: Study, bed: str) -> str:
    """FID where it is measured, else the headline."""
    return _FID if _FID in study.metrics[bed] else HEADLINE


def _value(study: Study, cell: Cell, metric: str) -> Value | None:
    result = study.results.get(cell)
    return result.values.get(metric) if result else None


def _setting(model: str) -> Setting:
    """The published numbers of the paper's model."""
    return next(setting for setting in PUBLISHED if setting.paper_table == MODELS[model])
