"""`steindiff diagnose`: is a solver step a contraction, and is the batch at the noise level it is told?"""

from steindiff.diagnose.run import run_diagnose
from steindiff.diagnose.setup import PRESETS, Setup, configure

__all__ = ["PRESETS", "Setup", "configure", "run_diagnose"]
