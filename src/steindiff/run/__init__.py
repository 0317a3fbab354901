"""`steindiff sample`: images from a model, one seed each, with everything needed to make them again."""

from steindiff.run.generate import generate
from steindiff.run.job import Job, build_grid, build_solver, parse_seeds

__all__ = ["Job", "build_grid", "build_solver", "generate", "parse_seeds"]
