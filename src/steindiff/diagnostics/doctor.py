"""What `steindiff doctor` finds: the machine, and how a denoiser is understood, whether it is consistent, and what it supports.

Whether a denoiser takes off the noise that it is told needs no data. Its own samples x0, noised again to x = x0 + σ ε, have the
noise level σ exactly, and Stein's identity reads off its residual for which level it acts (`meters.noise_mismatch`):

    σ̂² = E‖x − D‖²/E[∇·(x − D)],      σ̂/σ = 1 for a denoiser of its own samples' law

A wrong schedule, prediction type or scale of the input moves σ̂/σ far from 1, at some level at least. One that is told c σ in
the place of σ has σ̂/σ = c on the data's law where σ is small, and 1 where it is large. The check has a limit: what is the
right denoiser of some other law passes, as a Gaussian's does that is told c σ.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import compress

import torch
from torch import Tensor

from steindiff.denoisers import Denoiser, forwards_per_call, known_schedule, prediction_of
from steindiff.diagnostics.meters import noise_mismatch
from steindiff.divergence import Choice, Estimator, Exact, Hutchinson, choose
from steindiff.errors import SteindiffError
from steindiff.noise import initial_noise
from steindiff.sampling import sample
from steindiff.solvers import Auto, Setting

LIBRARIES = ("steindiff", "torch", "numpy", "safetensors", "diffusers", "transformers", "accelerate", "scipy", "matplotlib")
NEAR, FAR = 0.9, 1.1
"""The band of σ̂/σ in which a denoiser is called consistent; trained networks are within a few percent of 1."""
OTHERS = 10**6
"""The first seed of the noise that is added to samples."""
SMALL = 16
"""Dimensions up to which the divergence is the exact trace."""
LEVELS = 5
"""Noise levels at which the told level is compared with the one that it acts for, evenly spaced in log σ."""


@dataclass(frozen=True)
class Fact:
    """One line of what was found: what, and its value in words."""

    what: str
    value: str


@dataclass(frozen=True)
class Level:
    """For which level the denoiser acts where it is told σ: σ̂/σ, and the root mean squares of the noisy state and of D."""

    sigma: float
    ratio: float
    state: float
    denoised: float

    @property
    def consistent(self) -> bool:
        """Whether it acts for the level that it is told, nearly."""
        return NEAR <= self.ratio <= FAR


@dataclass(frozen=True)
class Taken:
    """What solver auto takes for a number of evaluations, on which noise levels, and why."""

    nfe: int
    solver: str
    levels: tuple[float, ...]
    reason: str


@dataclass(frozen=True)
class Examination:
    """All that was found about a denoiser.

    Attributes:
        facts: how it is understood: schedule, prediction, range, cost.
        levels: the told noise level against the one that it acts for; empty where it has no derivative.
        derivatives: which products with its Jacobian work, and what they cost; None where none does.
        taken: what auto takes.
        complaint: what went wrong while it was run or differentiated; empty where nothing did.
    """

    facts: tuple[Fact, ...]
    levels: tuple[Level, ...]
    derivatives: Choice | None
    taken: tuple[Taken, ...]
    complaint: str = ""

    @property
    def sound(self) -> bool:
        """Whether it ran, and takes off the noise that it is told wherever this could be measured."""
        return not self.complaint and all(level.consistent for level in self.levels)


def machine() -> tuple[Fact, ...]:
    """Versions, devices, and the kernels that attention may take."""
    facts = [Fact("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    facts += [Fact(name, _version(name)) for name in LIBRARIES]
    facts.append(Fact("CPU threads", str(torch.get_num_threads())))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = (f"cuda:{i} {torch.cuda.get_device_name(i)}, {_gibibytes(i)}" for i in range(count))
    facts.append(Fact("CUDA devices", "; ".join(names) or "none"))
    facts.append(Fact("MPS", "available" if torch.backends.mps.is_available() else "none"))
    return (*facts, Fact("attention", _attention()))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gibibytes(device: int) -> str:
    _, whole = torch.cuda.mem_get_info(device)
    return f"{whole / 2**30:.0f} GiB"


def _attention() -> str:
    """The kernels of scaled_dot_product_attention that are switched on."""
    cuda = torch.backends.cuda
    enabled = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())
    on = ", ".join(compress(("flash", "memory-efficient", "math"), enabled))
    return f"scaled_dot_product_attention may take {on}; only math has a forward-mode derivative"


def examine(
    denoiser: Denoiser, setting: Setting, nfe: Sequence[int] = (3, 4, 5, 6, 8, 10), images: int = 16, device: str = "cpu"
) -> Examination:
    """Run a denoiser on noise of its own, and say how it is understood and whether that can be right.

    Args:
        denoiser: D(x, sigma), VE coordinates, for a batch of `images` images.
        setting: its noise levels, σ_data and guidance, with the shape of an image in `event`.
        nfe: numbers of evaluations for which auto is asked.
        images: how many images are drawn.
        device: where it computes.
    """
    facts, choices = understood(denoiser, setting), tuple(taken(n, setting) for n in nfe)
    event = setting.event or ()
    try:
        noise = initial_noise(range(images), event, setting.sigma_max, device=device)
        x0 = sample("auto", denoiser, noise, nfe=10, setting=setting).x
    except SteindiffError as error:
        return Examination(facts, (), None, choices, f"a run of 10 evaluations fails: {error}")
    try:
        middle = x0.new_tensor((setting.sigma_max * max(setting.sigma_min, 1e-3)) ** 0.5)
        choice = choose(denoiser, _noised(x0, middle), middle)
    except SteindiffError as error:
        return Examination(facts, (), None, choices, str(error))
    exact = x0[0].numel() <= SMALL and choice.method == "vjp"
    estimator = Exact() if exact else Hutchinson(probes=2, choice=choice).resolve(denoiser, x0, middle)
    return Examination(facts, told_and_seen(denoiser, x0, _between(setting), estimator), choice, choices)


def understood(denoiser: Denoiser, setting: Setting) -> tuple[Fact, ...]:
    """How the denoiser is understood: what it says of itself, and what is assumed where it says nothing."""
    schedule = known_schedule(denoiser)
    stated = "unknown, taken as VE (alpha = 1): state it with denoisers.declare" if schedule is None else repr(schedule)
    rows = (
        ("images", " × ".join(map(str, setting.event or ()))),
        ("schedule", stated),
        ("prediction", prediction_of(denoiser) or "x0-hat in VE coordinates: no adapter of ours is around the network"),
        ("noise levels", f"{setting.sigma_max:.6g} down to {setting.sigma_min:.6g}"),
        ("σ_data", f"{setting.sigma_data:.4g}"),
        ("guidance", f"{setting.guidance:g}" if setting.guidance != 1 else "none"),
        ("forwards a call", str(forwards_per_call(denoiser))),
        ("digest", setting.network or "none: tables that are calibrated on it cannot be found again"),
    )
    return tuple(Fact(*row) for row in rows)


def _noised(x0: Tensor, sigma: Tensor) -> Tensor:
    """x0 + σ ε; the noise is that of other seeds than the samples'."""
    return x0 + sigma * initial_noise(range(OTHERS, OTHERS + len(x0)), x0.shape[1:], 1.0).to(x0)


def _between(setting: Setting) -> list[float]:
    """Levels between the ends, which are left out: one is all noise, and the other has hardly any."""
    low = max(setting.sigma_min, 0.01 * setting.sigma_data)
    logs = torch.tensor([setting.sigma_max, low], dtype=torch.float64).log()
    places = torch.linspace(0, 1, LEVELS + 2, dtype=torch.float64)[1:-1]
    return torch.lerp(logs[0], logs[1], places).exp().tolist()


def told_and_seen(denoiser: Denoiser, x0: Tensor, sigmas: Sequence[float], estimator: Estimator) -> tuple[Level, ...]:
    """σ̂/σ of clean images x0 (B, *event), noised to each level. Raises SteindiffError where the derivative fails."""
    found = list[Level]()
    for i, level in enumerate(sigmas):
        sigma = x0.new_tensor(level)
        x = _noised(x0, sigma)
        with torch.no_grad():
            ratio = float(noise_mismatch(denoiser, x, sigma, estimator=estimator, index=i))
            denoised = denoiser(x, sigma)
        found.append(Level(level, ratio, *(float(z.square().mean().sqrt()) for z in (x, denoised))))
    return tuple(found)


def taken(nfe: int, setting: Setting) -> Taken:
    """What auto takes for this setting, and why. Raises InputError for no number of evaluations."""
    solver, _, reason = Auto().choose(nfe, setting)
    _, sigmas = solver.plan(nfe, setting)
    return Taken(nfe, str(solver), tuple(sigmas.tolist()), reason)
