"""What `steindiff doctor` sees where a network is misread: one that predicts noise, with a right and three wrong adapters.

python -m research.misread
"""

from typing import Annotated

from recipes.command import command, print_table

from research.theory.core import predicting_noise
from steindiff import models
from steindiff.denoisers import FromEps, FromV, FromX0
from steindiff.diagnostics.doctor import examine
from steindiff.schedules import DiscreteBetas
from steindiff.solvers import Setting

SIGMA_MAX, SIGMA_MIN = 80.0, 0.02


@command
def main(
    model: Annotated[str, "the shipped network"] = "digits",
    images: Annotated[int, "images that are drawn", 2] = 16,
) -> None:
    """Print the table."""
    loaded, schedule = models.load(model), DiscreteBetas.linear()
    network = predicting_noise(loaded.denoiser, schedule)
    read = {
        "`FromEps`, the right schedule": FromEps(network, schedule),
        "`FromEps`, Stable Diffusion's schedule": FromEps(network, DiscreteBetas.scaled_linear()),
        "`FromV`": FromV(network, schedule),
        "`FromX0`": FromX0(network, schedule),
    }
    settings = {name: Setting.of(each, SIGMA_MAX, SIGMA_MIN, event=loaded.event_shape) for name, each in read.items()}
    found = {name: examine(each, settings[name], nfe=(), images=images) for name, each in read.items()}
    levels, *_ = (", ".join(f"{level.sigma:.2g}" for level in one.levels) for one in found.values())
    ratios = {name: ", ".join(f"{level.ratio:.3f}" for level in one.levels) for name, one in found.items()}
    rows = ((name, ratios[name], "sound" if one.sound else "not consistent") for name, one in found.items())
    print_table(("adapter", f"taken off/told at σ = {levels}", "verdict"), rows)
