"""Fits the universal tables on random exact laws, and writes the shipped file. No network and no data take part.

The shipped file, one to two hours on a core in all; a stopped run goes on with the tables that are missing:

    python -m recipes.fit_universal --work outputs/universal
    python -m recipes.fit_universal --work outputs/universal --rung 14.6 --nfe 1-10 --laws 96 --held 64 --iterations 10
    python -m recipes.fit_universal --work outputs/universal --out src/steindiff/solvers/universal.safetensors

A pilot in half a minute:

    python -m recipes.fit_universal --work outputs/pilot --nfe 4 --laws 24 --held 16

For each number of evaluations N and each rung (the first level, in units of σ_data), rows are fitted by closed-loop least
squares on many grids: first levels after the free step, exponents ρ, lengths of the history. The best grid of each history by
the error on held-out laws is refined by Gauss–Newton; the best of these is kept. Its scores are taken on a third set of laws.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
from tqdm import tqdm

from recipes.command import command
from recipes.random_laws import Family, draw
from steindiff.calibration import Settings, Trajectories, errors, fit, refine, renamed, score, trajectories
from steindiff.errors import InputError, require
from steindiff.grids import karras
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
Those of more than the second have rows of four values, and are refined for half as long on as many laws as choose a grid."""
LATE = 10


@dataclass(frozen=True)
class Options:
    """The command line; the defaults are those of the shipped file."""

    work: Annotated[Path, "the folder of finished tables, one file each"]
    nfe: Annotated[str, "numbers of evaluations, such as 3,5-10"] = "1-20"
    rung: Annotated[float, "the first level, in units of sigma_data", 1] = 160.0
    laws: Annotated[int, "laws that are fitted", 1] = 160
    held: Annotated[int, "laws that choose grids, histories and when to stop; as many others give the scores", 1] = 96
    steps: Annotated[int, "steps of the fine runs", 1] = 96
    iterations: Annotated[int, "most Gauss-Newton steps"] = 40
    along: Annotated[float, "what errors on the way count in a refinement", 0] = 0.2
    seed: Annotated[int, "seed of the laws and their noise"] = 0
    threads: Annotated[int, "CPU threads; they change the last digits", 1] = 1
    out: Annotated[Path | None, "write all finished tables of --work to this file, and fit nothing"] = None


def family(count: int, rung: float, seed: int, steps: int, label: str) -> list[Trajectories]:
    """So many laws with their fine runs."""
    generator, found = torch.Generator().manual_seed(seed), list[Trajectories]()
    for _ in tqdm(range(count), desc=label, disable=None):
        law = draw(Family(), generator)
        n = max(4, min(MOST, SIZE // law.dim))
        noise = rung * torch.randn(n, law.dim, generator=generator, dtype=torch.float64)
        found.append(trajectories(law, noise, rung, LAST, count=steps))
    return found


def grids(nfe: int, rung: float) -> Iterator[tuple[float, ...]]:
    """Grids to choose from: the rung, then the EDM grid's shape from a lower level to the last."""
    for first, rho in product(FIRSTS, RHOS):
        yield (rung, *karras(nfe, LAST, first * rung, rho).tolist())


def best(nfe: int, rung: float, laws: Sequence[Trajectories], held: Sequence[Trajectories], options: Options) -> Tabulated:
    """The best table on held-out laws."""
    found = list[tuple[float, Tabulated]]()
    for history in (None,) if nfe <= 4 else (None, 4) if nfe <= FULL else (4,):
        tried = [fit(laws[:SCANNED], levels, history=history) for levels in grids(nfe, rung)]
        chosen = min(tried, key=lambda table: score(table, held[:SCANNED]))
        chosen = fit(laws, chosen.levels, history=history)
        chosen = refine(chosen, *_shares(nfe, laws, held), _settings(nfe, options))
        found.append((score(chosen, held), chosen))
    return renamed(min(found, key=lambda pair: pair[0])[1], laws)


def _shares(
    nfe: int, laws: Sequence[Trajectories], held: Sequence[Trajectories]
) -> tuple[Sequence[Trajectories], Sequence[Trajectories]]:
    """The laws of a refinement."""
    return (laws, held) if nfe <= FULL else (laws[:SCANNED], held[:SCANNED])


def _settings(nfe: int, options: Options) -> Settings:
    """How long a refinement goes on."""
    most = options.iterations if nfe <= PATIENT else LATE if nfe <= FULL else LATE // 2
    return Settings(iterations=min(most, options.iterations), patience=6, gain=1e-4, along=options.along)


def report(table: Tabulated, laws: Sequence[Trajectories], options: Options, seconds: float) -> dict[str, Any]:
    """Where the table comes from, and its relative errors on laws that had no part in it."""
    relative = errors(table, laws).sqrt()
    scores = {"median": float(relative.median()), "mean_log": float(relative.log().mean()), "worst": float(relative.max())}
    settings = {**asdict(options), "work": None, "out": None, "nfe": None}
    return manifest(family=asdict(Family()), settings=settings, scores=scores, seconds=round(seconds, 1))


def gather(folder: Path, out: Path) -> None:
    """Write every finished table to one file. Raises InputError where there is none."""
    found = [item for path in folder.glob("*.safetensors") for item in table_files.load(path).items()]
    # A report has its settings; the folders of the machine that made it are nobody's business.
    entries = {name: (solver, {**about, "command": COMMAND}) for name, (solver, about) in found}
    if not entries:
        raise InputError(f"{folder} holds no finished table: fit some first, without --out")
    key = {name: (entry[0].levels[0], len(entry[0].rows)) for name, entry in entries.items()}
    table_files.save(out, {name: entries[name] for name in sorted(entries, key=lambda name: key[name])})
    print(f"{len(entries)} tables in {out}")


def _file(folder: Path, rung: float, nfe: int) -> Path:
    return folder / f"{rung:g}-{nfe:02d}.safetensors"


@command
def main(options: Options) -> None:
    """Fit what is missing, or write all to one file."""
    folder = writable_folder(options.work)
    if options.out is not None:
        gather(folder, options.out)
        return
    rung = options.rung
    wanted = parse_seeds(options.nfe)
    require(min(wanted) >= 1, "a table needs at least one evaluation", nfe=options.nfe)
    missing = [n for n in wanted if not _file(folder, rung, n).exists()]
    if not missing:
        return
    seeds = [1_000_000 * options.seed + i for i in range(3)]
    counts = (options.laws, options.held, options.held)
    names = ("laws to fit", "laws to choose by", "laws for the scores")
    laws, held, others = (family(n, rung, s, options.steps, name) for n, s, name in zip(counts, seeds, names, strict=True))
    for nfe in tqdm(missing, desc=f"tables from {rung:g}", disable=None):
        start = time.perf_counter()
        table = best(nfe, rung, laws, held, options)
        about = report(table, others, options, time.perf_counter() - start)
        table_files.save(_file(folder, rung, nfe), {f"{rung:g}/{nfe}": (table, about)})
        print(f"{rung:g} N={nfe}: {about['scores']} in {about['seconds']} s", flush=True)
