"""A correction of your own that remembers: every step is drawn towards a running mean of the denoised values."""

from dataclasses import dataclass

import torch

import steindiff as sd


@dataclass(frozen=True)
class RunningMean(sd.corrections.Correction):
    """x' = T(x) + (1−r) (D̄ − D), D̄ ← (1−β) D + β D̄: the state of the correction is D̄, (B, *event)."""

    beta: float = 0.2

    def correct(self, proposal, state):
        D, interval = proposal.denoised, proposal.interval
        mean = D if state is None else torch.lerp(D, state, self.beta)
        shift = (1 - interval.sigma_next / interval.sigma) * (mean - D)
        numbers = {"shift": proposal.mean(shift.flatten(1).norm(dim=1))}
        return sd.corrections.Outcome(proposal.next + shift, mean, numbers)


model = sd.models.load("digits")
x = sd.initial_noise(seeds=range(8), event_shape=model.event_shape)
for rule in (RunningMean(), sd.corrections.Chain(sd.corrections.make("energy(bands=4)"), RunningMean(0.1))):
    result = sd.sample(sd.Corrected("dpmpp_2m", rule), model.denoiser, x, sd.grids.karras(5))
    print([round(r.numbers["shift"], 3) for r in result.trace], result.stats.nfe, "NFE")
