"""Pipelines of diffusers: what their configs say, our solvers as their scheduler, and their networks as our denoisers.

diffusers itself is imported with `SteindiffScheduler`, when that is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from steindiff.errors import needs
from steindiff.integrations.diffusers.beside import tables_beside
from steindiff.integrations.diffusers.calibrating import Calibrated, calibrate
from steindiff.integrations.diffusers.config import Convention, read
from steindiff.integrations.diffusers.denoising import PipelineDenoiser, denoiser
from steindiff.integrations.diffusers.derivatives import forward_derivatives

if TYPE_CHECKING:
    from steindiff.integrations.diffusers.scheduler import SteindiffScheduler

__all__ = [
    "Calibrated",
    "Convention",
    "PipelineDenoiser",
    "SteindiffScheduler",
    "calibrate",
    "denoiser",
    "forward_derivatives",
    "read",
    "tables_beside",
]


def __getattr__(name: str) -> Any:
    """The scheduler, which is a class of diffusers'."""
    if name != "SteindiffScheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("diffusers", name):
        return import_module(f"{__name__}.scheduler").SteindiffScheduler
