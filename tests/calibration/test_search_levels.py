"""Levels of one table for another number of evaluations."""

from itertools import pairwise

import pytest

from steindiff.calibration.search import resampled

BASE = (160.0, 20.0, 5.0, 0.4, 0.004)


@pytest.mark.parametrize("nfe", [2, 3, 7, 12])
def test_levels_are_resampled_in_their_logarithms(nfe):
    levels = resampled(BASE, nfe)
    assert len(levels) == nfe + 2
    assert (levels[0], levels[1], levels[-1]) == (160.0, pytest.approx(20.0), pytest.approx(0.004))
    assert all(s > t for s, t in pairwise(levels))
    if nfe % 3 == 0:  # every level is met again
        assert levels[1 :: nfe // 3] == pytest.approx(BASE[1:])
    if nfe == 12:
        assert levels[2] == pytest.approx(20.0 * (5.0 / 20.0) ** 0.25)
