"""Pipelines of diffusers: what their configs say, our solvers as their scheduler, and their networks as our denoisers."""

from steindiff.integrations.diffusers.config import Convention, read
from steindiff.integrations.diffusers.denoising import PipelineDenoiser, denoiser
from steindiff.integrations.diffusers.derivatives import forward_derivatives
from steindiff.integrations.diffusers.scheduler import SteindiffScheduler

__all__ = ["Convention", "PipelineDenoiser", "SteindiffScheduler", "denoiser", "forward_derivatives", "read"]
