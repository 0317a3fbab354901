"""What a corrected step costs beside the evaluations and products that it is made of.

    python -m benchmarks.derivatives --outdir outputs/derivatives
    python -m benchmarks.derivatives --models cifar10 --batch 8 --rounds 31

The first table times a DDIM step under `clamped` with one Hutchinson probe. It stands beside a forward and one vector-Jacobian
product written by hand, which is all that the step needs. A step whose products are of an eighth of the batch stands beside a
plain forward. All take turns in one process; a ratio is of neighbouring turns. The command
writes report.md and results.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import torch
from recipes.command import command
from torch import Tensor

from benchmarks.results import keep
from benchmarks.timing import Quartiles, ratio, turns
from steindiff import Corrected, models, sample
from steindiff.denoisers import Denoiser, declare
from steindiff.divergence import Choice, Hutchinson
from steindiff.models.networks.unet import UNet, UNetConfig
from steindiff.noise import initial_noise
from steindiff.report.blocks import Block, Table, Text
from steindiff.rules import CleanTarget
from steindiff.schedules import VE

LEVELS = (2.0, 1.2, 0.7, 0.4)
TEN_MILLION = "unet-10m"
"""A UNet of ten million parameters that nobody has trained, on images of 32 × 32."""
PART = 8
"""One image of so many gets products, where a part of the batch does."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    outdir: Annotated[Path, "a folder for the results"] = Path("outputs/benchmarks/derivatives")
    page: Annotated[Path | None, "a page between whose marks the tables go too"] = None
    models: Annotated[tuple[str, ...], f"shipped networks, model files, or {TEN_MILLION}"] = ("digits", "cifar10", TEN_MILLION)
    batch: Annotated[tuple[int, ...], "images of a run", 1] = (8, 16)
    rounds: Annotated[int, "turns of every loop", 1] = 11
    device: Annotated[str, "where the network computes"] = "cpu"


@dataclass(frozen=True)
class Row:
    """The ratios of one network and batch."""

    model: str
    batch: int
    whole: Quartiles
    """A corrected step with one probe of every image, over a forward and one product by hand."""
    part: Quartiles
    """A corrected step with one probe of an eighth of the batch, over a forward."""


def network(name: str, device: str) -> tuple[str, Denoiser, tuple[int, ...]]:
    """A network by its name, as a denoiser of events of a shape."""
    if name != TEN_MILLION:
        model = models.load(name, device=device)
        return model.name, model.denoiser, model.event_shape
    unet = UNet(UNetConfig(image_channels=3, channels=104)).to(device).eval().requires_grad_(False)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return cast(Tensor, unet(x, sigma.to(x).log().expand(len(x)) / 4))

    return name, declare(denoiser, schedule=VE()), (3, 32, 32)


def by_hand(denoiser: Denoiser, x: Tensor) -> None:
    """A forward and one vector-Jacobian product at each level, and the DDIM step."""
    v = torch.ones_like(x)
    for sigma, following in zip(map(x.new_tensor, LEVELS), LEVELS[1:], strict=False):
        z = x.detach().requires_grad_()
        denoised = denoiser(z, sigma)
        (product,) = torch.autograd.grad(denoised, z, v)
        (product * v).flatten(1).sum(1).mean()
        x = torch.lerp(denoised.detach(), x, following / sigma)


def plain(denoiser: Denoiser, x: Tensor) -> None:
    """A forward at each level, and the DDIM step."""
    with torch.no_grad():
        for sigma, following in zip(map(x.new_tensor, LEVELS), LEVELS[1:], strict=False):
            x = torch.lerp(denoiser(x, sigma), x, following / sigma)


def corrected(samples: int | None) -> Callable[[Denoiser, Tensor], None]:
    """DDIM under γ ≤ 1 with one probe by VJP, for some of the images or all."""
    probe = Hutchinson(1, method="vjp", choice=Choice("vjp", {"vjp": 1.0}, {}), samples=samples)
    solver = Corrected("ddim", CleanTarget.clamped(), divergence=probe)

    def run(denoiser: Denoiser, x: Tensor) -> None:
        sample(solver, denoiser, x, x.new_tensor(LEVELS))

    return run


def measure(name: str, denoiser: Denoiser, x: Tensor, rounds: int) -> Row:
    """Both ratios, in turns."""
    loops = {"by hand": by_hand, "plain": plain, "whole": corrected(None), "part": corrected(max(1, len(x) // PART))}
    times = turns({label: partial(loop, denoiser, x) for label, loop in loops.items()}, rounds, x.device)
    return Row(name, len(x), ratio(times, "whole", "by hand"), ratio(times, "part", "plain"))


def table(rows: list[Row]) -> list[Block]:
    """The page."""
    columns = ("network", "batch", "one probe / (forward + VJP)", f"one probe of 1/{PART} of the batch / forward")
    lines = tuple((row.model, str(row.batch), str(row.whole), str(row.part)) for row in rows)
    return [
        Text("Time of a corrected step over what it is made of: medians and quartiles of neighbouring turns."),
        Table(columns, lines),
    ]


@command
def main(o: Options) -> None:
    """Measure, write, print the table."""
    rows = list[Row]()
    for name in o.models:
        label, denoiser, event = network(name, o.device)
        for batch in o.batch:
            x = initial_noise(range(batch), event, LEVELS[0], device=o.device)
            rows.append(measure(label, denoiser, x, o.rounds))
    keep(o.outdir, "Derivatives", table(rows), o, [asdict(row) for row in rows])
