"""What `rules.Energy` does on the embedded models, against every plain solver, paired over seeds.

    python -m research.energy_rule --model digits --bands 4
    python -m research.energy_rule --model cifar10_mixture --bands 8 --samples 512
    python -m research.energy_rule --model digits --bands 4 --deficit local track --moment given
    python -m research.energy_rule --solvers dpmpp_2m --nfe 5 --moment given --eta

prints, per solver and NFE, the energy distance above that of the exact flow (± one standard error) of the plain solver and of
the rule with one η and with one per frequency band, M given or from the run's own first step, for the local deficit or the
accumulated one (`track`). A given M comes from samples of the model that serve for nothing else. In brackets: the change
against the plain solver in its standard errors. Last come the counts of cells, also of `track` against `local` where both ran;
with --eta, what the rule did at every step. Defaults of the rule, nothing tuned; seeds from --first-seed on.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from research.demo_testbed import Testbed, build
from steindiff import Corrected, grids, initial_noise, models, sample, solvers
from steindiff.analytic import ExactModel
from steindiff.corrections import Energy
from steindiff.corrections.bands import Cosine, Whole
from steindiff.corrections.energy import second_moment
from steindiff.metrics import Shares, Value
from steindiff.sampling import Record
from steindiff.solvers import Solver

SOLVERS = ("dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "deis_3", "ipndm_3", "ipndm_4", "heun")


def parser() -> argparse.ArgumentParser:
    """The command line; its defaults are those of docs/energy.md but for the numbers given there."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", choices=models.names(), default="digits")
    p.add_argument("--samples", type=int, default=512)
    p.add_argument("--first-seed", type=int, default=7000)
    p.add_argument("--bands", type=int, default=4, help="rings of the cosine bands")
    p.add_argument("--solvers", nargs="+", choices=SOLVERS, default=SOLVERS)
    p.add_argument("--nfe", type=int, nargs="+", default=[5, 6, 8, 10])
    p.add_argument("--deficit", nargs="+", choices=("local", "track"), default=["local"], help="what is made up")
    p.add_argument("--moment", nargs="+", choices=("given", "own"), default=["given", "own"], help="where M comes from")
    p.add_argument("--eta", action="store_true", help="also every step's σ, η (the mean over bands) and reason")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Print one Markdown row per solver and NFE, then the counts."""
    args = parser().parse_args(argv)
    bed = build(args.model, args.samples, args.first_seed)
    rules = variants(args, _calibration(bed, args.samples))
    print("| solver | NFE | plain | " + " | ".join(rules) + " |\n|" + "---|" * (3 + len(rules)))
    tally: defaultdict[str, Counter[str]] = defaultdict(Counter)
    etas: list[str] = []
    for name, nfe in tqdm([(s, n) for s in args.solvers for n in args.nfe], unit="cell"):
        solver, steps = solvers.make(name).for_nfe(nfe)
        plain, _ = _run(bed, solver, steps)
        cells, seen = [str(plain.minus(bed.perfect))], {}
        for variant, rule in rules.items():
            shares, trace = _run(bed, Corrected(solver, rule), steps)
            seen[variant], change = shares, shares.minus(plain)
            tally[variant][_verdict(change)] += 1
            cells.append(f"{shares.distance - bed.perfect.distance:.4f} ({change.value / max(change.se, 1e-12):+.0f})")
            etas.append(f"- {name}, NFE {nfe}, {variant}: {_etas(trace)}")
            if (local := variant.replace(", track", "")) != variant and local in seen:
                tally[f"{variant}, against local"][_verdict(shares.minus(seen[local]))] += 1
        print(f"| {name} | {nfe} | " + " | ".join(cells) + " |", flush=True)
    for variant, counts in tally.items():
        print(f"- {variant}: " + ", ".join(f"{counts[v]} {v}" for v in ("better", "within noise", "worse")))
    if args.eta:
        print("\nη by the noise level a step starts from:\n\n" + "\n".join(etas))


def variants(args: argparse.Namespace, calibration: Tensor) -> dict[str, Energy]:
    """The rules measured, by the names their columns bear; `local`, the default, goes unnamed."""
    return {
        f"{label}{', track' if deficit == 'track' else ''}, M {source}": Energy(
            second_moment(calibration, bands) if source == "given" else None, bands, deficit
        )
        for label, bands in (("one η", Whole()), ("bands", Cosine(args.bands)))
        for source in sorted(set(args.moment))
        for deficit in sorted(set(args.deficit))
    }


def _calibration(bed: Testbed, samples: int) -> Tensor:
    """Clean samples of the model from seeds that neither the runs nor their target use."""
    if isinstance(bed.model.denoiser, ExactModel):
        return bed.model.denoiser.sample(4 * samples, torch.Generator().manual_seed(77))
    noise = initial_noise(range(500_000, 500_000 + samples), bed.model.event_shape)
    return sample("unipc_3", bed.model.denoiser, noise, grids.karras(50)).x


def _run(bed: Testbed, solver: Solver, steps: int) -> tuple[Shares, tuple[Record, ...]]:
    result = sample(solver, bed.model.denoiser, bed.noise, grids.karras(steps))
    return bed.energy.shares(result.x), result.trace


def _etas(trace: Sequence[Record]) -> str:
    means = [step.numbers["eta"] for step in trace]
    return ", ".join(f"{r.sigma:.3g} → {sum(eta) / len(eta):.2f} {r.reason}" for r, eta in zip(trace, means, strict=True))


def _verdict(change: Value) -> str:
    if abs(change.value) <= 2 * change.se:
        return "within noise"
    return "better" if change.value < 0 else "worse"


if __name__ == "__main__":
    main()
