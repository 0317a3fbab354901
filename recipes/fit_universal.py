"""Fits the universal tables on random exact laws, and writes the shipped file. No network and no data take part.

The shipped file, one to two hours on a core in all; a stopped run goes on with the tables that are missing:

    python -m recipes.fit_universal --work outputs/universal
    python -m recipes.fit_universal --work outputs/universal --rung 14.6 --nfe 1-10 --laws 96 --held 64 --iterations 10
    python -m recipes.fit_universal --work outputs/universal --out src/steindiff/solvers/universal.safetensors

Tables for guidance, ten minutes on a core for a scale; none is shipped (`docs/universal.md` says why):

    python -m recipes.fit_universal --work outputs/guided --guidance 4 --nfe 3-8,10 --laws 48 --held 32 --steps 192

A pilot in half a minute:

    python -m recipes.fit_universal --work outputs/pilot --nfe 4 --laws 24 --held 16

For each number of evaluations N and each rung (the first level, in units of σ_data), rows are fitted by closed-loop least
squares on many grids: first levels after the free step, exponents ρ, lengths of the history. The best grid of each history by
the error on held-out laws is refined by Gauss–Newton; the best of these is kept. Its scores are taken on a third set of laws.
Under guidance the laws have classes, and scales up to a factor of `BAND` from the table's. There the best grids of `STARTS`
first levels are refined, because a refinement from one grid alone may end far from the best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tqdm import tqdm

from recipes.command import command
from recipes.random_laws import GUIDED, Family, draw, guided
from steindiff.calibration import Settings, Trajectories, errors, fit, refine, renamed, score, search, trajectories
from steindiff.errors import InputError, require
from steindiff.io.files import manifest, writable_folder
from steindiff.run import parse_seeds
from steindiff.solvers import Tabulated, table_files

COMMAND = "python -m recipes.fit_universal"
LAST = 0.004
"""The last level, in units of σ_data: 0.002 of 0.5."""
FIRSTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
"""The level after the free step, as a fraction of the rung."""
RHOS = (4.0, 5.0, 7.0)
SIZE, MOST = 6144, 64
"""Numbers in the noise of one law, and the most noises of it."""
SCANNED = 48
"""Laws that choose a grid; the rows on it are then fitted to all."""
PATIENT, FULL = 6, 10
"""Tables of more evaluations than the first are refined for `LATE` steps at most, since most of the gain is in the first ones.
Those of more than the second have rows of four values, and are refined for half as long on as many laws as choose a grid.
Under guidance every refinement is as short as those after the first, and rows after the first have four values."""
LATE = 10
BAND, STARTS = math.sqrt(2), 2
"""Under guidance: the factor to the ends of a table's band of scales (those of 2, 4, 8 meet), and first levels to refine."""
Levels = tuple[float, ...]


@dataclass(frozen=True)
class Options:
    """The command line; the defaults are those of the shipped file."""

    work: Annotated[Path, "the folder of finished tables, one file each"]
    nfe: Annotated[str, "numbers of evaluations, such as 3,5-10"] = "1-20"
    rung: Annotated[float, "the first level, in units of sigma_data", 1] = 160.0
    guidance: Annotated[float, "the scale of classifier-free guidance; 1 is none", 1] = 1.0
    laws: Annotated[int, "laws that are fitted", 1] = 160
    held: Annotated[int, "laws that choose grids, histories and when to stop; as many others give the scores", 1] = 96
    steps: Annotated[int, "steps of the fine runs", 1] = 96
    iterations: Annotated[int, "most Gauss-Newton steps"] = 40
    along: Annotated[float, "what errors on the way count in a refinement", 0] = 0.2
    seed: Annotated[int, "seed of the laws and their noise"] = 0
    threads: Annotated[int, "CPU threads; they change the last digits", 1] = 1
    out: Annotated[Path | None, "write all finished tables of --work to this file, and fit nothing"] = None


def family(count: int, rung: float, seed: int, steps: int, label: str, guidance: float = 1.0) -> list[Trajectories]:
    """So many laws with their fine runs."""
    generator, found = torch.Generator().manual_seed(seed), list[Trajectories]()
    for i in tqdm(range(count), desc=label, disable=None):
        law = draw(_ranges(guidance)[i % 2], generator)
        n = max(4, min(MOST, SIZE // law.dim))
        own = None if guidance == 1 else guided(law, n, (guidance / BAND, guidance * BAND), generator)
        noise = rung * torch.randn(n, law.dim, generator=generator, dtype=torch.float64)
        found.append(trajectories(own or law, noise, rung, LAST, count=steps, conditioned=own and own.of))
    return found


def _ranges(guidance: float) -> tuple[Family, Family]:
    """What laws come from, in turns."""
    return (Family(), Family()) if guidance == 1 else GUIDED


def grids(nfe: int, rung: float) -> Iterator[tuple[float, ...]]:
    """Grids to choose from."""
    return search.grids(nfe, rung, LAST, FIRSTS, RHOS)


def best(nfe: int, rung: float, laws: Sequence[Trajectories], held: Sequence[Trajectories], options: Options) -> Tabulated:
    """The best table on held-out laws."""
    found = list[tuple[float, Tabulated]]()
    for history in _histories(nfe, options.guidance):
        tried = [fit(laws[:SCANNED], levels, history=history) for levels in grids(nfe, rung)]
        scores = [score(table, held[:SCANNED]) for table in tried]
        for levels in _starts([table.levels for table in tried], scores, options.guidance):
            chosen = fit(laws, levels, history=history)
            chosen = refine(chosen, *_shares(nfe, laws, held), _settings(nfe, options))
            found.append((score(chosen, held), chosen))
    return renamed(min(found, key=lambda pair: pair[0])[1], laws)


def _histories(nfe: int, guidance: float) -> tuple[int | None, ...]:
    """The lengths of the history to choose from; None is all."""
    if guidance != 1:
        return (None,) if nfe <= PATIENT else (4,)
    return (None,) if nfe <= 4 else (None, 4) if nfe <= FULL else (4,)


def _starts(tried: Sequence[Levels], scores: Sequence[float], guidance: float) -> list[Levels]:
    """The grid of the best score, or under guidance those of the best first levels, with the best exponent of each."""
    best_first = dict[float, Levels]()
    for _score, levels in sorted(zip(scores, tried, strict=True)):
        best_first.setdefault(levels[1], levels)
    return list(best_first.values())[: 1 if guidance == 1 else STARTS]


def _shares(
    nfe: int, laws: Sequence[Trajectories], held: Sequence[Trajectories]
) -> tuple[Sequence[Trajectories], Sequence[Trajectories]]:
    """The laws of a refinement."""
    return (laws, held) if nfe <= FULL else (laws[:SCANNED], held[:SCANNED])


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
    first, second = map(asdict, _ranges(options.guidance))
    ranges = {"family": first} if first == second else {"family": first, "images": second}
    return manifest(**ranges, settings=settings, scores=scores, seconds=round(seconds, 1))


def gather(folder: Path, out: Path) -> None:
    """Write every finished table to one file. Raises InputError where there is none."""
    found = [item for path in folder.glob("*.safetensors") for item in table_files.load(path).items()]
    # A report has its settings; the folders of the machine that made it are nobody's business.
    entries = {name: (solver, {**about, "command": COMMAND}) for name, (solver, about) in found}
    if not entries:
        raise InputError(f"{folder} holds no finished table: fit some first, without --out")
    key = {name: (about["settings"].get("guidance", 1), solver.levels[0], len(solver.rows)) for name, (solver, about) in found}
    table_files.save(out, {name: entries[name] for name in sorted(entries, key=lambda name: key[name])})
    print(f"{len(entries)} tables in {out}")


def _name(rung: float, nfe: int, guidance: float) -> str:
    """What a table is called in a file."""
    return f"{rung:g}/{nfe}" if guidance == 1 else f"{rung:g}/{nfe}/{guidance:g}"


def _file(nfe: int, options: Options) -> Path:
    scale = "" if options.guidance == 1 else f"-{options.guidance:g}"
    return options.work / f"{options.rung:g}-{nfe:02d}{scale}.safetensors"


@command
def main(options: Options) -> None:
    """Fit what is missing, or write all to one file."""
    folder = writable_folder(options.work)
    if options.out is not None:
        gather(folder, options.out)
        return
    rung, guidance = options.rung, options.guidance
    wanted = parse_seeds(options.nfe)
    require(min(wanted) >= 1, "a table needs at least one evaluation", nfe=options.nfe)
    missing = [n for n in wanted if not _file(n, options).exists()]
    if not missing:
        return
    seeds = [1_000_000 * options.seed + i for i in range(3)]
    counts = (options.laws, options.held, options.held)
    names = ("laws to fit", "laws to choose by", "laws for the scores")
    parts = zip(counts, seeds, names, strict=True)
    laws, held, others = (family(n, rung, seed, options.steps, name, guidance) for n, seed, name in parts)
    for nfe in tqdm(missing, desc=f"tables from {rung:g}", disable=None):
        start = time.perf_counter()
        table = best(nfe, rung, laws, held, options)
        about = report(table, others, options, time.perf_counter() - start)
        name = _name(rung, nfe, guidance)
        table_files.save(_file(nfe, options), {name: (table, about)})
        print(f"{name}: {about['scores']} in {about['seconds']} s", flush=True)
