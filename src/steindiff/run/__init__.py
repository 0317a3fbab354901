"""`steindiff sample`: images from a model, one seed each, with everything needed to make them again."""

from steindiff.run.job import Frame, Job, parse_numbers, parse_seeds
from steindiff.run.loop import generate

__all__ = ["Frame", "Job", "generate", "parse_numbers", "parse_seeds"]
