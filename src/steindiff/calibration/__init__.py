"""Tables made to measure: exact trajectories, closed-loop least squares, Gauss–Newton refinement, and a gate."""

from steindiff.calibration.calibrate import Options, calibrate, calibrations
from steindiff.calibration.fit import fit, matched
from steindiff.calibration.refine import Progress, Settings, errors, refine, renamed, run, score
from steindiff.calibration.teacher import Trajectories, trajectories

__all__ = [
    "Options", "Progress", "Settings", "Trajectories", "calibrate", "calibrations", "errors", "fit", "matched", "refine",
    "renamed", "run", "score", "trajectories",
]  # fmt: skip
