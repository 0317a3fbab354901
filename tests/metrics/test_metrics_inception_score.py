"""Inception scores in closed form, and a slow second implementation."""

import itertools
import math

import pytest
import torch

from steindiff.errors import InputError
from steindiff.metrics.fid.inception_score import inception_score
from steindiff.metrics.values import Value


def _probabilities(seed: int, n: int, classes: int = 6) -> torch.Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).softmax(1)


def test_clear_classes_score_their_number_and_equal_rows_score_one():
    hard = torch.eye(4).repeat(10, 1)
    assert inception_score(hard, splits=5).value == Value(pytest.approx(4.0), pytest.approx(0.0, abs=1e-12))
    assert inception_score(torch.full((20, 5), 0.2), splits=2).value.value == pytest.approx(1.0)


def test_against_the_definition_in_loops():
    p = _probabilities(0, 23)
    bounds = [23 * i // 3 for i in range(4)]
    scores = []
    for a, b in itertools.pairwise(bounds):
        part = p[a:b].tolist()
        mean = [sum(row[k] for row in part) / len(part) for k in range(6)]
        kl = [sum(q * math.log(q / m) for q, m in zip(row, mean, strict=True)) for row in part]
        scores.append(math.exp(sum(kl) / len(kl)))
    got = inception_score(p, splits=3)
    assert got.scores.tolist() == pytest.approx(scores, rel=1e-12)
    assert got.value.value == pytest.approx(sum(scores) / 3)
    assert got.value.se == pytest.approx(float(torch.tensor(scores).std()) / math.sqrt(3), rel=1e-5)


def test_paired_differences_are_sharper():
    p = _probabilities(0, 400)
    sharper = p.pow(1.1) / p.pow(1.1).sum(1, keepdim=True)
    here, there = inception_score(sharper), inception_score(p)
    got = here.minus(there)
    assert got.value == pytest.approx(here.value.value - there.value.value)
    assert got.value > 4 * got.se
    assert got.se < 0.5 * here.value.se
    for other in (inception_score(p[:200]), inception_score(p, splits=5)):
        with pytest.raises(InputError, match="need the same"):
            here.minus(other)


@pytest.mark.parametrize(
    ("p", "splits", "message"),
    [
        (torch.zeros(40, 3), 10, "need probabilities; apply softmax"),
        (torch.tensor([[1.5, -0.5]]).repeat(40, 1), 10, "need probabilities; apply softmax"),
        (torch.full((40, 2), float("nan")), 10, "need probabilities; apply softmax"),
        (torch.full((19, 2), 0.5), 10, "at least 2 samples in each"),
        (torch.full((40, 2), 0.5), 1, "splits=1: need a whole number from 2"),
        (torch.full((40, 2, 1), 0.5), 2, r"need \(n, classes\)"),
    ],
)
def test_what_is_not_probabilities_is_refused(p, splits, message):
    with pytest.raises(InputError, match=message):
        inception_score(p, splits)
