"""How good a model's samples are: distances to real images, beside those of real images to each other."""

from steindiff.quality.evaluate import evaluate
from steindiff.quality.report import Report
from steindiff.quality.settings import RUNS, Settings

__all__ = ["RUNS", "Report", "Settings", "evaluate"]
