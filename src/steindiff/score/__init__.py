"""FID, inception score and FD-DINOv2 of image files, with extractors and reference statistics that the user names."""

from steindiff.score.job import Job, Ruler
from steindiff.score.report import Judgement, Line, Report
from steindiff.score.run import score

__all__ = ["Job", "Judgement", "Line", "Report", "Ruler", "score"]
