"""The program that measures tables between two scales of guidance."""

import pytest

pytest.importorskip("sklearn")

from research.guidance_between import Options, lines


def test_a_line_has_every_contender():
    options = Options(bed="wine_guided_3", scales="2,3", trajectories=16, images=8)
    (line,) = lines(options, [2.0, 3.0], [2.5], [1])
    n, scale, ends, *scores, universal = line
    assert (n, scale, ends, universal) == (1, "2.5", "2, 3", "none")  # no table for guidance has one evaluation
    own, chained, alone, upper = (score.value for score in scores)
    assert own > 0
    assert max(chained, alone, upper) < 2 * own
