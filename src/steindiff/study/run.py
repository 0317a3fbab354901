"""The study: every cell once, each an atomic file, so that it stops and goes on at any moment without loss or repeat."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff import corrections
from steindiff.divergence import Choice
from steindiff.errors import InputError, needs
from steindiff.io import folders, processes
from steindiff.io.clock import Clock
from steindiff.io.files import digest
from steindiff.io.images import to_uint8
from steindiff.metrics import Judge, JudgeFiles
from steindiff.solvers import USUAL, Setting, Solver
from steindiff.study import store
from steindiff.study.common import Common
from steindiff.study.compare import Study
from steindiff.study.draw import Drawn, draw
from steindiff.study.grid import PLAIN, Cell, Config
from steindiff.study.measure import Measures, Ruler, changes, judges_of, references
from steindiff.study.store import BedSummary, Result
from steindiff.study.testbed import Testbed, make, price

with needs("cli", "a study"):
    from tqdm.auto import tqdm

_SHOWN = 12


def run_study(
    config: Config,
    outdir: str | Path,
    *,
    beds: Sequence[Testbed] = (),
    judges: Sequence[JudgeFiles] = (),
    device: str = "cpu",
    progress: bool = True,
    clock: Clock | None = None,
) -> Study:
    """Run what is missing of a study, and give what was found.

    Under torchrun or accelerate, batches are dealt out to the processes, and one that is left over is divided among them;
    statistics are those of the whole batch either way. Each measures a cell at a time, and the first one writes.

    Args:
        config: the study.
        outdir: cells/ holds one file a cell, references/ what cells are measured against, prices/ what a derivative costs.
        beds: your own testbeds, for names in `config.beds` that are theirs.
        judges: the files that FID, inception score and FD-DINOv2 of images are measured with.
        device: where the named testbeds compute; with "cuda", several processes take one each. No cell's key depends on it.
        progress: whether the first process shows a bar.
        clock: measures its parts: references, prices of derivatives, runs, measuring.

    Raises:
        ModelFileError: what is to measure is no file of its kind; this is said before any run, as is that files do not fit.
        InputError: a configuration that cannot run, a foreign or broken file, a folder that cannot be written to or that
            another process has.
    """
    own = {bed.name: bed for bed in beds}
    results, summaries, clock = list[Result](), list[BedSummary](), clock or Clock()
    with processes.joined(device), folders.locked(outdir, store.ROOMS) as folder:
        _check(config, judges)
        place = processes.local_device(device)
        processes.by_first(lambda: _check_files(config, judges, place))
        cells, quiet = list(config.cells()), not (progress and processes.rank() == 0)
        with tqdm(total=len(cells), unit="cell", disable=quiet, mininterval=1.0, smoothing=0.05) as bar:
            for name in config.beds:
                bed = own[name] if name in own else make(name, place)
                bar.set_postfix_str(f"{bed.name}: references")
                with clock("references"):
                    refs = references(bed, config.seeds, folder, config.checked, _of_law(config, judges))
                named = judges_of(bed, judges, refs.target, config.n)
                ruler = Ruler(bed, refs, named, config.metrics, config.axes, config.seeds)
                with clock("measuring"):
                    floor, perfect = _bounds(ruler)
                    summaries.append(_summary(name, ruler, floor, perfect))
                part = _Part(bed, config, folder, ruler, perfect, bar, clock)
                results += part.results([cell for cell in cells if cell.bed == name])
        results, summaries = processes.told((results, summaries))
    return Study.of(config, results, summaries)


def build(
    cell: Cell, config: Config, setting: Setting = USUAL, choice: Choice | None = None, clean: Tensor | None = None
) -> tuple[Solver, Tensor]:
    """The cell's solver, corrected, and its grid.

    A solver with a grid of its own plans for `setting`, the testbed's. A run needs `choice`, the price of a derivative, and
    `clean`, samples of the testbed's law, of which a correction may take constants; without them the solver is only described.
    """
    solver, correction = config.solver(cell.solver), config.correction(cell.correction)
    if solver.plans:
        solver, sigmas = solver.plan(cell.evaluations, setting)
    else:
        solver, steps = solver.for_nfe(cell.evaluations, setting)
        sigmas = config.grid(cell.grid, steps, setting)
    if correction is None:
        return solver, sigmas
    given = correction if clean is None else correction.given(clean)
    return corrections.apply(given, solver, divergence=config.estimator(choice)), sigmas


def key_of(cell: Cell, bed: Testbed, config: Config, judges: Sequence[str] = ()) -> str:
    """A digest of all that determines a cell's numbers, with those of the judges. Refuses objects whose text is an address."""
    solver, sigmas = build(cell, config, bed.setting)
    text = repr(solver)
    if " at 0x" in text:
        raise InputError(f"{text}: a cell is kept under the text of its solver, and an address says nothing; define __repr__")
    what = {"bed": bed.digest, "solver": text, "sigmas": sigmas.tolist(), "seeds": (config.first_seed, config.n)}
    how = {"batch": config.batch, "metrics": sorted(config.metrics), "axes": config.axes, "judges": list(judges)}
    how |= {"shown": "classes"} if bed.classes else {}
    return digest(format=store.FORMAT, **what, **how)


def _of_law(config: Config, judges: Sequence[JudgeFiles]) -> bool:
    """Whether samples of the law are needed: for a metric other than the end points', a judge, or a correction's constants."""
    corrected = any(config.correction(label) is not None for label in config.corrections)
    return corrected or bool(judges) or set(config.metrics) != {"endpoint"}


@dataclass(frozen=True, eq=False)
class _Part:
    """A testbed's part of a study. Processes draw together, measure a cell each, and the first one keeps."""

    bed: Testbed
    config: Config
    folder: Path
    ruler: Ruler
    perfect: Measures
    bar: "tqdm[Any]"
    clock: Clock
    common: Common = field(default_factory=Common)

    def results(self, cells: Sequence[Cell]) -> list[Result]:
        """The results of the cells that this testbed has, on the first process."""
        bed, config, judged_by = self.bed, self.config, [judge.digest for judge in self.ruler.judges]
        keys = {cell: key_of(cell, bed, config, judged_by) for cell in cells if config.runs_on(cell, bed.setting)}
        held = processes.by_first(lambda: {cell: self._held(cell, key) for cell, key in keys.items()}) or {}
        missing = processes.told([cell for cell, result in held.items() if result is None])
        self.bar.update(len(cells) - len(missing))
        for result in self._new(missing, keys):
            store.write(self.folder, result)
            held[result.cell] = result
        return [result for result in held.values() if result is not None]

    def _held(self, cell: Cell, key: str) -> Result | None:
        return store.read(self.folder, cell, key, self._known)

    def _new(self, missing: Sequence[Cell], keys: Mapping[Cell, str]) -> Iterator[Result]:
        """The missing results, on the first process; a plain run is made once more where a missing one is compared with it."""
        wanted = set(missing)
        todo = list(dict.fromkeys(run for cell in missing for run in (cell.plain, cell) if run in keys))
        plain: dict[Cell, Measures | None] = {}
        for first in range(0, len(todo), processes.world_size()):
            some = todo[first : first + processes.world_size()]
            drawn = [self._drawn(cell) for cell in some]
            with self.clock("measuring"):
                measured = processes.dealt([partial(self._measured, c, runs) for c, runs in zip(some, drawn, strict=True)])
            for cell, runs, measures in zip(some, drawn, measured, strict=True):
                plain = {cell: measures} if cell == cell.plain else plain
                if cell not in wanted:
                    continue
                self.bar.update()
                if processes.rank() == 0:
                    yield self._result(cell, keys[cell], runs, measures, plain.get(cell.plain))

    def _drawn(self, cell: Cell) -> Drawn:
        self.bar.set_postfix_str(str(cell))
        corrected = self.config.correction(cell.correction) is not None
        given = (self._price, self.ruler.references.floor) if corrected else (None, None)
        solver, sigmas = build(cell, self.config, self.bed.setting, *given)
        with self.clock("runs"):
            return draw(solver, self.bed, sigmas, self.config.seeds, batch=self.config.batch, together=True, common=self.common)

    def _measured(self, cell: Cell, drawn: Drawn) -> Measures | None:
        paired = not self.config.solver(cell.solver).stochastic
        return None if drawn.x is None else self.ruler.measure(drawn.x, paired)

    def _result(self, cell: Cell, key: str, drawn: Drawn, measured: Measures | None, plain: Measures | None) -> Result:
        if measured is None or drawn.x is None:
            return Result(cell, key, 0, failure=drawn.failure, seconds=drawn.seconds)
        change = changes(measured, plain) if plain and cell.correction != PLAIN else {}
        spread = measured.spread
        return Result(
            cell, key, len(drawn.x), measured.values, change, drawn.stats, drawn.trace, measured.spectrum,
            seconds=drawn.seconds, shown=_shown(self.ruler, drawn.x), excess=changes(measured, self.perfect),
            spread=torch.cat([torch.empty(0), *map(Tensor.float, spread.values())]),
            lengths={name: len(numbers) for name, numbers in spread.items()},
        )  # fmt: skip

    @cached_property
    def _known(self) -> dict[str, Path]:
        return store.places(self.folder)

    @cached_property
    def _price(self) -> Choice:
        method = "vjp" if self.config.divergence == "exact" else self.config.divergence
        seeds = self.config.seeds[: self.config.batch]
        with self.clock("prices"):
            return price(self.bed, seeds, self.folder, method)


def _bounds(ruler: Ruler) -> tuple[Measures, Measures]:
    """What independent samples of the law measure, and the exact flow's end points."""
    refs = ruler.references
    works: list[Callable[[], Measures]] = [partial(ruler.measure, refs.floor, False), partial(ruler.measure, refs.endpoints)]
    floor, perfect = processes.dealt(works)
    return floor, perfect


def _summary(name: str, ruler: Ruler, floor: Measures, perfect: Measures) -> BedSummary:
    bed, refs = ruler.bed, ruler.references
    how = "; ".join([refs.how, *(f"{', '.join(j.names)}: extractor {j.extractor.sha256[:16]}" for j in ruler.judges)])
    kind, shown = "exact" if bed.law else bed.kind, _shown(ruler, refs.endpoints)
    labels = tuple(bed.label(ruler.seeds[i]) for i in _places(ruler)) if bed.classes else ()
    measured = floor.values, perfect.values
    return BedSummary(name, kind, bed.event_shape, how, len(refs.target), *measured, shown, refs.error, labels)


def _shown(ruler: Ruler, x: Tensor) -> Tensor:
    """A few images, for a report."""
    return torch.from_numpy(to_uint8(x[_places(ruler)])) if ruler.bed.is_image else torch.empty(0, dtype=torch.uint8)


def _places(ruler: Ruler) -> list[int]:
    """The first images; where there are classes, the first of each class, in the order of the classes."""
    if not ruler.bed.classes:
        return list(range(min(_SHOWN, len(ruler.references.endpoints))))
    first = {ruler.bed.label(seed): i for i, seed in reversed(list(enumerate(ruler.seeds)))}
    return [first[label] for label in sorted(first)[:_SHOWN]]


def _check_files(config: Config, judges: Sequence[JudgeFiles], device: str) -> None:
    """Open what measures before hours are spent on what it is to measure; it is opened again then, testbed by testbed."""
    for one in judges:
        extractor, _ = one.open(device)
        extractor.check(config.n, Judge.groups, Judge.few)


def _check(config: Config, judges: Sequence[JudgeFiles]) -> None:
    """Reference statistics are of one testbed."""
    named = [str(one.reference) for one in judges if one.reference]
    if named and len(config.beds) > 1:
        raise InputError(f"reference {', '.join(named)} for {len(config.beds)} testbeds: run the one it is of, by --beds")
