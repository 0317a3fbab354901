"""A pipeline of diffusers in three lines: its own loop, our solver, five evaluations."""

import sys

import torch
from diffusers import DiffusionPipeline

from steindiff.integrations.diffusers import SteindiffScheduler, tables_beside

folder, outdir = sys.argv[1:3]
pipe = DiffusionPipeline.from_pretrained(folder)
pipe.scheduler = SteindiffScheduler.from_config(pipe.scheduler.config, table=tables_beside(pipe))
image = pipe(num_inference_steps=5, generator=torch.Generator().manual_seed(0)).images[0]

image.save(f"{outdir}/image.png")
print("five evaluations:", f"{outdir}/image.png")
