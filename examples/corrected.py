"""The paper's correction: sample the embedded digits network in 5 evaluations, plain and corrected, from the same noise."""

import steindiff as sd

model = sd.models.load("digits")
x = sd.initial_noise(seeds=range(64), event_shape=model.event_shape)
sigmas = sd.grids.karras(5)

plain = sd.sample("dpmpp_2m", model.denoiser, x, sigmas)
corrected = sd.sample(sd.Corrected("dpmpp_2m", "clamped"), model.denoiser, x, sigmas)  # the paper's rule, γ ≤ 1

for r in corrected.trace:
    print(f"σ {r.sigma:8.4f} → {r.sigma_next:8.4f}   γ* {r.gamma_raw:6.3f}   γ {r.gamma:5.3f}   by {r.source}")
print(f"plain: {plain.stats.nfe} NFE; corrected: {corrected.stats.nfe} NFE, {corrected.stats.forward_equivalents:.1f} forwards")
