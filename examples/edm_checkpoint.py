"""A checkpoint of EDM that `steindiff convert` has made a model file of: a table is calibrated on it, and samples are drawn."""

import sys

import steindiff as sd
from steindiff.io.images import contact_sheet, save_png, to_uint8
from steindiff.solvers import Setting

file, picture = sys.argv[1:3]  # cifar10.safetensors, five.png
model = sd.models.load(file)
setting = Setting.of(model.denoiser)  # the noise levels that the network was trained for, within EDM's


def noise(seeds):
    """At the highest of these levels."""
    return sd.initial_noise(seeds, model.event_shape, setting.sigma_max)


def denoiser(seeds):
    """Of a class-conditional network, the seed of an image draws its class."""
    return model.of_seeds(seeds) if model.needs_class else model.denoiser


trained = range(1000, 1016)  # 16 noises already do; 64 are better
table = sd.calibrate(
    model.denoiser, noise(trained), nfe=5, conditioned=lambda places: denoiser([trained[i] for i in places.tolist()])
)

seeds = range(8)
exact = sd.sample("unipc_3", denoiser(seeds), noise(seeds), setting.karras(40)).x
for name in ("dpmpp_2m", "universal", table.solver):
    result = sd.sample(name, denoiser(seeds), noise(seeds), nfe=5, setting=setting)
    error = (result.x - exact).square().mean().sqrt()
    print(f"{result.stats.nfe} evaluations, RMSE to the exact flow {float(error):.3f}: {result.solver}")
save_png(picture, contact_sheet(to_uint8(result.x), columns=4))
