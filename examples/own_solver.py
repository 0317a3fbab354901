"""A multistep solver of your own is its row of weights: the two-step Adams–Bashforth method for unequal steps."""

from dataclasses import dataclass

import torch

import steindiff as sd
from steindiff.solvers.multistep import NoiseMultistep, Row


@dataclass(frozen=True)
class AdamsBashforth2(NoiseMultistep):
    """x' = x + h ((1+c) ε̂₀ − c ε̂₁), h = σ'−σ, c = h/(2 h₁), h₁ the step before."""

    order = 2

    def weights(self, grid, index):
        s, h = grid.levels, grid.levels[index + 1] - grid.levels[index]
        if grid.order(index, self.order, lower_final=False) == 1:
            return Row(1.0, (h,))
        c = h / (s[index] - s[index - 1]) / 2
        return Row(1.0, (h * (1 + c), -h * c))


law = sd.analytic.GaussianMixture(torch.ones(2) / 2, torch.tensor([[-1.0], [1.0]]), 0.1 * torch.ones(2, 1, 1)).to(torch.float64)
x = sd.initial_noise(seeds=range(64), event_shape=(1,), sigma_max=5.0, dtype=torch.float64)
exact = law.flow(x, 5.0, 0.5, tol=1e-9)
for n in (20, 40, 80):
    end = sd.sample(AdamsBashforth2(), law, x, sd.grids.log_snr(n, 0.5, 5.0)).x
    print(n, "steps: error", float((end - exact).norm()))
