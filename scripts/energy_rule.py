"""What `rules.Energy` does on the embedded models, against every plain solver, paired over seeds.

    python scripts/energy_rule.py --model digits --bands 4
    python scripts/energy_rule.py --model cifar10_mixture --bands 8 --samples 512

prints, per solver and NFE, the energy distance above that of the exact flow (± one standard error) of the plain solver and of
the rule with one η and with one per frequency band, M given or from the run's own first step. A given M comes from samples of
the model that serve for nothing else. In brackets: the change against the plain solver in its standard errors. Defaults of the
rule, nothing tuned; seeds from --first-seed on.
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from torch import Tensor
from tqdm.auto import tqdm

from steindiff import Corrected, grids, initial_noise, models, sample, solvers
from steindiff.analytic import ExactModel
from steindiff.bands import Cosine, Whole
from steindiff.demo.testbed import Testbed, build
from steindiff.matching import second_moment
from steindiff.metrics import Shares
from steindiff.rules import Energy
from steindiff.solvers import Solver

SOLVERS = ("dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "deis_3", "ipndm_3", "ipndm_4", "heun")


def main() -> None:
    """Print one Markdown row per solver and NFE, then the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=models.names(), default="digits")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--first-seed", type=int, default=7000)
    parser.add_argument("--bands", type=int, default=4, help="rings of the cosine bands")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 6, 8, 10])
    args = parser.parse_args()
    bed = build(args.model, args.samples, args.first_seed)
    calibration = _calibration(bed, args.samples)
    variants = {
        f"{label}, M {source}": (bands, source == "given")
        for label, bands in (("one η", Whole()), ("bands", Cosine(args.bands)))
        for source in ("given", "own")
    }
    print("| solver | NFE | plain | " + " | ".join(variants) + " |\n|" + "---|" * (3 + len(variants)))
    tally: dict[str, Counter[str]] = {name: Counter() for name in variants}
    for name, nfe in tqdm([(s, n) for s in SOLVERS for n in args.nfe], unit="cell"):
        solver, steps = solvers.for_nfe(solvers.make(name), nfe)
        plain = _run(bed, solver, steps)
        cells = [str(plain.minus(bed.perfect))]
        for variant, (bands, given) in variants.items():
            shares = _run(bed, Corrected(solver, Energy(second_moment(calibration, bands) if given else None, bands)), steps)
            change = shares.minus(plain)
            tally[variant][_verdict(change.value, change.se)] += 1
            cells.append(f"{shares.distance - bed.perfect.distance:.4f} ({change.value / max(change.se, 1e-12):+.0f})")
        print(f"| {name} | {nfe} | " + " | ".join(cells) + " |", flush=True)
    for variant, counts in tally.items():
        print(f"- {variant}: " + ", ".join(f"{counts[v]} {v}" for v in ("better", "within noise", "worse")))


def _calibration(bed: Testbed, samples: int) -> Tensor:
    """Clean samples of the model from seeds that neither the runs nor their target use."""
    if isinstance(bed.model.denoiser, ExactModel):
        return bed.model.denoiser.sample(4 * samples, torch.Generator().manual_seed(77))
    noise = initial_noise(range(500_000, 500_000 + samples), bed.model.event_shape)
    return sample("unipc_3", bed.model.denoiser, noise, grids.karras(50)).x


def _run(bed: Testbed, solver: Solver, steps: int) -> Shares:
    return bed.energy.shares(sample(solver, bed.model.denoiser, bed.noise, grids.karras(steps)).x)


def _verdict(change: float, se: float) -> str:
    if abs(change) <= 2 * se:
        return "within noise"
    return "better" if change < 0 else "worse"


if __name__ == "__main__":
    main()
