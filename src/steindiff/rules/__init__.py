"""How far a step should go: pure arithmetic on the moments of one step.

`CleanTarget` is the paper's rule; `Energy` is ours; `NoiseConsistent` is a check, `FixedGamma` a replay, the rest are peers.
"""

from steindiff.rules.base import Decision, GammaRule, Moments, Need, Reason, Rule, strongest
from steindiff.rules.energy import BandMoments, Energy
from steindiff.rules.gamma import CleanTarget, FixedGamma, NoiseConsistent, stein_ratio
from steindiff.rules.peers import DCW, EpsilonScaling

__all__ = [
    "DCW",
    "BandMoments",
    "CleanTarget",
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
    "stein_ratio",
    "strongest",
]
