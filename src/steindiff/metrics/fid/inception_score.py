"""Inception score: exp E KL(p(y|x) ‖ p(y)), large where every image is of one clear class and all classes occur.

As published, samples are split into consecutive parts, p(y) is each part's own mean, and the score is the mean over parts. It
grows with the size of a part, so only scores of equal numbers of samples and splits compare. Between runs from the same noise
parts hold the same seeds, and differences are taken part by part.

Source: Salimans et al., "Improved techniques for training GANs" (2016), section 4.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.arguments import check_samples
from steindiff.errors import require, require_whole
from steindiff.metrics.values import Paired, Value, centred

TOLERANCE = 1e-3
"""By which class probabilities may miss a sum of one: networks in half precision do."""


@dataclass(frozen=True, eq=False)
class InceptionScore(Paired):
    """Inception scores of the splits, (splits,) float64, and the number of samples in all."""

    scores: Tensor
    n: int

    @property
    def value(self) -> Value:
        """Their mean and its standard error; papers state the standard deviation, √splits times larger."""
        return Value.mean_of(self.scores)

    @property
    def spread(self) -> Tensor:
        """(score − mean)/√(splits (splits−1))."""
        return centred(self.scores) / math.sqrt(len(self.scores) * (len(self.scores) - 1))


def inception_score(probabilities: Tensor, splits: int = 10) -> InceptionScore:
    """The inception score of class probabilities p(y|x), (n, classes), with rows in the order of the seeds.

    Raises InputError for fewer than two splits or samples a split, and for rows that are not probabilities, such as logits.
    """
    require_whole(2, splits=splits)
    p = check_samples(probabilities).double()
    enough = p.ndim == 2 and len(p) >= 2 * splits
    need = "need (n, classes), at least 2 splits, and at least 2 samples in each"
    require(enough, need, shape=tuple(p.shape), splits=splits)
    gap, least = float((p.sum(1) - 1).abs().max()), float(p.min())
    need = "rows sum to one and have no negative entry: need probabilities; apply softmax(1)"
    require(gap <= TOLERANCE and least >= 0, need, gap=gap, least=least)
    parts = (p[len(p) * i // splits : len(p) * (i + 1) // splits] for i in range(splits))
    # Σ_y p(y|x) log(p(y|x)/p(y)), with 0 log 0 = 0.
    scores = [(torch.xlogy(part, part) - torch.xlogy(part, part.mean(0))).sum(1).mean().exp() for part in parts]
    return InceptionScore(torch.stack(scores), len(p))
