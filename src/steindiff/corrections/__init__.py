"""Corrections: what becomes of the step that a solver proposes.

`CleanTarget` is the paper's rule, `Energy` is ours, `NoiseConsistent` is a check, `FixedGamma` a replay; the rest are peers and
variants of the paper.
"""

from steindiff.corrections.base import Corrected
from steindiff.corrections.energy import BandMoments, Energy
from steindiff.corrections.peers import DCW, EpsilonScaling
from steindiff.corrections.registry import apply, make, names
from steindiff.corrections.rules import Decision, GammaRule, Moments, Need, Reason, Rule, strongest
from steindiff.corrections.stein import CleanTarget, FixedGamma, NoiseConsistent, stein_ratio

__all__ = [
    "DCW",
    "BandMoments",
    "CleanTarget",
    "Corrected",
    "Decision",
    "Energy",
    "EpsilonScaling",
    "FixedGamma",
    "GammaRule",
    "Moments",
    "Need",
    "NoiseConsistent",
    "Reason",
    "Rule",
    "apply",
    "make",
    "names",
    "stein_ratio",
    "strongest",
]
