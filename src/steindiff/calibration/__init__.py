"""Tables made to measure: exact trajectories, closed-loop least squares, Gauss–Newton refinement."""

from steindiff.calibration.fit import fit
from steindiff.calibration.refine import Progress, Settings, errors, refine, renamed, run
from steindiff.calibration.teacher import Trajectories, trajectories

__all__ = ["Progress", "Settings", "Trajectories", "errors", "fit", "refine", "renamed", "run", "trajectories"]
