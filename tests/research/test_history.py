"""What a history held constant does to γ and to convergence: the statements of docs/correction.md."""

import pytest
import torch

from research import history
from steindiff.grids import karras
from steindiff.solvers import make, names

PLAIN, COUNTED, FROZEN = history.RULES.values()


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("place", [4, 9, 14])
def test_tweedies_form_is_that_of_the_known_clean_sample(name, place):
    found = history.gammas(make(f"{name}(stored=refresh)" if name.startswith("unipc") else name), place)
    assert found.tweedie == pytest.approx(found.known, rel=1e-8)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2s", "dpmpp_3s"])
def test_without_a_history_equation_11_is_right(name):
    found = history.gammas(make(name), 14)
    assert found.frozen == pytest.approx(found.known, rel=1e-8)


@pytest.mark.parametrize(
    ("name", "place", "known", "frozen"),
    [
        ("dpmpp_2m", 14, 2.878, -1.183),
        ("dpmpp_3m", 14, 2.842, -5.554),
        ("ipndm_3", 6, 3.266, 6.262),
        ("deis_3", 6, 3.266, 6.513),
    ],
)
def test_a_history_held_constant_gives_another_coefficient(name, place, known, frozen):
    """At σ = 0.318 and σ = 12.4 of twenty steps."""
    found = history.gammas(make(name), place)
    assert (found.known, found.frozen) == (pytest.approx(known, abs=1e-3), pytest.approx(frozen, abs=1e-3))
    assert float(karras(history.STEPS)[place]) == pytest.approx({14: 0.318, 6: 12.4}[place], rel=0.01)


def test_a_stored_evaluation_is_near_the_right_one_where_the_step_is_short():
    """UniPC's own D is that of its prediction: nearly right at σ = 0.3, and not at σ = 0.04, where its steps are long."""
    near, far = (history.gammas(make("unipc_2"), place) for place in (14, 17))
    assert near.tweedie == pytest.approx(near.known, abs=0.01)
    assert abs(near.frozen - near.known) > 6
    assert 2 < abs(far.tweedie - far.known) < 0.1 * abs(far.frozen - far.known)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m"])
def test_the_clamp_keeps_convergence_only_where_the_history_is_counted(name, monkeypatch):
    monkeypatch.setattr(history, "SAMPLES", 16)
    history.start.cache_clear()
    plain, counted, frozen = (history.error("gaussian", make(name), rule, 40) for rule in (PLAIN, COUNTED, FROZEN))
    assert counted == plain
    assert frozen > 10 * plain
    assert history.error("gaussian", make(name), PLAIN, 80) < 0.5 * plain
    assert history.error("gaussian", make(name), FROZEN, 80) > 0.5 * frozen
    history.start.cache_clear()


def test_the_points_have_the_moments_of_the_law():
    sigmas = karras(4)
    clean, states = history.quadrature(sigmas)
    for x, sigma in zip(states, sigmas, strict=True):
        covariance = x.mT @ x / len(x)
        torch.testing.assert_close(covariance, torch.diag(history.SPECTRUM + sigma**2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(clean.mT @ states[-1] / len(clean), torch.diag(history.SPECTRUM), rtol=1e-10, atol=1e-10)
