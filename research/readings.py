"""What the readings of the paper's rules do to a run, on a Gaussian whose flow is known in closed form.

    python -m research.readings
    python -m research.readings --samples 32 --steps 5 10

The law has 64 dimensions, mean zero and variances 1/i; its root mean square is 0.27. The levels are EDM's, 80 to 0.002. The
command prints four tables: what each mode does without an upper bound, where the iteration of Boţ & Nguyen tends to, what
self-consistency costs and how its weight ω falls, and how it gets on with each proposal. ± is one standard error over images.
"""

import math
from statistics import median
from typing import Annotated

import torch
from recipes.command import command
from torch import Tensor

from steindiff import corrections, grids, initial_noise, sample
from steindiff.analytic import Gaussian
from steindiff.grids import SIGMA_MAX, SIGMA_MIN
from steindiff.metrics import endpoint_rmse
from steindiff.report.blocks import Block, Table, Text
from steindiff.report.markdown import markdown
from steindiff.report.numbers import NONE, show
from steindiff.sampling import Record

VARIANCES = 1 / torch.arange(1, 65, dtype=torch.float64)
LAW = Gaussian(torch.zeros(64, dtype=torch.float64), VARIANCES.diag())
SOLVERS = ("ddim", "dpmpp_2m")
MODES = ("literal", "literal(history=frozen)", "adaptive", "analytical", "tweedie")
WEIGHTS = {"ω": "eta=1.0", "½ ω": "eta=0.5", "ω, jump from x^S": "eta=1.0, look_ahead=proposal"}
PROPOSALS = ("none", "clamped(mode=tweedie)", "clamped", "clamped(history=frozen)", "literal")


def run(solver: str, rule: str, x: Tensor, n: int) -> tuple[Tensor, tuple[Record, ...]]:
    """End points and trace."""
    result = sample(corrections.apply(rule, solver), LAW, x, grids.karras(n))
    return result.x, result.trace


def exact(x: Tensor) -> Tensor:
    """Where the flow of the law takes the same noise."""
    return x * ((VARIANCES + SIGMA_MIN**2) / (VARIANCES + SIGMA_MAX**2)).sqrt()


def modes(x: Tensor, n: int) -> list[Block]:
    """The error of every mode as printed, and the root mean square of what it makes."""
    solvers, zero = ("ddim", "heun", "dpmpp_2m", "dpmpp_3m", "unipc_2", "ipndm_3"), torch.zeros_like(x)
    rows = list[tuple[str, ...]]()
    for rule in ("none", *MODES):
        ends = [run(solver, rule, x, n)[0] for solver in solvers]
        rows.append(
            (rule, *(f"{endpoint_rmse(end, exact(x)).value:.3g} ({endpoint_rmse(end, zero).value:.3g})" for end in ends))
        )
    text = f"No upper bound, {n} steps: RMSE to the exact flow's end points, and in brackets the end points' root mean square."
    return [Text(text), Table(("rule", *solvers), tuple(rows))]


def limits(x: Tensor, steps: tuple[int, ...]) -> list[Block]:
    """The root mean square of what the iteration of Boţ & Nguyen makes."""
    zero = torch.zeros_like(x)
    rows = [(f"{n}", *(show(endpoint_rmse(run(s, "bot_nguyen", x, n)[0], zero)) for s in SOLVERS)) for n in steps]
    right = ("exact flow", *(show(endpoint_rmse(exact(x), zero)) for _ in SOLVERS))
    return [Text("Boţ and Nguyen: root mean square of the end points."), Table(("steps", *SOLVERS), (*rows, right))]


def errors(x: Tensor, steps: tuple[int, ...]) -> list[Block]:
    """What self-consistency makes of 2M, by the weight, and how large ω is: in the first step, and how often it is 1."""
    found: dict[str, list[float]] = {name: [] for name in ("plain", *WEIGHTS)}
    rows = list[tuple[str, ...]]()
    for n in steps:
        rules = {"plain": "none", **{name: f"self_consistent({options}, proposal=none)" for name, options in WEIGHTS.items()}}
        runs = {name: run("dpmpp_2m", rule, x, n) for name, rule in rules.items()}
        ends = {name: endpoint_rmse(final, exact(x)) for name, (final, _) in runs.items()}
        for name, end in ends.items():
            found[name].append(end.value)
        weights = [r.numbers["weight"] for r in runs["ω"][1] if "weight" in r.numbers]
        medians = [median(w) if isinstance(w, tuple) else w for w in weights]
        shares = (f"{medians[0]:.3f}", f"{medians[-1]:.3f}", f"{sum(w >= 0.999 for w in medians)} of {len(medians)}")
        rows.append((f"{n}", *map(show, ends.values()), *shares))
    orders = [f"{math.log(a[-2] / a[-1]) / math.log(steps[-1] / steps[-2]):.2f}" for a in found.values() if len(a) > 1]
    rows += [("order of the last two", *orders, NONE, NONE, NONE)] if orders else []
    columns = ("steps", "2M, plain", *WEIGHTS, "ω of the first step", "of the last", "ω ≥ 0.999")
    return [Text("Self-consistency on 2M, proposal plain: RMSE to the exact flow's end points, and the median ω of an image."),
            Table(columns, tuple(rows))]  # fmt: skip


def proposals(x: Tensor, n: int) -> list[Block]:
    """The error under each proposal, and the largest σ̂/σ that its trace saw."""
    rows = list[tuple[str, ...]]()
    for proposal in PROPOSALS:
        entries = list[str]()
        for solver in SOLVERS:
            final, trace = run(solver, f"self_consistent(eta=0.5, proposal={proposal})", x, n)
            ratios = [r.noise_ratio for r in trace if math.isfinite(r.noise_ratio)]
            entries += [show(endpoint_rmse(final, exact(x))), f"{max(ratios):.3g}" if ratios else NONE]
        rows.append((proposal, *entries))
    plain = [entry for s in SOLVERS for entry in (show(endpoint_rmse(run(s, "none", x, n)[0], exact(x))), NONE)]
    columns = ("proposal", *(title for s in SOLVERS for title in (f"{s}: RMSE", "largest σ̂/σ")))
    text = f"Self-consistency (½ ω) at {n} steps by its proposal."
    return [Text(text), Table(columns, (("no self-consistency", *plain), *rows))]


@command
def main(
    samples: Annotated[int, "images", 2] = 128,
    seed: Annotated[int, "seed of the first image", 0] = 0,
    steps: Annotated[tuple[int, ...], "numbers of steps"] = (5, 10, 20, 40, 80, 160),
) -> None:
    """Print the four tables."""
    x = initial_noise(range(seed, seed + samples), (64,), dtype=torch.float64)
    steps = tuple(sorted(steps))
    print(markdown([*modes(x, steps[len(steps) // 3]), *limits(x, steps), *errors(x, steps), *proposals(x, steps[0])]), end="")
