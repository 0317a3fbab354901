"""Sparse activation: at the named steps the rule, at all others the plain step at its own cost."""

import math

import numpy as np
import pytest
import torch

from problems import MODEL, mixture, noisy_state
from steindiff import corrections, sampling, solvers
from steindiff.corrections import Chain, CleanTarget, Corrected, Energy, FixedGamma, SelfConsistent, Sparse
from steindiff.divergence import Hutchinson
from steindiff.errors import InputError

GRID = torch.tensor([10.0, 4.0, 1.5, 0.6, 0.2], dtype=torch.float64)
CLAMPED = CleanTarget.clamped()
HALF = FixedGamma((0.5,) * 4)
X = noisy_state(10.0, batch=6)


def run(rule, name="ddim", **options):
    return sampling.sample(Corrected(name, rule, **options), mixture, X, GRID)


def corrected(trace):
    return [r.index for r in trace if r.reason != "inactive"]


@pytest.mark.parametrize(
    "steps",
    [[0, 2], (0, 2), {0, 2}, range(0, 3, 2), list(np.array([0, 2])), lambda i, s: s in (10.0, 1.5)],
    ids=["list", "tuple", "set", "range", "numpy ints", "predicate"],
)
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun"])
def test_other_steps_are_plain_and_cost_nothing(steps, name):
    found = run(Sparse(CLAMPED, steps=steps), name, divergence=Hutchinson(2, method="vjp"))
    assert corrected(found.trace) == [0, 2]
    for r in found.trace[1::2]:
        assert r.gamma == r.gamma_raw == 1
        assert math.isnan(r.noise_ratio)
        assert r.moments == {}
    stages = solvers.make(name).nfe(GRID) // 4
    assert found.stats.nfe == 4 * stages
    assert found.stats.vjps <= 2 * 2 * stages


def test_a_step_is_the_rules_or_the_solvers():
    """By hand: two steps of DDIM, of which the second goes half way."""
    found = run(Sparse(HALF, steps=[1]))
    x = X
    for i in range(4):
        r = GRID[i + 1] / GRID[i]
        step = r * x + (1 - r) * MODEL(x, GRID[i])
        x = 0.5 * (x + step) if i == 1 else step
    torch.testing.assert_close(found.x, x, rtol=1e-12, atol=1e-12)
    assert [r.gamma for r in found.trace] == [1, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("spec", "acts"),
    [
        ("sparse(clamped, above=1.5)", [0, 1]),  # App. E.2: early, at high noise
        ("sparse(clamped, below=1.5)", [2, 3]),  # App. E.1: at low noise
        ("sparse(clamped, above=1.0, below=4.0)", [1, 2]),
        ("sparse(clamped, steps=(0, 3))", [0, 3]),
        ("sparse(clamped, below=1.5, steps=(0, 3))", [3]),
        ("sparse(clamped)", [0, 1, 2, 3]),
        ("sparse(energy, above=20)", []),
        ("sparse(clamped(mode=tweedie), steps=(2,))", [2]),
        ("chain(sparse(clamped, steps=(1,)), dcw)", [1]),
        ("sparse(chain(clamped, dcw), steps=(1,))", [1]),
    ],
)
def test_the_critical_steps_by_name(spec, acts):
    assert corrected(run(corrections.make(spec)).trace) == acts


def test_no_such_step_is_the_plain_solver_and_probes_nothing():
    calls = []

    def network(y, sigma):
        calls.append(1)
        return MODEL(y, sigma)

    for rule in (Sparse(CLAMPED, steps=[]), Sparse(Energy(), steps=lambda i, s: False)):
        calls.clear()
        found = sampling.sample(Corrected("heun", rule), network, X, GRID)
        assert torch.equal(found.x, sampling.sample("heun", MODEL, X, GRID).x)
        assert len(calls) == found.stats.nfe == 8
        assert found.stats.choice is None
        assert {r.reason for r in found.trace} == {"inactive"}


def test_the_rule_keeps_its_state_over_the_steps_between():
    """The inertial iteration remembers the last step that it made, and its own place in the run is the run's."""
    inner = corrections.make("bot_nguyen")
    found = run(Sparse(Chain(inner, SelfConsistent(eta=0.0)), steps=[0, 2]))
    x0 = X
    t0 = sampling.sample("ddim", mixture, x0, GRID[:2]).x
    x1 = 0.5 * (x0 + t0)
    x2 = sampling.sample("ddim", mixture, x1, GRID[1:3]).x
    t2 = sampling.sample("ddim", mixture, x2, GRID[2:4]).x
    c = 3 / (2 * (2 + 3))  # sa/(2(k+a)) with k = 2, a = 3, s = 1
    x3 = (1 - c) * x2 + c * t2 + 2 / 5 * (t2 - t0)
    torch.testing.assert_close(found.x, sampling.sample("ddim", mixture, x3, GRID[3:]).x, rtol=1e-10, atol=1e-10)


def test_predicates_see_index_and_sigma():
    seen = set()
    run(Sparse(HALF, steps=lambda i, s: seen.add((i, s)) or True))
    assert seen == set(enumerate(GRID.tolist()[:-1]))


def test_a_rule_gets_its_constants_through_it():
    given = corrections.make("sparse(energy(moment=target), above=1.0)").given(X)
    assert given == Sparse(Energy(moment=corrections.second_moment(X)), above=1.0)


@pytest.mark.parametrize("steps", [[4], [-1], [0, 99], range(5)])
def test_steps_beyond_the_run_are_refused(steps):
    with pytest.raises(InputError, match=r"this run has steps 0 to 3"):
        run(Sparse(HALF, steps=steps))


@pytest.mark.parametrize("steps", [3, "first", [True, False, True, False], [0.5], [None], iter([1])])
def test_what_is_neither_indices_nor_a_predicate_is_refused(steps):
    with pytest.raises(InputError, match="give step indices"):
        Sparse(CLAMPED, steps=steps)


@pytest.mark.parametrize(
    "levels",
    [{"above": 0.0}, {"above": -1.0}, {"below": 0.0}, {"above": 2.0, "below": 2.0}, {"above": math.nan}, {"below": math.nan}],
)
def test_impossible_levels_are_refused(levels):
    with pytest.raises(InputError, match="need noise levels 0 < above < below"):
        Sparse(CLAMPED, **levels)


def test_nothing_cannot_be_made_sparse():
    with pytest.raises(InputError, match="unknown correction 'none'"):
        corrections.make("sparse(none, above=1.0)")
