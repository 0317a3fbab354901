"""Fits the universal tables on random exact laws, and writes the shipped file. No network and no data take part.

The shipped file, one to two hours on a core in all; a stopped run goes on with the tables that are missing:

    python -m recipes.fit_universal --work outputs/universal
    python -m recipes.fit_universal --work outputs/universal --rung 14.6 --nfe 1-10 --laws 96 --held 64 --iterations 10
    python -m recipes.fit_universal --work outputs/universal --rung 14.6 --nfe 11-20 --laws 96 --held 64 --base 8
    python -m recipes.fit_universal --work outputs/universal --rung 14.6 --nfe 10-20 --laws 96 --held 64 --base 8 --last 0.03
    python -m recipes.fit_universal --work outputs/universal --rung 160 --nfe 11-20 --laws 96 --held 64 --base 8 --last 0.04
    python -m recipes.fit_universal --work outputs/universal --out src/steindiff/solvers/universal.safetensors

The tables for guidance, in a file of their own; P is python -m recipes.fit_universal --work outputs/guided --laws 40 --held 24:

    $P --guidance 2 --nfe 3-5; $P --guidance 2 --nfe 6-10 --first 0.4; $P --guidance 2 --nfe 3-10 --rung 14.6
    $P --guidance 4 --nfe 3-5; $P --guidance 4 --nfe 6-9 --least 2 --first 0.4; $P --guidance 4 --nfe 10 --least 2
    $P --guidance 4 --nfe 3-5 --rung 14.6; $P --guidance 4 --nfe 6-10 --least 2 --rung 14.6
    $P --guidance 8 --nfe 3-10; $P --guidance 8 --nfe 3-5 --rung 14.6; $P --guidance 8 --nfe 6-10 --least 4 --rung 14.6
    $P --out src/steindiff/solvers/guided.safetensors

A pilot in half a minute:

    python -m recipes.fit_universal --work outputs/pilot --nfe 4 --laws 24 --held 16

For each number of evaluations N and each rung (the first level, in units of σ_data), rows are fitted by closed-loop least
squares on many grids: first levels after the free step, exponents ρ, lengths of the history. The best grid of each history by
the error on held-out laws is refined by Gauss–Newton; the best of these is kept. Its scores are taken on a third set of laws.
With `--base` the levels are those of a finished table, resampled, instead of a grid; with `--last` a run ends at another one.
Under guidance the laws have classes, and scales from `--least` to `BAND` times the table's. A network is guided less strongly
than an exact law of the same scale, so that a short table of strongly guided laws alone is too careful for it. With more
evaluations there is room for care, and images need it.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from tqdm import tqdm

from recipes.command import command, need
from recipes.random_laws import GUIDED, Family, draw, guided
from steindiff.calibration import Settings, Trajectories, errors, fit, refine, renamed, score, search, trajectories
from steindiff.errors import InputError
from steindiff.io.files import manifest, writable_folder
from steindiff.run import parse_seeds
from steindiff.solvers import Tabulated, table_files
from steindiff.solvers.universal import LAST

COMMAND = "python -m recipes.fit_universal"
FIRSTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
"""The level after the free step, as a fraction of the rung."""
RHOS = (4.0, 5.0, 7.0)
SIZE, MOST = 6144, 64
"""Numbers in the noise of one law, and the most noises of it."""
SCANNED = 48
"""Laws that choose a grid, half as many under guidance; the rows on it are then fitted to all."""
PATIENT, FULL = 6, 10
"""Tables of more evaluations than the first are refined for `LATE` steps at most, since most of the gain is in the first ones.
Those of more than the second have rows of four values, and are refined for half as long on as many laws as choose a grid.
Under guidance every refinement is as short as those after the first, and rows after the first have four values."""
LATE = 10
BAND = math.sqrt(2)
"""Under guidance, the factor from a table's scale to the highest of its laws; the tables of 2, 4 and 8 then meet."""
Scales = tuple[float, float] | None
"""A range of scales of guidance; None is no guidance."""


@dataclass(frozen=True)
class Options:
    """The command line; the defaults are those of the shipped file."""

    work: Annotated[Path, "the folder of finished tables, one file each"]
    nfe: Annotated[str, "numbers of evaluations, such as 3,5-10"] = "1-20"
    rung: Annotated[float, "the first level, in units of sigma_data", 1] = 160.0
    guidance: Annotated[float, "the scale of classifier-free guidance; 1 is none", 1] = 1.0
    least: Annotated[float, "under guidance, the lowest scale of a law", 1] = 1.0
    first: Annotated[float, "where a fit's free step ends, as a fraction of the rung; 0 tries several levels", 0] = 0.0
    base: Annotated[int, "the evaluations of a finished table whose levels are resampled; 0 tries grids", 0] = 0
    last: Annotated[float, "the last level, in units of sigma_data; 0.004 is 0.002 of 0.5", 1e-9] = LAST
    laws: Annotated[int, "laws that are fitted", 1] = 160
    held: Annotated[int, "laws that choose grids, histories and when to stop; as many others give the scores", 1] = 96
    steps: Annotated[int, "steps of the fine runs", 1] = 96
    iterations: Annotated[int, "most Gauss-Newton steps"] = 40
    along: Annotated[float, "what errors on the way count in a refinement", 0] = 0.2
    seed: Annotated[int, "seed of the laws and their noise"] = 0
    threads: Annotated[int, "CPU threads; they change the last digits", 1] = 1
    out: Annotated[Path | None, "write all finished tables of --work to this file, and fit nothing"] = None


def family(
    count: int, rung: float, seed: int, steps: int, label: str, scales: Scales = None, last: float = LAST
) -> list[Trajectories]:
    """So many laws with their fine runs from the rung to the last level; under guidance, of scales in this range."""
    generator, found = torch.Generator().manual_seed(seed), list[Trajectories]()
    for i in tqdm(range(count), desc=label, disable=None):
        law = draw(_ranges(scales)[i % 2], generator)
        n = max(4, min(MOST, SIZE // law.dim))
        own = scales and guided(law, n, scales, generator)
        noise = rung * torch.randn(n, law.dim, generator=generator, dtype=torch.float64)
        found.append(trajectories(own or law, noise, rung, last, count=steps, conditioned=own and own.of))
    return found


def _ranges(scales: Scales) -> tuple[Family, Family]:
    """What laws come from, in turns."""
    return GUIDED if scales else (Family(), Family())


def _scales(options: Options) -> Scales:
    """The range of the laws' scales of guidance; None is none."""
    return None if options.guidance == 1 else (options.least, options.guidance * BAND)


def grids(nfe: int, rung: float, first: float = 0.0, last: float = LAST) -> Iterator[tuple[float, ...]]:
    """Grids to choose from; `first` is the fraction of the rung to which their free step goes, 0 for several."""
    return search.grids(nfe, rung, last, (first,) if first else FIRSTS, RHOS)


def best(nfe: int, rung: float, laws: Sequence[Trajectories], held: Sequence[Trajectories], options: Options) -> Tabulated:
    """The best table on held-out laws."""
    found, some = list[tuple[float, Tabulated]](), SCANNED if options.guidance == 1 else SCANNED // 2
    shares = (laws, held) if nfe <= FULL else (laws[:SCANNED], held[:SCANNED])
    for history in _histories(nfe, options.guidance):
        tried = [fit(laws[:some], levels, history=history) for levels in _starts(nfe, rung, options)]
        chosen = min(tried, key=lambda table: score(table, held[:some]))
        chosen = fit(laws, chosen.levels, history=history)
        chosen = refine(chosen, *shares, _settings(nfe, options))
        found.append((score(chosen, held), chosen))
    return renamed(min(found, key=lambda pair: pair[0])[1], laws)


def _starts(nfe: int, rung: float, options: Options) -> Iterator[tuple[float, ...]]:
    """Levels to choose from: grids, or those of a finished table alone. Raises InputError where that is not finished."""
    if not options.base:
        yield from grids(nfe, rung, options.first, options.last)
        return
    _, path = _place(options.base, replace(options, last=LAST))
    need(path.exists(), f"there is no {path}; fit it first, with --nfe {options.base}", base=options.base)
    ((table, _),) = table_files.load(path).values()
    yield search.resampled((*table.levels[:-1], options.last), nfe)


def _histories(nfe: int, guidance: float) -> tuple[int | None, ...]:
    """The lengths of the history to choose from; None is all."""
    if guidance != 1:
        return (None,) if nfe <= PATIENT else (4,)
    return (None,) if nfe <= 4 else (None, 4) if nfe <= FULL else (4,)


def _settings(nfe: int, options: Options) -> Settings:
    """How long a refinement goes on."""
    patient = nfe <= PATIENT and options.guidance == 1
    most = options.iterations if patient else LATE if nfe <= FULL else LATE // 2
    return Settings(iterations=min(most, options.iterations), patience=6, gain=1e-4, along=options.along)


def report(table: Tabulated, laws: Sequence[Trajectories], options: Options, seconds: float) -> dict[str, Any]:
    """Where the table comes from, and its relative errors on laws that had no part in it."""
    relative = errors(table, laws).sqrt()
    scores = {"median": float(relative.median()), "mean_log": float(relative.log().mean()), "worst": float(relative.max())}
    settings = {**asdict(options), "work": None, "out": None, "nfe": None}
    scales = _scales(options)
    first, second = map(asdict, _ranges(scales))
    ranges = {"family": first, "images": second, "scales": scales} if scales else {"family": first}
    return manifest(**ranges, settings=settings, scores=scores, seconds=round(seconds, 1))


def gather(folder: Path, out: Path) -> None:
    """Write every finished table to one file. Raises InputError where there is none."""
    found = dict(item for path in folder.glob("*.safetensors") for item in table_files.load(path).items())
    if not found:
        raise InputError(f"{folder} holds no finished table: fit some first, without --out")

    def key(name: str) -> tuple[float, ...]:
        solver, about = found[name]
        return about["settings"].get("guidance", 1), solver.levels[0], solver.levels[-1], len(solver.rows)

    # A report has its settings; the folders of the machine that made it are nobody's business.
    table_files.save(out, {name: (found[name][0], {**found[name][1], "command": COMMAND}) for name in sorted(found, key=key)})
    print(f"{len(found)} tables in {out}")


def _place(nfe: int, options: Options) -> tuple[str, Path]:
    """What a table is called in a file, and its own file: by rung, evaluations, and scale and last level where unusual."""
    scale = [] if options.guidance == 1 else [f"{options.guidance:g}"]
    unusual = scale + ([] if options.last == LAST else [f"to {options.last:g}"])
    file = "-".join([f"{options.rung:g}", f"{nfe:02d}", *unusual]).replace(" ", "-")
    return "/".join([f"{options.rung:g}", f"{nfe}", *unusual]), options.work / f"{file}.safetensors"


@command
def main(options: Options) -> None:
    """Fit what is missing, or write all to one file."""
    folder = writable_folder(options.work)
    if options.out is not None:
        gather(folder, options.out)
        return
    rung = options.rung
    wanted = parse_seeds(options.nfe)
    need(min(wanted) >= 1, "a table needs at least one evaluation", nfe=options.nfe)
    missing = [n for n in wanted if not _place(n, options)[1].exists()]
    if not missing:
        return
    counts = {"laws to fit": options.laws, "laws to choose by": options.held, "laws for the scores": options.held}
    laws, held, others = (
        family(count, rung, 1_000_000 * options.seed + i, options.steps, label, _scales(options), options.last)
        for i, (label, count) in enumerate(counts.items())
    )
    for nfe in tqdm(missing, desc=f"tables from {rung:g}", disable=None):
        start = time.perf_counter()
        table = best(nfe, rung, laws, held, options)
        about = report(table, others, options, time.perf_counter() - start)
        name, path = _place(nfe, options)
        table_files.save(path, {name: (table, about)})
        print(f"{name}: {about['scores']} in {about['seconds']} s", flush=True)
