"""Five evaluations of every class of pipelines: a calibrated table beside every scheduler that diffusers ships for it.

    python -m research.pipelines --out outputs/pipelines            # all classes, a file each; what is there stays
    python -m research.pipelines --out outputs/pipelines --names sd1,flux
    python -m research.pipelines --out outputs/pipelines --show     # the table of docs/integrations/diffusers.md

The pipelines are those of `tiny_pipelines`: tiny networks with random weights of unit size. Those of flows stay so; the others
are trained, since random ones are no denoisers: for --steps steps, which a rerun repeats, or for 40 seconds by the clock.
Each pipeline runs by its own loop from the same noise.

An error is the RMS distance of an image's end to that of the pipeline's own 100 evaluations: for a scheduler of diffusers,
the smaller of those to its own 100 steps and to those of our UniPC-3; for the table, the latter. Schedulers run with every
spacing of times, and with and without Karras' levels, as far as they take them; the best of these, in hindsight, stands for a
scheduler. Those that draw noise have no end to compare, and are left out. Images of the comparison have no part in the
calibration.
"""

import copy
import inspect
import json
import math
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import diffusers
import torch
from recipes.command import command, print_table
from torch import Tensor

from research import tiny_pipelines
from steindiff import calibration
from steindiff.integrations.diffusers import SteindiffScheduler, calibrate, denoiser
from steindiff.io.files import manifest, read_json, write_json
from steindiff.metrics import Value

NFE, FINE, IMAGES, TRAJECTORIES, SECONDS = 5, 100, 32, 32, 40.0
NAMES = ("ddpm", "ddim", "ldm", "dit", "sd1", "sd2", "sdxl", "pixart", "sd3", "flux", "flux_two_passes")
DIFFUSION = (
    "DDIM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "EulerDiscrete",
    "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete",
)  # fmt: skip
FLOW = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep")
SPACINGS = ("leading", "trailing", "linspace")
HOW = calibration.Options(steps=48, settings=calibration.Settings(iterations=6, patience=2, gain=2e-3, along=0.2, singly=True))


def ends(tiny: tiny_pipelines.Tiny, scheduler: Any, steps: int) -> tuple[Tensor, int]:
    """The last latents of the pipeline's own loop, (IMAGES, *event), and how many evaluations it has taken."""
    last, count, plain = list[Tensor](), [0], scheduler.step

    def step(*args: Any, **named: Any) -> Any:
        done = plain(*args, **named)
        last[:], count[0] = [done[0] if isinstance(done, tuple) else done.prev_sample], count[0] + 1
        return done

    vars(step).update(__signature__=inspect.signature(plain))
    scheduler.step, tiny.pipe.scheduler = step, scheduler
    generators = [torch.Generator().manual_seed(seed) for seed in range(IMAGES)]
    tiny.pipe(**tiny.call(IMAGES), num_inference_steps=steps, generator=generators, output_type="np")
    return last[0][:IMAGES].double(), count[0]


def of_flow(config: Any) -> bool:
    """Whether a scheduler is one of a flow."""
    return "shift" in config and "beta_schedule" not in config


def settings(name: str, config: Any) -> Iterator[dict[str, Any]]:
    """The variants of a scheduler of diffusers for a pipeline, as far as it takes them."""
    if name.startswith("FlowMatch"):
        yield {}
    elif of_flow(config):
        yield {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": config["shift"]}
    else:
        takes = inspect.signature(getattr(diffusers, f"{name}Scheduler").__init__).parameters
        spacings = [{"timestep_spacing": spacing} for spacing in SPACINGS] if "timestep_spacing" in takes else [{}]
        levels = [{}, {"use_karras_sigmas": True}] if "use_karras_sigmas" in takes else [{}]
        yield from ({**spacing, **karras} for spacing, karras in product(spacings, levels))


def distance(one: Tensor, other: Tensor) -> Tensor:
    """The RMS distance of every image, (IMAGES,)."""
    return (one - other).flatten(1).square().mean(1).sqrt()


def of_scheduler(tiny: tiny_pipelines.Tiny, name: str, config: Any, exact: Tensor) -> dict[str, Any] | None:
    """The best variant of one scheduler; None where none runs in this pipeline."""
    kind, found = getattr(diffusers, f"{name}Scheduler"), list[tuple[float, dict[str, Any], Tensor, int]]()
    for more in settings(name, config):
        try:
            made = next(
                run for n in (NFE, NFE - 1, NFE - 2) if (run := ends(tiny, kind.from_config(config, **more), n))[1] <= NFE
            )
        except (TypeError, ValueError, NotImplementedError, IndexError, StopIteration, AttributeError, AssertionError):
            continue  # the pipeline does not take it
        found.append((float(distance(made[0], exact).nan_to_num(math.inf).mean()), more, *made))
    if not found:
        return None
    _, more, end, count = min(found, key=lambda one: one[0])
    fine, _ = ends(tiny, kind.from_config(config, **more), FINE)
    own, ours = distance(end, fine), distance(end, exact)
    best = own if own.mean() < ours.mean() else ours
    return {"name": name, "variant": more, "errors": best.tolist(), "evaluations": count, "variants": len(found)}


def measure(name: str, steps: int = 0) -> dict[str, Any]:
    """All schedulers of one pipeline, and our table; `steps` as in `trained`."""
    tiny = tiny_pipelines.make(name)
    flow = of_flow(tiny.pipe.scheduler.config)
    tiny = tiny if flow else trained(tiny, steps)
    config, call = tiny.pipe.scheduler.config, dict(tiny.extra)
    prompts: Any = list(tiny_pipelines.PROMPTS) if tiny.prompted else list(range(tiny.classes)) or None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tables.safetensors"
        made = calibrate(tiny.pipe, prompts, NFE, path=path, trajectories=TRAJECTORIES, options=HOW, progress=False, **call)
        guidance = made.tables[0].solver.purpose.guidance if made.tables[0].solver.purpose else None
        ours = SteindiffScheduler.from_config(config, table=str(path), guidance_scale=guidance)
        end, count = ends(tiny, ours, NFE)
    exact, _ = ends(tiny, SteindiffScheduler.from_config(config, solver="unipc_3"), FINE)
    auto, _ = ends(tiny, SteindiffScheduler.from_config(config, guidance_scale=guidance), NFE)
    others = [of_scheduler(tiny, kind, config, exact) for kind in (FLOW if flow else DIFFUSION)]
    return {
        "pipeline": type(tiny.pipe).__name__, "errors": distance(end, exact).tolist(), "evaluations": count,
        "auto": distance(auto, exact).tolist(), "size": float(exact.square().mean().sqrt()),
        "kept": made.tables[0].report["gate"]["kept"], "others": [one for one in others if one],
    }  # fmt: skip


def passed(steps: int) -> Iterator[float]:
    """Before each step of a training, the share of it that is over: of so many steps, or of SECONDS where that is 0."""
    began = time.perf_counter()
    if steps:
        yield from (i / steps for i in range(steps))
        return
    while (share := (time.perf_counter() - began) / SECONDS) < 1:
        yield share


def trained(tiny: tiny_pipelines.Tiny, steps: int) -> tiny_pipelines.Tiny:
    """The pipeline with its network trained on smooth patterns, one for each condition, plus smooth noise.

    A random network is no denoiser: from σ = 157 on, what it adds up is of that size, and errors say how well a method sums it.
    The training has so many steps; 0 is SECONDS by the clock, which no other run repeats.
    """
    network = copy.deepcopy(tiny.network).train().requires_grad_(True)
    setattr(tiny.pipe, "unet" if "unet" in tiny.pipe.components else "transformer", network)
    own, generator = denoiser(tiny.pipe, bounded=False, **tiny.call(8)), torch.Generator().manual_seed(7)
    patterns, schedule = smooth(8, own.event_shape, generator), own.schedule
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for share in passed(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * math.cos(math.pi / 2 * share) + 1e-6
        places = torch.randint(8, (32,), generator=generator)
        x0 = 0.8 * patterns[places] + 0.6 * smooth(32, own.event_shape, generator)
        t = 999 * torch.rand(32, generator=generator)
        s = schedule.ratio(t).reshape(-1, 1, 1, 1)
        alpha, noise = schedule.alpha_of(s), torch.randn(x0.shape, generator=generator)
        target = noise if own.convention.prediction == "epsilon" else alpha * (noise - s * x0)
        calls = [call.of(places) if own.images > 1 else call for call in own.asked.calls]
        guesses = [guess for call in calls for guess in call(alpha * (x0 + s * noise), t)]
        loss = torch.stack([(guess - target).square().mean() for guess in guesses]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    return tiny


def smooth(n: int, event: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Fields of unit deviation with 3×3 numbers a channel, enlarged, (n, *event)."""
    small = torch.randn(n, event[0], 3, 3, generator=generator)
    large = torch.nn.functional.interpolate(small, size=event[1:], mode="bicubic", align_corners=True)
    return large / large.std()


COLUMNS = (
    "pipeline", "table", "best of diffusers", "its name", "the table is nearer by", "the second", "auto, without a table",
)  # fmt: skip


def lines(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The rows of the table."""
    for name, one in found.items():
        best, *rest = ranked = sorted(one["others"], key=lambda other: sum(other["errors"]))
        mine, theirs, auto = (torch.tensor(each, dtype=torch.float64) for each in (one["errors"], best["errors"], one["auto"]))
        gain = Value.mean_of(theirs - mine)
        second = f"{rest[0]['name']} {fmean(rest[0]['errors']):.3g}" if rest else "none"
        own, other, plain = (f"{value:.3g} ± {se:.1g}" for value, se in map(Value.mean_of, (mine, theirs, auto)))
        nearer = f"{gain.value / gain.se:.0f} SE"
        yield f"{name}, {one['pipeline']}", own, other, f"{best['name']} of {len(ranked)}", nearer, second, plain


@command
def main(
    out: Annotated[Path, "a folder; each pipeline has a file in it"],
    names: Annotated[str, "pipelines, with commas between"] = ",".join(NAMES),
    steps: Annotated[int, "training steps; 0: 40 seconds by the clock, as for the page", 0] = 0,
    show: Annotated[bool, "only the table"] = False,
) -> None:
    """Measure what is missing, and show the table."""
    for name in () if show else names.split(","):
        path = out / f"{name}.json"
        if not path.exists():
            write_json(path, {**measure(name, steps), "steps": steps, "about": manifest()})
            print(json.dumps(name), flush=True)
    found = {name: read_json(path) for name in NAMES if (path := out / f"{name}.json").exists()}
    print_table(COLUMNS, lines(found))
