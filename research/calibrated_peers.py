"""Calibrated tables against published methods that calibrate: the same noises, the same network, other noises for the score.

    python -m research.calibrated_peers --bed digits --nfe 4 6 8 --out outputs/peers
    python -m research.calibrated_peers --bed digits --nfe 4 --peers olss gits --out outputs/peers
    python -m research.calibrated_peers --out outputs/peers --page docs/results/study_calibrated/peers.md

Every peer gets the same fine runs; iterations get as many evaluations as our own calibration has spent. A row is one small
file per testbed, NFE and peer; the page shows all rows of the folder, whoever made them. A peer whose row is there
is not run again. Energy distance and endpoint RMSE are those of `steindiff bench`, on seeds that no calibration has.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from recipes.command import command, need
from recipes.pages import rewrite

from research.calibration_variants import flows
from steindiff.calibration import Trajectories
from steindiff.calibration.gate import alternatives
from steindiff.calibration.keeping import FIRST_SEED
from steindiff.calibration.peers import PEERS, Made, Task
from steindiff.errors import SteindiffError
from steindiff.io.files import write_json
from steindiff.metrics import Value
from steindiff.report.blocks import Heading, Table, Text
from steindiff.report.markdown import markdown
from steindiff.report.numbers import MARKS, NONE, show
from steindiff.solvers import Solver, Tabulated
from steindiff.study.calibrating import calibrate_bed
from steindiff.study.draw import draw
from steindiff.study.measure import Ruler, references
from steindiff.study.testbed import Testbed, make

OURS, UNIVERSAL, PLAIN, DOUBLED = "calibrated", "universal", "best_plain", "best_plain_2n"
BASES = {
    "ddim": "ddim on karras",
    "ipndm_4": "ipndm_4 on karras",
    "dpmpp_3m": "dpmpp_3m on log_snr",
    "unipc_3": "unipc_3 on log_snr",
}
"""What peers claim to be better than: OLSS, OSS and PAS than DDIM, GITS than iPNDM, DPM-Solver-v3 than DPM-Solver++ and UniPC,
DC-Solver than UniPC, BNS than the best plain solver."""
ROWS = (OURS, UNIVERSAL, PLAIN, DOUBLED, *BASES, *PEERS)
METRICS = ("energy", "endpoint")
LIKELY = 4
"""How many plain solvers are scored on all images, after all of them were on a quarter."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    bed: Annotated[str | None, "a testbed; none where only the page is wanted"] = None
    nfe: Annotated[tuple[int, ...], "network evaluations of a run"] = (4, 6, 8)
    peers: Annotated[tuple[str, ...], f"rows, of {', '.join(ROWS)}"] = ROWS
    trajectories: Annotated[int, "noises of the calibration", 16] = 64
    seed: Annotated[int, "seed of the first noise of the calibration", 0] = FIRST_SEED
    images: Annotated[int, "images of the score", 8] = 128
    scored: Annotated[int, "seed of the first of them", 0] = 70_000
    out: Annotated[Path, "the folder of the rows"] = Path("outputs/peers")
    page: Annotated[Path | None, "a page whose block `every run` gets all rows"] = None
    into: Annotated[Path | None, "a page whose block `peers` gets the ratios"] = None


@dataclass(frozen=True, eq=False)
class Judge:
    """What scores a solver: images of the reported seeds, against the exact flow of the same noise and samples of the law."""

    bed: Testbed
    seeds: range
    ruler: Ruler

    @classmethod
    def of(cls, o: Options, bed: Testbed) -> "Judge":
        """The judge of the command line; its references are kept in the folder."""
        seeds = range(o.scored, o.scored + o.images)
        return cls(bed, seeds, Ruler(bed, references(bed, seeds, o.out), metrics=METRICS))

    def values(self, solver: Solver, levels: Sequence[float]) -> dict[str, Any]:
        """Both metrics, and what the run cost; nothing but the failure where it has none."""
        run = draw(solver, self.bed, torch.tensor(levels, dtype=torch.float64), self.seeds)
        if run.x is None:
            return {"failure": run.failure}
        return {
            **{name: tuple(value) for name, value in self.ruler.measure(run.x).values.items()},
            "evaluations": run.stats["nfe"],
        }

    def first(self, tables: Mapping[str, Tabulated]) -> dict[str, Any]:
        """The values of the table that ends nearest, with its name; all are tried on the first quarter of the images."""
        part = self.seeds[: max(8, len(self.seeds) // 4)]
        ends = self.ruler.references.endpoints[: len(part)]
        runs = {name: draw(table, self.bed, table.own_grid, part).x for name, table in tables.items()}
        misses = {name: math.inf if x is None else float((x - ends).square().mean()) for name, x in runs.items()}
        likely = sorted(misses, key=lambda name: misses[name])[:LIKELY]
        found = [{"name": name, **self.values(tables[name], tables[name].levels)} for name in likely]
        return min(found, key=lambda row: row["endpoint"][0] if "endpoint" in row else math.inf)


def row(o: Options, bed: Testbed, nfe: int, name: str, law: Trajectories, judge: Judge) -> dict[str, Any]:
    """What is known of a row: its values, and what the calibration has cost beside the fine runs."""
    if name not in (OURS, *PEERS):
        tables = alternatives((1 + (name == DOUBLED)) * nfe, bed.setting)
        plain = {label: table for label, table in tables.items() if label != UNIVERSAL}
        label = BASES.get(name, name)
        return {**judge.first({label: tables[label]} if label in tables else plain), "images": 0, "seconds": 0.0}
    work = o.out / "work" / f"{bed.name}-{o.trajectories}-{o.seed}"
    (table,) = calibrate_bed(bed, [nfe], o.trajectories, first_seed=o.seed, work=work)  # once in the folder
    made, images, seconds = Made.table(table.solver), table.report["cost"]["evaluated_images"], table.report["seconds"]
    if name != OURS:
        task, began = Task.of(law, nfe, bed.setting, max(1, int(images)), folder=work), time.perf_counter()
        made, images = PEERS[name](task), task.bill.images
        seconds = round(time.perf_counter() - began, 1)
    return {**judge.values(*made), "images": images, "seconds": seconds, "levels": made.levels}


def calibrated(o: Options, bed: Testbed) -> None:
    """Make the rows of a testbed that are not there."""
    wanted = [(nfe, name, o.out / bed.name / str(nfe) / f"{name}.json") for nfe in o.nfe for name in o.peers]
    missing = [(nfe, name, path) for nfe, name, path in wanted if not path.exists()]
    if not missing:
        return
    judge, law = Judge.of(o, bed), flows(bed, range(o.seed, o.seed + o.trajectories))
    fine = {"images": len(law.levels) * len(law.noise)}
    for nfe, name, path in missing:
        try:
            found = row(o, bed, nfe, name, law, judge)
        except SteindiffError as error:
            found = {"failure": str(error)}
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"bed": bed.name, "nfe": nfe, "peer": name, "trajectories": o.trajectories, "seed": o.seed}
        write_json(path, {**about, "scored": [o.scored, o.images], "fine": fine, **found})
        print(f"{bed.name} {nfe} {name}: {found.get('endpoint', found.get('failure'))}", flush=True)


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a folder, in the order of testbeds, NFE, ours, the plain ones, and peers."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/*/*.json")]
    return sorted(found, key=lambda one: (one["bed"], one["nfe"], *_place(one)))


def _place(one: Mapping[str, Any]) -> tuple[int, str]:
    """Where a row stands among the others."""
    return ROWS.index(one["peer"]) if one["peer"] in ROWS else len(ROWS), str(one["peer"])


def blocks(found: Sequence[Mapping[str, Any]]) -> Iterator[Heading | Text | Table]:
    """A section for each testbed: how many times as large each error is as ours, then a line for each run."""
    for bed in dict.fromkeys(str(one["bed"]) for one in found):
        mine = [one for one in found if one["bed"] == bed]
        fine, counts = mine[0]["fine"], sorted({one["trajectories"] for one in mine})
        yield Heading(bed)
        yield _summary(mine)
        yield Text(
            f"Every run. The fine runs of {' or '.join(map(str, counts))} noises, which all rows with a cost share, are "
            f"{fine['images']:,} images; the images and seconds of a row are beside them."
        )
        head = ("NFE", "row", "endpoint RMSE", "energy distance", "images", "seconds")
        yield Table(head, tuple(map(_line, mine)))


def _summary(mine: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each row, a column for each NFE."""
    counts = sorted({int(one["nfe"]) for one in mine})
    ends = {(one["peer"], one["nfe"]): Value(*one["endpoint"]) for one in mine if "endpoint" in one}
    names = dict.fromkeys(one["peer"] for one in sorted(mine, key=_place))

    def entry(name: str, nfe: int) -> str:
        value, own = ends.get((name, nfe)), ends.get((OURS, nfe))
        known = name != OURS and value is not None and own is not None
        return f"{value.value:.4f}: {_times(value, own)}" if known else show(value)

    lines = ((name, *(entry(name, nfe) for nfe in counts)) for name in names)
    return Table(("endpoint RMSE", *(f"N = {nfe}" for nfe in counts)), tuple(lines))


def _times(value: Value, own: Value) -> str:
    """How many times as large as ours an error is, and whether that is beyond two standard errors."""
    apart = (value.value - own.value) / math.hypot(value.se, own.se)
    mark = MARKS["win" if apart > 2 else "loss" if apart < -2 else "noise"]
    return f"{value.value / own.value:.3g}× {mark}"


def ratios(found: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> Table:
    """A line for each row, a column for each testbed with these numbers of evaluations one after another."""
    ends = {(one["bed"], one["peer"], one["nfe"]): Value(*one["endpoint"]) for one in found if "endpoint" in one}
    beds = [bed for bed in dict.fromkeys(bed for bed, *_ in ends) if any((bed, OURS, n) in ends for n in counts)]
    names = [name for name in dict.fromkeys(one["peer"] for one in sorted(found, key=_place)) if name != OURS]

    def entry(bed: str, name: str, nfe: int) -> str:
        value, own = ends.get((bed, name, nfe)), ends.get((bed, OURS, nfe))
        return NONE if value is None or own is None else _times(value, own)

    own = (OURS, *(" / ".join(f"{ends[bed, OURS, n].value:.4f}" for n in counts if (bed, OURS, n) in ends) for bed in beds))
    lines = [(name, *(" / ".join(entry(bed, name, n) for n in counts) for bed in beds)) for name in names]
    return Table(("", *beds), (own, *lines))


def _line(one: Mapping[str, Any]) -> tuple[str, ...]:
    name = one["peer"] + (f": {one['name']}" if one["peer"] in (PLAIN, DOUBLED) and "name" in one else "")
    if "endpoint" not in one:
        return str(one["nfe"]), name, "failed", "–", "–", "–"
    cost = (f"{one['images']:,}", f"{one['seconds']:g}") if one["images"] else ("–", "–")
    return str(one["nfe"]), name, *(show(Value(*one[metric])) for metric in ("endpoint", "energy")), *cost


@command
def main(o: Options) -> None:
    """Calibrate, score and show."""
    need(set(o.peers) <= set(ROWS), f"choose of {', '.join(ROWS)}", peers=" ".join(o.peers))
    if o.bed is not None:
        calibrated(o, make(o.bed))
    found = rows(o.out)
    if o.page is None:
        print(markdown(blocks([one for one in found if one["bed"] == o.bed])))
    else:
        rewrite(o.page, "every run", markdown(blocks(found)))
    if o.into is not None:
        rewrite(o.into, "peers", markdown([ratios(found, o.nfe)]))
