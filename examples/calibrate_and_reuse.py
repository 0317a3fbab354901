"""A table calibrated on a pipeline of diffusers, kept beside it, and used again by the pipeline and by our own loop."""

import sys

import torch
from diffusers import DiffusionPipeline

import steindiff as sd
from steindiff.calibration import Options
from steindiff.integrations.diffusers import SteindiffScheduler, calibrate, denoiser, tables_beside

folder, trajectories = sys.argv[1], int(sys.argv[2])
pipe = DiffusionPipeline.from_pretrained(folder)
made = calibrate(pipe, nfe=[3], trajectories=trajectories, options=Options(steps=16), progress=False)
print(made.tables[0].solver, "in", made.path)

# A later program: the scheduler finds the table beside the pipeline.
pipe.scheduler = SteindiffScheduler.from_config(pipe.scheduler.config, table=tables_beside(pipe))
images = pipe(batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images
print("images", images.shape)

# The same by our own loop, where `auto` finds it too, and how near it is to the pipeline's exact flow.
own = denoiser(pipe)
noise = own.noise(seeds=range(8))
exact = sd.sample("unipc_3", own, noise, own.setting.karras(60)).x
for solver in ("auto", "dpmpp_2m"):
    run = sd.sample(solver, own, noise, nfe=3)
    print(f"{run.solver}: RMSE {float((run.x - exact).square().mean().sqrt()):.4f}")
