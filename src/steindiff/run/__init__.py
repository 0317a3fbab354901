"""`steindiff sample`: images from a model, one seed each, with everything needed to make them again."""

from steindiff.run.job import Job, build_grid, build_solver, parse_seeds
from steindiff.run.loop import generate

__all__ = ["Job", "build_grid", "build_solver", "generate", "parse_seeds"]
