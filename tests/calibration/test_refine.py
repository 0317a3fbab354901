"""Gauss–Newton: its derivatives, that it keeps the best table on laws it does not fit, and levels renamed."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from exact_paths import D64, LEVELS, closed_form, normal
from problems import MODEL
from steindiff.calibration import Settings, errors, fit, refine, renamed, run, trajectories
from steindiff.calibration.refine import _normal_equations, _run, jacobian, moved, parameters
from steindiff.calibration.refine import score as choosing_score
from steindiff.errors import InputError
from steindiff.solvers import Row

GRID = (80.0, 12.0, 2.5, 0.4, 0.002)


def paths(seed, n=32):
    return trajectories(MODEL, 80 * normal(n, 3, seed=seed), count=32)


@pytest.fixture(scope="module")
def laws():
    return [paths(0)]


@pytest.fixture(scope="module")
def held():
    return [paths(1)]


@pytest.fixture(scope="module")
def table(laws):
    return replace(fit(laws, GRID), told=(1.0, 0.9, 0.8, 1.3))


def score(table, laws):
    return float((errors(table, laws) + Settings().floor ** 2).log().mean()) / 2


# ---------------------------------------------------------------- derivatives


def test_a_column_of_the_jacobian_is_the_difference_that_its_parameter_makes(table, laws):
    h = 1e-4
    end, tangents = jacobian(table, laws[0], h)
    torch.testing.assert_close(end, run(table, laws[0]), rtol=1e-12, atol=1e-12)
    theta = parameters(table)
    assert len(tangents) == len(theta) == 1 + (3 + 4 + 5)
    for k in range(len(theta)):
        change = torch.zeros(len(theta), dtype=D64)
        change[k] = h
        there = moved(table, change)
        assert parameters(there)[k] == pytest.approx(theta[k] + h, rel=1e-12)
        torch.testing.assert_close(tangents[k], (run(there, laws[0]) - end) / h, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("along", [0.0, 0.5])
def test_the_normal_equations_have_the_gradient_of_what_is_minimised(table, laws, along):
    """Jᵀr is half the derivative of the squares, by central differences, the shares of the told levels held fixed."""
    settings = Settings(along=along, difference=1e-6)
    _, jtr = _normal_equations(table, laws, torch.ones(1), settings)
    stops = [q * sigma for sigma, q, row in zip(table.levels, table.told, table.rows, strict=False) if row.values]

    def squares(change):
        (law,), changed = laws, moved(table, change)
        end, seen = _run(changed, law)
        total = law.product(end - law.ends, end - law.ends)
        for fixed, (tau, x) in zip(stops, seen, strict=True):
            share = law.variance / (law.variance + fixed**2)
            total = total + along * share * law.product(x - law.at(tau), x - law.at(tau))
        return float(total)

    h = 1e-5
    for k in range(len(jtr)):
        change = torch.zeros(len(jtr), dtype=D64)
        change[k] = h
        assert float(jtr[k]) == pytest.approx((squares(change) - squares(-change)) / (4 * h), rel=1e-3, abs=1e-6)


def test_errors_on_the_way_count_as_far_as_they_are_told_to(table, laws, held):
    """With β the states that the network sees lie nearer the exact flow than without."""
    free, near = (refine(table, laws, held, Settings(iterations=4, along=along)) for along in (0.0, 10.0))
    (law,) = laws

    def off(each):
        return sum(float(law.product(x - law.at(tau), x - law.at(tau))) / (1 + tau**2) for tau, x in _run(each, law)[1])

    assert off(near) < off(free)


def test_a_first_step_that_evaluates_may_be_told_a_level_above_the_first(laws, held):
    """Without a free step the first told level is σ_0, and a difference or a step of the refinement goes beyond it."""
    start = fit(laws, GRID, free=False)
    better = refine(start, laws, held, Settings(iterations=4, along=0.2))
    assert score(better, held) < score(start, held)


def test_images_that_choose_one_by_one_are_not_outvoted_by_one_of_them(table, laws, held):
    """An image that no table can follow decides the mean square, and is one of many in the mean of logarithms."""
    (law,) = held
    ends = law.states.clone()
    ends[-1, 0] += 100.0
    odd = replace(law, states=ends)
    better = refine(table, laws, held, Settings(iterations=4))
    together, singly = (
        choosing_score(table, [odd], singly=each) - choosing_score(better, [odd], singly=each) for each in (False, True)
    )
    assert abs(together) < 0.01
    assert singly > 0.1


def test_the_score_of_single_images_is_the_mean_of_their_logarithms(table, held):
    (law,) = held
    squares = (run(table, law) - law.ends).square().sum(1) / (law.ends - law.ends.mean(0)).square().sum(1).mean()
    expected = float((squares + Settings.floor**2).log().mean()) / 2
    assert choosing_score(table, [law], singly=True) == pytest.approx(expected, rel=1e-9)


def test_the_jacobian_is_that_of_automatic_differentiation(table):
    law = paths(2, n=4)

    def end(theta):
        numbers, x, values = iter(theta), law.noise, []
        for row in table.rows:
            if row.values:
                values.insert(0, MODEL(x, next(numbers).exp()))
            x = next(numbers) * x
            for _, value in zip(row.values, values, strict=False):
                x = x + next(numbers) * value
        return x

    theta = torch.tensor(parameters(table), dtype=D64)
    exact = torch.autograd.functional.jacobian(end, theta).movedim(-1, 0)
    for h, within in ((1e-3, 2e-2), (1e-5, 2e-4)):
        _, tangents = jacobian(table, law, h)
        assert float((tangents - exact).norm() / exact.norm()) < within


def test_a_denoiser_whose_images_belong_together_has_the_same_derivatives(table, laws):
    apart = replace(laws[0], stacked=False)
    for mine, stacked in zip(jacobian(table, apart), jacobian(table, laws[0]), strict=True):
        torch.testing.assert_close(mine, stacked, rtol=1e-8, atol=1e-8)


def test_float32_rounds_the_derivatives_little(table, laws):
    law = laws[0]
    single = replace(
        law, denoiser=MODEL.to(torch.float32), states=law.states.float(), slopes=law.slopes.float(), mean=law.mean.float()
    )
    (_, exact), (_, rounded) = jacobian(table, law), jacobian(table, single)
    assert rounded.dtype == torch.float32
    assert float((rounded.double() - exact).norm() / exact.norm()) < 0.02


# ---------------------------------------------------------------- what is kept


def test_a_refined_table_is_better_on_noise_it_never_saw(table, laws, held):
    better = refine(table, laws, held)
    assert score(better, held) < score(table, held) - math.log(2)
    assert score(better, [paths(3)]) < score(table, [paths(3)]) - math.log(1.5)
    assert better.levels == table.levels
    assert better.told != table.told
    assert [len(row.values) for row in better.rows] == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize("damping", [1e-3, 10.0])
def test_no_table_is_worse_on_the_held_out_laws_than_the_given_one(held, n, damping):
    few, seen = [paths(4, n=n)], []
    start = fit([paths(0)], GRID)
    kept = refine(start, few, held, Settings(damping=damping), seen.append)
    assert score(kept, held) == pytest.approx(min([score(start, held), *(p.held for p in seen)]), abs=1e-9)


def test_overfitting_is_stopped(table, laws, held):
    """On two noises the fitted error falls on; the held-out error rises, and after `patience` steps of that it ends."""
    good, few, seen = refine(table, laws, held), [paths(4, n=2)], []
    kept = refine(good, few, held, Settings(iterations=30, patience=3, gain=0.0), seen.append)
    best = min(range(-1, len(seen)), key=lambda i: score(good, held) if i < 0 else seen[i].held)
    assert len(seen) == best + 1 + 3
    assert all(b.fitted <= a.fitted for a, b in pairwise(seen))
    assert seen[-1].fitted < score(kept, few) - 0.1
    assert seen[-1].held > score(kept, held) + 0.1


def test_a_table_that_is_exact_already_stays(held):
    path = closed_form(LEVELS)
    exact = fit([path], LEVELS, ridge=1e-12)
    seen = []
    assert float(errors(refine(exact, [path], [path], tell=seen.append), [path]).sqrt()) < 1e-3
    assert len(seen) <= 4
    assert refine(exact, [path], [path], Settings(iterations=0)) is exact


def test_numbers_that_change_nothing_stay():
    """A law of one point: D is 0 whatever the told level, so that told levels and weights have no effect."""
    path = replace(closed_form(LEVELS), denoiser=lambda x, sigma: torch.zeros_like(x))
    start = fit([path], LEVELS)
    after = refine(start, [path], [path])
    assert after.told == start.told
    assert float(errors(after, [path])) < float(errors(start, [path]))


def test_numbers_that_are_not_free_stay_and_the_others_go_where_they_would_alone(table, laws):
    """With the weights held, the told levels reach the least error over them."""
    free = [moves for row in table.rows for moves in (*([True] if row.values else []), *[False] * (1 + len(row.values)))]
    told = refine(table, laws, laws, Settings(iterations=12), free=free)
    assert told.rows == table.rows
    assert score(told, laws) < score(table, laws)
    for change in (-0.02, 0.02):
        delta = torch.tensor([change * moves for moves in free], dtype=D64)
        assert score(moved(told, delta), laws) > score(told, laws)
    whole, usual = (refine(table, laws, laws, Settings(iterations=3), free=which) for which in ([True] * len(free), None))
    assert (whole.rows, whole.told) == (usual.rows, usual.told)


def test_a_network_in_float32_is_refined_too(table, laws, held):
    single = [
        replace(
            law, denoiser=MODEL.to(torch.float32), states=law.states.float(), slopes=law.slopes.float(), mean=law.mean.float()
        )
        for law in (*laws, *held)
    ]
    better = refine(table, single[:1], single[1:])
    assert score(better, held) < score(table, held) - math.log(2)


def test_easy_and_hard_laws_count_alike(table, laws, held):
    """F is a mean of logarithms: a law in other units, or heavier, is no other law."""
    heavy = [replace(laws[0], weight=100 * laws[0].weight)]
    mine, theirs = (parameters(refine(table, each, held, Settings(iterations=2))) for each in (laws, heavy))
    assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)


# ---------------------------------------------------------------- what is refused


def test_end_states_that_are_not_finite_are_refused(table, laws, held):
    broken = replace(laws[0], denoiser=lambda x, sigma: MODEL(x, sigma) * math.nan)
    for fitted, kept in (([broken], held), (laws, [broken])):
        with pytest.raises(InputError, match="end states are not finite on a law: fit it"):
            refine(table, fitted, kept)


def test_derivatives_that_are_not_finite_are_refused(table, laws, held):
    def brittle(x, sigma):
        return MODEL(x, sigma) * (math.nan if sigma > 12.0 * 0.9 else 1.0)

    with pytest.raises(InputError, match="derivatives of the table's end states are not finite"):
        refine(table, [replace(laws[0], denoiser=brittle)], held)


def test_laws_of_another_range_and_no_laws_are_refused(table, laws, held):
    other = trajectories(MODEL, 40 * normal(8, 3), 40.0, count=8)
    for fitted, kept in (([other], held), (laws, [other])):
        with pytest.raises(InputError, match="trajectories from 40 to"):
            refine(table, fitted, kept)
    for fitted, kept in (([], held), (laws, [])):
        with pytest.raises(InputError, match="at least one law"):
            refine(table, fitted, kept)


# ---------------------------------------------------------------- levels


def test_renamed_levels_change_no_end_state(table, laws, held):
    other = renamed(table, laws)
    assert other.levels != table.levels
    assert (other.levels[0], other.levels[-1]) == (80.0, 0.002)
    assert all(s > t for s, t in pairwise(other.levels))
    assert other.rows == table.rows
    told, before = ([q * s for q, s in zip(t.told, t.levels, strict=False)] for t in (other, table))
    assert told == pytest.approx(before, rel=1e-12)
    torch.testing.assert_close(run(other, held[0]), run(table, held[0]), rtol=1e-9, atol=1e-9)


def test_a_wrong_name_is_righted():
    """On a Gaussian the state of an exact table lies on the flow at its level, and nowhere else."""
    path = closed_form(LEVELS)
    right = fit([path], LEVELS, ridge=1e-12)
    factors = (1.0, 1.3, 0.8, 1.2)
    wrong = replace(
        right,
        levels=(*(f * s for f, s in zip(factors, LEVELS, strict=False)), LEVELS[-1]),
        told=tuple(q / f for f, q in zip(factors, right.told, strict=True)),
    )
    assert renamed(wrong, [path]).levels == pytest.approx(LEVELS, rel=0.01)


def test_a_table_of_one_step_has_no_level_to_rename(laws):
    table = fit(laws, (80.0, 0.002), free=False)
    assert renamed(table, laws) is table
    assert score(refine(table, laws, laws), laws) < score(table, laws)


def test_levels_that_would_not_decrease_keep_their_names(laws):
    table = fit(laws, GRID)
    rows = [*table.rows]
    rows[1] = Row(rows[1].a * 8, rows[1].values)  # the second state is farther out than the first
    scrambled = replace(table, rows=tuple(rows))
    assert renamed(scrambled, laws) is scrambled
