"""A study on your own testbed: here an exact law of two dimensions; any denoiser D(x, sigma) will do."""

import sys
from pathlib import Path

import torch

import steindiff as sd
from steindiff.report.study import write_report
from steindiff.study.grid import Config
from steindiff.study.run import run_study
from steindiff.study.testbed import Testbed

outdir = sys.argv[1] if len(sys.argv) > 1 else "outputs/own-testbed"
ring = torch.stack([torch.tensor([a.cos(), a.sin()]) for a in torch.linspace(0, 5.5, 8)])
law = sd.analytic.GaussianMixture(torch.full((8,), 1 / 8), ring, 0.01 * torch.eye(2).repeat(8, 1, 1))

bed = Testbed("ring", law, event_shape=(2,), digest="ring, version 1")  # say a new version when the denoiser changes
config = Config(beds=("ring",), solvers=("dpmpp_2m", "heun"), grids=("karras",), nfe=(5, 8), corrections=("energy",), n=256)
study = run_study(config, outdir, beds=[bed])
write_report(Path(outdir), study)
for cell, result in study.results.items():
    print(cell, "energy distance", result.values["energy"])
