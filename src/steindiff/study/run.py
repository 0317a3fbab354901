"""The study: every cell once, each an atomic file, so that it stops and goes on at any moment without loss or repeat."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from steindiff.errors import InputError
from steindiff.io import processes
from steindiff.io.files import manifest, writable_folder
from steindiff.io.images import to_uint8
from steindiff.report.study import write_report
from steindiff.report.tables import BedSummary
from steindiff.study import store
from steindiff.study.cell import Drawn, draw, key_of, price
from steindiff.study.extractors import Extractors
from steindiff.study.grid import PLAIN, Cell, Config
from steindiff.study.measure import Measures, Ruler, changes
from steindiff.study.store import Result
from steindiff.study.testbed import References, Testbed, make, references

__all__ = ["run_study"]

_SHOWN = 12


def run_study(
    config: Config,
    outdir: str | Path,
    *,
    beds: Sequence[Testbed] = (),
    extractors: Extractors | None = None,
    device: str = "cpu",
    progress: bool = True,
    command: str = "",
) -> list[Result]:
    """Run what is missing of a study in `outdir`, and write its report.

    Under torchrun or accelerate, every batch is shared out over the processes, and statistics are those of the whole batch.

    Args:
        config: the study.
        outdir: made if need be; cells/ holds one file a cell, references/ what they are measured
            against, prices/ what a derivative costs.
        beds: testbeds of one's own, for names in `config.beds` that are theirs.
        extractors: of FID, inception score and FD-DINOv2, for testbeds of images.
        device: of the named testbeds: "cpu", "cuda", …; several processes with "cuda" take one each. Not part of a cell's key.
        progress: a bar, on the first process.
        command: for the report: what makes this study again.

    Returns:
        Every cell's result; on the first process.

    Raises:
        InputError: a configuration that cannot run, a foreign or broken file, a folder that cannot be written to.
    """
    folder = writable_folder(outdir)
    own = {bed.name: bed for bed in beds}
    extractors = extractors or Extractors()
    extractors.check(config.beds)
    with processes.joined(device):
        _check_shares(config)
        place = processes.local_device(device)
        results: list[Result] = []
        summaries: list[BedSummary] = []
        cells = list(config.cells())
        quiet = not (progress and processes.rank() == 0)
        with tqdm(total=len(cells), unit="cell", disable=quiet, mininterval=1.0, smoothing=0.05) as bar:
            for name in config.beds:
                bed = own[name] if name in own else make(name, place)
                found, summary = _study_bed(bed, [c for c in cells if c.bed == name], config, folder, extractors, bar)
                results += found
                summaries += [summary] if summary else []
        if processes.rank() == 0:
            write_report(folder, config, results, summaries, manifest(study=config.__dict__, device=device, rerun=command))
    return results


def _study_bed(
    bed: Testbed, cells: list[Cell], config: Config, folder: Path, extractors: Extractors, bar: tqdm[Any]
) -> tuple[list[Result], BedSummary | None]:
    """A testbed's cells, group by group: a solver's plain run, then its corrections, compared with it."""
    bar.set_postfix_str(f"{bed.name}: references")
    first = processes.rank() == 0
    seeds = range(config.first_seed, config.first_seed + config.n)
    ruler = _Bench(bed, references(bed, seeds, folder), extractors) if first else None
    results, choice = [], None
    for _, group in groupby(cells, key=lambda c: c.plain):
        wanted = list(group)
        keys = {cell: key_of(cell, bed, config, ruler.judges) for cell in wanted} if ruler else {}
        held = {cell: store.read(folder, cell, key) for cell, key in keys.items()}
        missing = _from_first([cell for cell in wanted if held.get(cell) is None] if first else [])
        if missing:
            choice = choice or _from_first(price(bed, config, folder) if first else None)
            todo = missing if missing[0].correction == PLAIN else [wanted[0], *missing]
            plain: Measures | None = None
            for cell in todo:
                bar.set_postfix_str(str(cell))
                drawn = draw(cell, bed, config, choice)
                if ruler is not None:
                    measured = ruler.measure(drawn)
                    result = _result(cell, keys[cell], drawn, measured, plain, bed)
                    plain = measured if cell.correction == PLAIN else plain
                    if cell in missing:
                        store.write(folder, result)
                        held[cell] = result
        results += [r for r in held.values() if r is not None]
        bar.update(len(wanted))
    return results, ruler.summary if ruler else None


class _Bench:
    """A ruler with what it says of perfect samples."""

    def __init__(self, bed: Testbed, refs: References, extractors: Extractors) -> None:
        judges = extractors.judges(bed, refs.target, len(refs.endpoints))
        self.judges = [judge.digest for judge in judges]
        self._ruler = Ruler(bed, refs, judges)
        floor, perfect = self._ruler.measure(refs.floor, paired=False), self._ruler.measure(refs.endpoints)
        kind = "network" if bed.law is None else "exact"
        shown = torch.from_numpy(to_uint8(refs.endpoints[:_SHOWN])) if bed.is_image else torch.empty(0, dtype=torch.uint8)
        how = "; ".join([refs.how, *(f"{', '.join(j.names)}: extractor {j.extractor.sha256[:16]}" for j in judges)])
        self.summary = BedSummary(bed.name, kind, bed.event_shape, how, len(refs.target), floor.values, perfect.values, shown)

    def measure(self, drawn: Drawn) -> Measures | None:
        """None where there are no samples."""
        return None if drawn.x is None else self._ruler.measure(drawn.x)


def _result(cell: Cell, key: str, drawn: Drawn, measured: Measures | None, plain: Measures | None, bed: Testbed) -> Result:
    if measured is None or drawn.x is None:
        return Result(cell, key, 0, failure=drawn.failure, seconds=drawn.seconds)
    change = changes(measured, plain) if plain and cell.correction != PLAIN else {}
    shown = torch.from_numpy(to_uint8(drawn.x[:_SHOWN])) if bed.is_image else torch.empty(0, dtype=torch.uint8)
    return Result(
        cell, key, len(drawn.x), measured.values, change, drawn.stats, drawn.trace, measured.spectrum, seconds=drawn.seconds,
        shown=shown,
    )  # fmt: skip


def _from_first(decision: Any) -> Any:
    """What the first process says: one decision for all."""
    if not processes.active():
        return decision
    box = [decision]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _check_shares(config: Config) -> None:
    """Every process needs an image of every batch."""
    world, rest = processes.world_size(), config.n % config.batch or config.batch
    if min(config.batch, config.n, rest) < world:
        raise InputError(
            f"batches of {config.batch} and a last one of {rest} for {world} processes: every one needs an image of each; "
            "choose n and batch so"
        )
