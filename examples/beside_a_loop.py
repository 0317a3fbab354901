"""The paper's correction beside a loop of one's own: DPM-Solver++ 2M by hand, corrected by one line a step."""

import torch

import steindiff as sd

model = sd.models.load("digits")  # or your own network, as D(x, sigma)
x = sd.initial_noise(seeds=range(64), event_shape=model.event_shape)
sigmas = sd.grids.karras(6).float()
stein, old = sd.SteinDiff("tweedie", gamma_max=1.0), None

for i in range(6):
    r, h = sigmas[i + 1] / sigmas[i], (sigmas[i] / sigmas[i + 1]).log()
    with torch.no_grad():
        D = model.denoiser(x, sigmas[i])
    ahead = D if old is None else D + h / (sigmas[i - 1] / sigmas[i]).log() / 2 * (D - old)
    candidate = r * x + (1 - r) * ahead
    x, old = stein.apply(x, candidate, 1.0, sigmas[i], denoised=D), D  # without the correction: x, old = candidate, D

for record in stein.trace:
    print(f"σ {record.sigma:8.4f}   γ* {record.gamma_raw:6.3f}   γ {record.gamma:5.3f}   {record.reason}")
