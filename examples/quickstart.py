"""Ten lines: sample the embedded network in 5 evaluations from the same noise, and compare with where the exact flow ends."""

import steindiff as sd

model = sd.models.load("cifar10")
x = sd.initial_noise(seeds=range(16), event_shape=model.event_shape)
exact = sd.sample("unipc_3", model.denoiser, x, nfe=50).x

for solver in ("dpmpp_2m", "unipc_2", "ipndm_4", "universal", "auto"):
    run = sd.sample(solver, model.denoiser, x, nfe=5)
    rmse = float((run.x - exact).square().mean().sqrt())
    print(f"{solver:9} {run.stats.nfe} evaluations, RMSE to the exact flow {rmse:.3f}: {run.solver}")
