"""Corrections: what becomes of the step that a solver proposes.

`CleanTarget` is the paper's rule, `Energy` is ours, `NoiseConsistent` is a check, `FixedGamma` a replay; the rest are peers and
variants of the paper. `Corrected` wraps any solver in one of them, `Chain` makes one of several.
"""

from steindiff.corrections.base import Chain, Correction, Outcome, Reason, Run
from steindiff.corrections.corrected import Corrected, apply
from steindiff.corrections.energy import Energy, second_moment
from steindiff.corrections.peers import DCW, EpsilonScaling
from steindiff.corrections.proposal import Proposal
from steindiff.corrections.registry import make, names
from steindiff.corrections.sparse import Sparse
from steindiff.corrections.stein import CleanTarget, FixedGamma, NoiseConsistent
from steindiff.corrections.variants import BotNguyen, SelfConsistent

__all__ = [
    "DCW", "BotNguyen", "Chain", "CleanTarget", "Corrected", "Correction", "Energy", "EpsilonScaling", "FixedGamma",
    "NoiseConsistent", "Outcome", "Proposal", "Reason", "Run", "SelfConsistent", "Sparse", "apply", "make", "names",
    "second_moment",
]  # fmt: skip
