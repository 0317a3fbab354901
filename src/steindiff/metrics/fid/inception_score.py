"""Inception score: exp E KL(p(y|x) ‖ p(y)), large where every image is of one clear class and all classes occur.

As published, samples are split into consecutive parts, p(y) is each part's own mean, and the score is the mean over parts. It
grows with the size of a part, so only scores of equal numbers of samples and splits compare. Between runs from the same noise
parts hold the same seeds, and differences are taken part by part.

Source: Salimans et al., "Improved techniques for training GANs" (2016), section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steindiff.errors import InputError
from steindiff.metrics.values import Value

__all__ = ["InceptionScore", "inception_score"]

TOLERANCE = 1e-3
"""By which class probabilities may miss a sum of one: networks in half precision do."""


class InceptionScore(NamedTuple):
    """Inception scores of the splits.

    Attributes:
        scores: one a split, (splits,) float64.
        n: the number of samples in all.
    """

    scores: Tensor
    n: int

    @property
    def value(self) -> Value:
        """Their mean and its standard error; papers state the standard deviation, √splits times larger."""
        return _mean(self.scores)

    def minus(self, other: InceptionScore) -> Value:
        """The mean difference, split by split. Raises InputError where samples or splits differ in number."""
        if (self.n, len(self.scores)) != (other.n, len(other.scores)):
            raise InputError(
                f"{self.n} samples in {len(self.scores)} splits against {other.n} in {len(other.scores)}: need the same"
            )
        return _mean(self.scores - other.scores)


def inception_score(probabilities: Tensor, splits: int = 10) -> InceptionScore:
    """The inception score of class probabilities p(y|x), (n, classes), with rows in the order of the seeds.

    Raises:
        InputError: fewer than two splits or than two samples a split; rows that are not probabilities, such as logits.
    """
    p = probabilities.detach().double()
    if p.ndim != 2 or splits < 2 or len(p) < 2 * splits:
        raise InputError(
            f"class probabilities of shape {tuple(p.shape)} in {splits} splits: need (n, classes), at least 2 splits, and at "
            "least 2 samples in each"
        )
    gap = float((p.sum(1) - 1).abs().max())
    if not (gap <= TOLERANCE and float(p.min()) >= 0):
        raise InputError(
            f"rows miss a sum of one by up to {gap:.2g}, least entry {float(p.min()):.2g}: need probabilities; apply softmax(1)"
        )
    scores = [_score(p[len(p) * i // splits : len(p) * (i + 1) // splits]) for i in range(splits)]
    return InceptionScore(torch.stack(scores), len(p))


def _score(p: Tensor) -> Tensor:
    """exp of the mean over samples of Σ_y p(y|x) log(p(y|x)/p(y)), with 0 log 0 = 0."""
    return (torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))).sum(1).mean().exp()


def _mean(scores: Tensor) -> Value:
    return Value(float(scores.mean()), float(scores.std()) / len(scores) ** 0.5)
