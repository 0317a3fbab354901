"""The closed-loop fit: exact where a table can be, other methods' weights from their own runs, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exact_paths import D64, LEVELS, closed_form, isotropic, normal, of_run
from problems import MODEL, PROPERTY
from steindiff import grids
from steindiff.calibration import Trajectories, errors, fit, matched, run, trajectories
from steindiff.calibration.refine import _states
from steindiff.errors import InputError
from steindiff.sampling import sample
from steindiff.solvers import DDIM, DPMpp2M, DPMpp3M, Row, as_table

FEW = settings(PROPERTY, max_examples=20)
TINY = 1e-13
"""A ridge that costs nothing, for directions that are far from collinear."""


@pytest.fixture(scope="module")
def law():
    return trajectories(MODEL, 80 * normal(64, 3), count=48)


def numbers(table):
    return [n for row in table.rows for n in (row.a, *row.values)]


# ---------------------------------------------------------------- exactness

GRID = torch.tensor(LEVELS, dtype=D64)


@pytest.mark.parametrize("levels", [(80.0, 0.002), (80.0, 5.0, 0.002), (20.0, 6.0, 1.0, 0.3, 0.01)])
@pytest.mark.parametrize("free", [True, False])
def test_fitted_on_a_gaussian_itself_a_table_is_exact(levels, free):
    """The free step by its form; a step with an evaluation to its ridge, since here all directions are one."""
    path = closed_form(levels)
    for ridge, within in ((1e-3, 3e-3), (TINY, 1e-9)):
        table = fit([path], levels, free=free, ridge=ridge)
        assert table.nfe(table.own_grid) == len(levels) - 1 - free
        assert float(errors(table, [path]).sqrt()) < within
    if free:
        v, top, first = 0.3, *levels[:2]
        assert table.rows[0] == Row(pytest.approx(math.sqrt((v + first**2) / (v + top**2)), rel=1e-12), ())


@given(variance=st.floats(0.01, 10.0), mean=st.floats(-3.0, 3.0))
@FEW
def test_it_then_runs_exactly_on_other_noise(variance, mean):
    """From any state, by the loop that everything else uses."""
    levels = (10.0, 3.0, 0.5, 0.1)
    table = replace(fit([closed_form(levels, variance)], levels, ridge=TINY), mean=torch.tensor(mean, dtype=D64))
    x = 10.0 * normal(5, 3, seed=7) + mean
    exact = mean + (x - mean) * math.sqrt((variance + 0.1**2) / (variance + 10.0**2))
    end = sample(table, isotropic(variance, mean=mean), x, table.own_grid).x
    torch.testing.assert_close(end, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), DPMpp3M(), DPMpp2M(lower_order_final=False)], ids=str)
def test_told_to_follow_a_methods_own_run_it_returns_the_methods_weights(solver):
    table, own = fit([of_run(solver)], LEVELS, free=False, ridge=TINY), as_table(solver, GRID)
    assert table.told == own.told == (1.0,) * 4
    for fitted, row in zip(table.rows, own.rows, strict=True):
        padded = (*row.values, *[0.0] * (len(fitted.values) - len(row.values)))
        assert (fitted.a, *fitted.values) == pytest.approx((row.a, *padded), rel=1e-6, abs=1e-6)


def test_told_levels_are_told_and_their_weights_found():
    """A method whose network is told other levels is found too, where the fit is told the same."""
    q = (0.9, 1.2, 0.8, 1.5)
    own = replace(as_table(DPMpp2M(lower_order_final=False), GRID), told=q)
    table = fit([of_run(own)], LEVELS, told=q, free=False, history=2, ridge=TINY)
    assert table.told == q
    assert numbers(table) == pytest.approx(numbers(own), rel=1e-6, abs=1e-6)


# ---------------------------------------------------------------- what a fit is good for


@pytest.mark.parametrize("n", [3, 4, 6])
def test_a_fit_ends_nearer_the_flow_than_the_method_of_the_same_grid(law, n):
    levels = tuple(grids.karras(n).tolist())
    plain, fitted = as_table(DPMpp2M(), torch.tensor(levels, dtype=torch.float64)), fit([law], levels, free=False)
    other = trajectories(MODEL, 80 * normal(64, 3, seed=5), count=48)
    assert float(errors(fitted, [other])) < 0.25 * float(errors(plain, [other]))


def test_each_step_is_the_best_that_its_directions_allow(law):
    """No other row of a step brings the run's next state nearer: the first-order condition, by trial."""
    levels = (80.0, 10.0, 1.0, 0.002)
    table = fit([law], levels, ridge=1e-12)
    least = float(errors(table, [law]))
    for change in (1e-3, -1e-3):
        last = table.rows[-1]
        for row in (Row(last.a + change, last.values), *(moved(last, j, change) for j in range(len(last.values)))):
            assert float(errors(replace(table, rows=(*table.rows[:-1], row)), [law])) > least


def moved(row, j, change):
    return Row(row.a, tuple(w + change * (i == j) for i, w in enumerate(row.values)))


def test_the_mean_shifts_the_results_and_not_the_weights():
    m, levels = torch.tensor([2.0, -3.0, 0.5], dtype=D64), (80.0, 10.0, 1.0, 0.002)
    noise = 80 * normal(16, 3)

    def there(x, sigma):
        return m + MODEL(x - m, sigma)

    table = fit([trajectories(MODEL, noise, count=24)], levels)
    shifted = fit([trajectories(there, noise + m, count=24, mean=m)], levels)
    assert numbers(shifted) == pytest.approx(numbers(table), rel=1e-6, abs=1e-8)
    end, grid = sample(table, MODEL, noise, table.own_grid).x, table.own_grid
    torch.testing.assert_close(sample(replace(table, mean=m), there, noise + m, grid).x, end + m, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(sample(table, there, noise + m, grid).x, end + m, atol=1e-3)


def test_a_law_counts_by_its_weight(law):
    levels = (80.0, 10.0, 1.0, 0.002)
    other = trajectories(lambda x, sigma: isotropic(4.0)(x, sigma), 80 * normal(64, 3, seed=3), count=24)
    heavy, light, both = fit([law], levels), replace(other, weight=1e-14 * other.weight), fit([law, other], levels)
    assert numbers(fit([law, light], levels)) == pytest.approx(numbers(heavy), rel=1e-6, abs=1e-8)
    assert numbers(both) != pytest.approx(numbers(heavy), rel=1e-3)
    assert numbers(fit([other, law], levels)) == pytest.approx(numbers(both), rel=1e-9, abs=1e-9)
    # Two halves of a law's noises are the law.
    halves = [replace(law, states=law.states[:, part], slopes=law.slopes[:, part]) for part in (slice(32), slice(32, 64))]
    assert numbers(fit(halves, levels)) == pytest.approx(numbers(heavy), rel=1e-6, abs=1e-8)


def test_a_weight_for_each_coordinate_chooses_coordinates(law):
    """Of a single step, where nothing but its row counts."""
    levels, only = (80.0, 0.002), torch.tensor([1.0, 0.0, 0.0], dtype=D64)
    table, chosen = (fit([replace(law, weight=w)], levels, free=False, ridge=1e-9) for w in (law.weight, only))
    gaps = [(run(t, law) - law.ends).square().mean(0) for t in (table, chosen)]
    assert gaps[1][0] < gaps[0][0]
    assert gaps[1].sum() > gaps[0].sum()


@pytest.mark.parametrize("history", [1, 2, 3])
def test_no_row_uses_more_values_than_its_history(law, history):
    table = fit([law], tuple(grids.karras(6).tolist()), history=history)
    assert [len(row.values) for row in table.rows] == [0, *(min(i, history) for i in range(1, 6))]
    end = sample(table, MODEL, law.noise, table.own_grid).x
    torch.testing.assert_close(end, run(table, law), rtol=1e-10, atol=1e-10)


def test_laws_in_float32_give_the_same_table(law):
    levels, single = (80.0, 10.0, 1.0, 0.002), MODEL.to(torch.float32)
    half = trajectories(single, law.noise.float(), count=48)
    assert numbers(fit([half], levels)) == pytest.approx(numbers(fit([law], levels)), rel=1e-2, abs=1e-3)


# ---------------------------------------------------------------- second moments


def moments(table, laws):
    """The second moments of a table's states over those of the exact flow, step by step."""
    sizes = torch.zeros(2, len(table.rows), dtype=D64)
    for law in laws:
        for i, x in enumerate(_states(table, law)[1:]):
            y = law.at(table.levels[i + 1])
            sizes[:, i] += torch.stack([law.product(x, x), law.product(y, y)])
    return sizes[0] / sizes[1]


@pytest.mark.parametrize("free", [True, False])
def test_where_a_fit_is_exact_its_second_moments_are_right_already(free):
    path = closed_form((20.0, 6.0, 1.0, 0.3, 0.01))
    table = fit([path], path.levels, free=free, ridge=TINY)
    assert numbers(matched(table, [path])) == pytest.approx(numbers(table), rel=1e-9, abs=1e-12)
    other = fit([path], path.levels, free=free, ridge=TINY, moments=True)
    torch.testing.assert_close(run(other, path), run(table, path), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("laws", [1, 2])
def test_matched_rows_reach_the_second_moments_of_the_exact_flow(law, laws):
    """At each level, closed loop; of several laws the sums agree. A fit alone ends too small."""
    levels, other = (80.0, 10.0, 1.0, 0.002), trajectories(isotropic(4.0), 80 * normal(64, 3, seed=3), count=24)
    some = [law, other][:laws]
    plain = fit(some, levels)
    assert float(moments(plain, some)[-1]) < 0.997
    for table in (fit(some, levels, moments=True), matched(plain, some)):
        assert moments(table, some).tolist() == pytest.approx([1.0] * 3, rel=1e-10)
        assert table.levels == levels
    assert numbers(fit(some, levels, moments=True)) != pytest.approx(numbers(matched(plain, some)), rel=1e-4)


def test_rows_are_matched_at_told_levels_and_on_the_tables_own_range_only(law):
    levels, told = (80.0, 10.0, 1.0, 0.002), (1.0, 0.9, 1.2)
    table = matched(fit([law], levels, told=told, history=1), [law])
    assert table.told == told
    assert moments(table, [law]).tolist() == pytest.approx([1.0] * 3, rel=1e-10)
    with pytest.raises(InputError, match="one range"):
        matched(replace(table, levels=(40.0, 10.0, 1.0, 0.002)), [law])


# ---------------------------------------------------------------- degenerate laws


def constant(value):
    """The trajectories of a law that is one point: the flow is x' − c = r (x − c), with c = `value`, and D is c."""
    sigmas, noise = torch.tensor(LEVELS, dtype=D64), LEVELS[0] * normal(8, 3)
    states = value + (noise - value) * (sigmas / sigmas[0])[:, None, None]
    zero = torch.zeros((), dtype=D64)
    return Trajectories(lambda x, s: torch.full_like(x, value), LEVELS, states, states - value, zero + 1, zero)


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("ridge", [1e-3, 1e-15])
def test_directions_that_vanish_or_coincide_leave_the_first_order_step(value, free, ridge):
    path = constant(value)
    table = fit([path], LEVELS, free=free, ridge=ridge)
    assert all(abs(n) < 2 for n in numbers(table))
    end = run(table, path)
    first = LEVELS[1] / LEVELS[0] if free else 1.0  # what a free step without the mean cannot know
    torch.testing.assert_close(end, path.ends, rtol=1e-6, atol=1e-6 + (1 - first) * value * 0.2)
    assert all(abs(n) < 2 for n in numbers(matched(table, [path])))


@pytest.mark.parametrize("ridge", [1e-16, 1e-20, 1e-300])
def test_a_ridge_below_all_rounding_gives_a_good_table_or_says_so(ridge):
    """Which of the two is a matter of rounding: here all directions are one."""
    path, message, table = closed_form((10.0, 3.0, 0.5, 0.1)), "", None
    try:
        table = fit([path], path.levels, ridge=ridge)
    except InputError as error:
        message = str(error)
    assert "singular: need a ridge above" in message if table is None else float(errors(table, [path])) < 1e-6


def test_one_image_of_one_coordinate_is_enough():
    path = closed_form((10.0, 2.0, 0.1), noise=torch.full((1, 1), 3.0, dtype=D64))
    assert float(errors(fit([path], path.levels), [path])) < 1e-4


# ---------------------------------------------------------------- what is refused


def test_a_law_that_gives_nan_is_named_by_its_step(law):
    def broken(x, sigma):
        return MODEL(x, sigma) if sigma > 2 else x * math.nan

    with pytest.raises(InputError, match=r"the step to sigma = 0\.002 are not finite: a law or a network gives NaN"):
        fit([law, replace(law, denoiser=broken)], (80.0, 10.0, 1.0, 0.002))
    states = law.states.clone()
    states[:] = math.nan
    with pytest.raises(InputError, match="not finite"):
        fit([replace(law, states=states)], (80.0, 10.0, 1.0, 0.002))


@pytest.mark.parametrize(
    "levels, options, message",
    [
        ((40.0, 1.0, 0.002), {}, r"trajectories from 80 to 0\.002 for levels from 40 to 0\.002: .* one range"),
        ((80.0, 1.0, 0.01), {}, r"for levels from 80 to 0\.01"),
        ((80.0, 1.0, 2.0, 0.002), {}, "levels that decrease"),
        ((80.0,), {}, "two or more levels"),
        ((80.0, math.nan, 0.002), {}, "levels that decrease"),
        ((80.0, 1.0, 0.002), {"told": (1.0,)}, "need 2 finite told levels above 0, one a step"),
        ((80.0, 1.0, 0.002), {"told": (1.0, -1.0)}, "told levels above 0"),
        ((80.0, 1.0, 0.002), {"ridge": 0.0}, "finite ridge above 0"),
        ((80.0, 1.0, 0.002), {"ridge": math.inf}, "finite ridge above 0"),
        ((80.0, 1.0, 0.002), {"ridge": math.nan}, "finite ridge above 0"),
        ((80.0, 1.0, 0.002), {"history": 0}, "history of at least one value"),
    ],
)
def test_what_does_not_fit_the_trajectories_is_refused(law, levels, options, message):
    with pytest.raises(InputError, match=message):
        fit([law], levels, **options)


def test_laws_over_different_ranges_and_no_laws_are_refused(law):
    other = trajectories(MODEL, 40 * normal(8, 3), 40.0, count=8)
    with pytest.raises(InputError, match=r"trajectories from 40 to 0\.002 for levels from 80 to 0\.002"):
        fit([law, other], (80.0, 1.0, 0.002))
    with pytest.raises(InputError, match="at least one law"):
        fit([], (80.0, 1.0, 0.002))
