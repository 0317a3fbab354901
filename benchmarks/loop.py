"""What a step costs beyond the network: every solver beside a loop by hand, and beside diffusers' scheduler of the method.

    python -m benchmarks.loop
    python -m benchmarks.loop --page docs/benchmarks.md

The network is D = x/2, one pass over the data that every loop pays alike, so that a ratio of one is a ratio of one without it.
What is timed is all of a run: `steindiff.sample` from the state to the result, with its checks, its trace and its cost. A
diffusers scheduler makes its timesteps in the run. All take turns in one process, run by run. A ratio is of neighbouring runs,
and a time is divided by the evaluations of its run. On a CPU it is processor time, which others disturb least. Where a process
has its memory decides some ratios by a third: the turns of several processes, one after the other, are put together. The rules
stand beside one forward of a network of ten million parameters, over the same batch. The command writes report.md and
results.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from recipes.command import command
from torch import Tensor
from tqdm import tqdm

from benchmarks import theirs
from benchmarks.by_hand import LOOPS, Loop, after_a_free_step, dpm_v3, dpmpp_2m, plain, table
from benchmarks.results import keep
from benchmarks.timing import Quartiles, ratio, turns
from steindiff import Corrected, grids, rules, sample, solvers
from steindiff.models.networks.unet import UNet, UNetConfig
from steindiff.report.blocks import Block, Table, Text
from steindiff.solvers import Calibrated, Solver, Tabulated
from steindiff.solvers.dpm_v3 import DPMSolverV3, Statistics
from steindiff.solvers.free import Free, FreeRun

SIZES = {
    "1 kB": (1, 4, 8, 8),
    "200 kB": (16, 3, 32, 32),
    "1 MB": (16, 4, 64, 64),
    "3 MB": (256, 3, 32, 32),
    "16 MB": (256, 4, 64, 64),
}
TURN = 0.01
"""Seconds of a turn, at least: runs on small states are repeated in it."""
RULES = ("tweedie", "clamped(mode=tweedie)", "energy", "energy_bands")
"""Without a derivative at the steps that are timed; energy's moments are given."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "a folder for the results"] = Path("outputs/benchmarks/loop")
    page: Annotated[Path | None, "a page between whose marks the tables go too"] = None
    solvers: Annotated[tuple[str, ...], "which solvers, tables included; all: every one"] = ("all",)
    sizes: Annotated[tuple[str, ...], "sizes of the state, float32"] = tuple(SIZES)
    rounds: Annotated[int, "runs of each loop at the smallest size in a process, in turns; larger states take fewer", 3] = 13
    processes: Annotated[int, "new processes, one after the other", 1] = 3
    steps: Annotated[int, "steps of a run on a small state; large ones take 6", 4] = 20
    device: Annotated[str, "where the states lie"] = "cpu"


Turns = dict[str, list[float]]
"""By the loop, ours, hand or theirs: µs an evaluation, turn by turn."""


class Row(NamedTuple):
    """One solver on states of one size; times are µs an evaluation, that of D = x/2 included."""

    solver: str
    size: str
    ours: Quartiles
    by_hand: Quartiles
    theirs: Quartiles | None
    """Diffusers' scheduler; None where there is none."""
    over_faster: Quartiles
    """The ratio of ours to the faster of the two, turn by turn."""

    @classmethod
    def of(cls, solver: str, size: str, each: Turns) -> Row:
        """All turns of a solver."""
        spread = {name: Quartiles.of(taken) for name, taken in each.items()}
        faster = min((name for name in each if name != "ours"), key=lambda name: spread[name].median)
        return cls(solver, size, spread["ours"], spread["hand"], spread.get("theirs"), ratio(each, "ours", faster))


class Half:
    """D = x/2, counted."""

    calls = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The value."""
        self.calls += 1
        return x * 0.5


def cases(event: tuple[int, ...]) -> dict[str, tuple[Solver, Loop]]:
    """Every solver for events of this shape, with its loop by hand."""
    found = {name: (plain(name), loop) for name, loop in LOOPS.items()}
    universal, _ = solvers.make("universal").plan(8)
    for name, solver in (("universal", universal), ("calibrated", _calibrated())):
        assert isinstance(solver, Tabulated)
        found[name] = (solver, table(solver))
    free, _ = Free(solver=plain("dpmpp_2m")).plan(8)
    v3 = with_statistics(event)
    assert isinstance(free, FreeRun)
    found["free"] = (free, after_a_free_step(free.a, dpmpp_2m))
    found["dpm_v3"] = (v3, dpm_v3(v3))
    return found


def with_statistics(event: tuple[int, ...]) -> DPMSolverV3:
    """DPM-Solver-v3 as the loop by hand has it, with statistics between those of data and of noise prediction."""
    statistics = Statistics.constant(0.6, -0.3, 0.1, tuple(grids.karras(30).tolist()), event)
    return DPMSolverV3(statistics, pseudo=False, corrector="off", lower_order_final=False)


def _calibrated() -> Solver:
    """A shipped table of eight evaluations or fewer, for any network."""
    path = Path(solvers.calibrated.SHIPPED) / "cifar10.safetensors"
    made, _ = Calibrated(str(path), "network+event+guidance").for_nfe(8)
    return made


def measure(solver: Solver, loop: Loop, scheduler: Loop | None, size: str, o: Options) -> Turns:
    """The turns of one solver in this process."""
    x = 80.0 * torch.randn(SIZES[size], generator=torch.Generator().manual_seed(0)).to(o.device)
    small = x.numel() <= 1 << 18
    steps, rounds = (o.steps if small else 6), (o.rounds if x.numel() <= 1 << 14 else max(3, o.rounds // (2 if small else 6)))
    sigmas = (grids.karras(steps) if solver.own_grid is None else solver.own_grid).to(x.device)
    short, half = sigmas.float(), Half()
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: sample(solver, half, x, sigmas),
        "hand": lambda: loop(half, x, short),
    }
    if scheduler is not None:
        runs["theirs"] = lambda: scheduler(half, x, short)
    with torch.no_grad():
        calls = {key: _calls(run, half) for key, run in runs.items()}
        times = turns(runs, rounds, x.device, TURN)
    return {key: [1e6 * t / calls[key] for t in taken] for key, taken in times.items()}


def of_a_process(o: Options) -> dict[tuple[str, str], Turns]:
    """By solver and size, with one thread."""
    torch.set_num_threads(1)
    found, schedulers = dict[tuple[str, str], Turns](), theirs.loops()
    for size in o.sizes:
        known = cases(SIZES[size][1:])
        names = known if o.solvers == ("all",) else o.solvers
        found |= {(name, size): measure(*known[name], schedulers.get(name), size, o) for name in names}
    return found


def of_processes(o: Options) -> list[Row]:
    """The turns of all processes together."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        taken = list(tqdm(pool.imap(of_a_process, [o] * o.processes), total=o.processes, unit="process"))
    together = {key: {loop: [t for found in taken for t in found[key][loop]] for loop in taken[0][key]} for key in taken[0]}
    return [Row.of(*key, each) for key, each in together.items()]


def _calls(run: Callable[[], object], half: Half) -> int:
    before = half.calls
    run()
    return half.calls - before


def of_rules(o: Options) -> list[tuple[str, float, float]]:
    """Each rule's ms a step beyond the plain solver's, on 16 images, and as a share of a forward of 10 million parameters."""
    x = 80.0 * torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(o.device)
    network = UNet(UNetConfig(image_channels=3, channels=104)).to(o.device).eval()
    label = torch.zeros(16, device=o.device)
    half, sigmas = Half(), grids.karras(10).to(o.device)
    made = {name: Corrected("dpmpp_2m", _given(name, x), frame="ve") for name in RULES}
    runs: dict[str, Callable[[], object]] = {"plain": partial(sample, solvers.make("dpmpp_2m"), half, x, sigmas)}
    runs |= {name: partial(sample, solver, half, x, sigmas) for name, solver in made.items()}
    with torch.no_grad():
        times = turns(runs, o.rounds, x.device, TURN)
        forward = turns({"network": lambda: network(x, label)}, 3, x.device)["network"]
    step, plain_ = Quartiles.of(forward).median, Quartiles.of(times["plain"]).median
    found = {name: (Quartiles.of(times[name]).median - plain_) / 10 for name in RULES}
    return [(name, 1e3 * extra, extra / step) for name, extra in found.items()]


def _quick(value: Quartiles | None) -> str:
    return "–" if value is None else f"{value.median:.1f}"


def shown(rows: Sequence[Row], of_rule: Sequence[tuple[str, float, float]]) -> list[Block]:
    """The two tables."""
    columns = ("solver", "state", "ours, µs", "by hand, µs", "diffusers, µs", "ours / the faster: median (quartiles)")
    lines = [(r.solver, r.size, _quick(r.ours), _quick(r.by_hand), _quick(r.theirs), str(r.over_faster)) for r in rows]
    blocks: list[Block] = [Table(columns, tuple(lines))]
    if of_rule:
        shares = tuple((name, f"{extra:.2f}", f"{100 * share:.2f} %") for name, extra, share in of_rule)
        blocks.append(Table(("rule", "ms a step beyond the solver's", "of a forward of the network"), shares))
    return blocks


def _given(name: str, x: Tensor) -> rules.Correction:
    rule = rules.make(name)
    assert rule is not None
    return rule.given(x) if not isinstance(rule, rules.Energy) else rules.Energy("target", rule.bands).given(x / 80)


@command
def main(o: Options) -> None:
    """Measure, write, print the tables."""
    rows = of_processes(o)
    of_rule = of_rules(o) if o.solvers == ("all",) else []
    said = f"torch {torch.__version__}, {o.device}, one thread, float32, {o.processes} processes of {o.rounds} rounds at most."
    found = {"rows": [row._asdict() for row in rows], "rules": of_rule}
    keep(o.outdir, "Loop", [Text(said), *shown(rows, of_rule)], o, found)
