"""Pipelines of diffusers: what their configs say, our solvers as their scheduler, and their networks as our denoisers."""

from steindiff.integrations.diffusers.config import Convention, read

__all__ = ["Convention", "read"]
