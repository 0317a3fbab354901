"""Few-step diffusion sampling with step corrections by Stein's identity; see README.md for a tour."""

from steindiff.io.starting import starting

with starting():
    from steindiff import analytic, corrections, denoisers, divergence, grids, models, rules, schedules, solvers
    from steindiff.calibration import calibrate
    from steindiff.corrections import Chain, Corrected
    from steindiff.denoisers import Denoiser
    from steindiff.divergence import Hutchinson
    from steindiff.errors import InputError, ModelFileError, NonFiniteError, SteindiffError
    from steindiff.noise import generators, initial_noise
    from steindiff.sampling import SampleResult, sample, steps
    from steindiff.solvers import Table
    from steindiff.standalone import SteinDiff

__version__ = "0.1.0"

__all__ = [
    "Chain", "Corrected", "Denoiser", "Hutchinson", "InputError", "ModelFileError", "NonFiniteError", "SampleResult",
    "SteinDiff", "SteindiffError", "Table", "analytic", "calibrate", "corrections", "denoisers", "divergence", "generators",
    "grids", "initial_noise", "models", "rules", "sample", "schedules", "solvers", "steps",
]  # fmt: skip
