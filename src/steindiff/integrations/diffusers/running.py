"""A run of one of our solvers as a scheduler's: latents go in with the network's outputs, and latents come out.

Inside, the run is fed (`push.Fed`): in VE coordinates, in float32 or better. Latents are α y, at the level that the network is
told; those of the last step are y itself, the estimate of the data.
"""

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steindiff.errors import InputError, NonFiniteError, StateWarning
from steindiff.integrations.diffusers.config import Convention
from steindiff.integrations.diffusers.plan import Plan
from steindiff.push import Fed
from steindiff.sampling import Generators
from steindiff.schedules import Schedule

_LARGE = 4.0
"""How far from one, as a factor, the root mean square of the first latents may be."""


@dataclass(frozen=True)
class _About:
    """What the denoiser behind a pipeline says of itself."""

    schedule: Schedule


@dataclass(frozen=True, eq=False)
class Running:
    """A run under way: its plan, which may be the rest of another from the evaluation `begin`, and the levels on the device."""

    plan: Plan
    begin: int
    run: Fed
    levels: tuple[Tensor, ...]
    dtype: torch.dtype

    @classmethod
    def start(cls, plan: Plan, begin: int, sample: Tensor, schedule: Schedule, generator: Generators) -> "Running":
        """The run of a plan from these latents on, (B, *event).

        Raises InputError where the plan's table is of another event; a StateWarning says that the latents are of another scale.
        """
        if plan.event not in (None, tuple(sample.shape[1:])):
            raise InputError(
                f"latents of shape {tuple(sample.shape[1:])}, and the table was calibrated for {plan.event}: calibrate one for "
                "this size, or take solver='universal' without a table"
            )
        wide = torch.float32 if sample.device.type == "mps" else torch.float64
        first = sample.to(torch.promote_types(sample.dtype, torch.float32))
        _check_size(float(first.square().mean().sqrt()))
        x = plan.gain * first
        run = Fed.start(plan.corrected, x, plan.sigmas.to(sample.device, wide), _About(schedule), generator)
        told = torch.tensor(plan.told, dtype=wide).to(sample.device)
        return cls(plan, begin, run, told.unbind(), sample.dtype)

    def changed(self, sample: Tensor, index: int) -> "Running":
        """The run with the state moved by what the pipeline has changed in the latents; bitwise the same where nothing.

        Raises InputError for latents of another shape.
        """
        point = self.run.query
        if point is None or sample.shape != point.x.shape:
            was = None if point is None else tuple(point.x.shape)
            raise InputError(f"latents of shape {tuple(sample.shape)} at evaluation {index}, and {was} before: they must agree")
        alpha = self.plan.alphas[index - self.begin]
        left = (alpha * point.x).to(self.dtype)
        return replace(self, run=self.run.moved((sample.to(point.x) - left.to(point.x)) / alpha))

    def told(self, model_output: Tensor, index: int, convention: Convention) -> "tuple[Running, Tensor, Tensor]":
        """The run after the evaluation `index`, and the next latents and the denoised value, both as wide as the state.

        Raises NonFiniteError where the run ends in NaN or infinity.
        """
        place, point = index - self.begin, self.run.query
        assert point is not None  # the run is not over
        denoised = convention.denoiser(lambda x, t: model_output)(point.x, self.levels[place])
        run = self.run.told(denoised)
        latents = run.x if run.query is None else self.plan.alphas[place + 1] * run.query.x
        if run.query is None and not bool(torch.isfinite(latents).all()):
            raise NonFiniteError(
                "the run has ended in NaN or infinity: check the network's dtype (float16 overflows), its autoencoder, and "
                f"whether the correction is bounded ({self.plan.correction})"
            )
        return replace(self, run=run, dtype=model_output.dtype), latents, denoised


def _check_size(rms: float) -> None:
    """Warn where the first latents are of another scale: those of some schedulers of diffusers are x* + σ ε."""
    if rms > _LARGE or rms < 1 / _LARGE:
        warnings.warn(
            f"the first latents have a root mean square of {rms:.3g}, where about 1 is expected: give normal noise times "
            "scheduler.init_noise_sigma, or what scheduler.add_noise returns",
            StateWarning,
            stacklevel=4,  # the caller of the scheduler's step
        )
