"""Published ways to calibrate: each does what its paper says, and every one of the registry keeps the contract."""

import math
from itertools import combinations, pairwise

import pytest
import torch

from exact_paths import D64, LEVELS, closed_form, normal, of_run
from problems import MODEL
from steindiff import sample
from steindiff.calibration import run, score, trajectories
from steindiff.calibration.peers import PEERS, Bill, Task, bns, gits, olss, oss
from steindiff.errors import InputError
from steindiff.solvers import DDIM, DEIS, IPNDM, Setting, as_table
from steindiff.solvers.tabulated import Tabulated

FINE = 16


@pytest.fixture(scope="module")
def law():
    return trajectories(MODEL, 80 * normal(32, 3, seed=10), count=FINE)


@pytest.fixture(scope="module")
def new():
    return trajectories(MODEL, 80 * normal(32, 3, seed=11), count=FINE)


def task(law, nfe, **how):
    return Task.of(law, nfe, Setting(sigma_data=law.variance**0.5), **how)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_makes_a_solver_that_costs_what_it_says_and_ends_nearer_than_ddim(name, law, new):
    given = task(law, 4, budget=1000)
    made = PEERS[name](given)
    levels = torch.tensor(made.levels, dtype=D64)
    result = sample(made.solver, MODEL, new.noise, levels)
    assert result.stats.nfe == 4 == made.solver.nfe(levels)
    assert (made.levels[0], made.levels[-1]) == pytest.approx((80, 0.002))
    assert given.bill.images > 0
    ddim = sample(DDIM(), MODEL, new.noise, nfe=4)
    assert new.rmse(result.x) < new.rmse(ddim.x)


def test_a_peer_needs_a_whole_number_of_evaluations_and_a_budget(law):
    with pytest.raises(InputError, match="nfe"):
        Task(law, 0)
    with pytest.raises(InputError, match="budget"):
        Task(law, 3, budget=0)


def test_a_bill_counts_the_images_of_every_call():
    bill = Bill()
    bill.of(MODEL)(normal(5, 3), torch.tensor(1.0, dtype=D64))
    bill.add(2)
    assert bill.images == 7


@pytest.mark.parametrize("solver", [DDIM(), IPNDM(3), DEIS(2)], ids=str)
def test_olss_finds_the_rows_of_the_solver_that_made_the_trajectories(solver):
    runs = of_run(solver)
    table = olss.table(runs, list(range(len(LEVELS))))
    assert torch.allclose(run(table, runs), runs.ends, rtol=1e-9, atol=1e-9)


def test_olss_searches_as_many_steps_as_are_asked_for(law):
    for steps in (1, 3, FINE):
        places = olss.path(law, steps)
        assert len(places) == steps + 1
        assert places == sorted(set(places))
        assert (places[0], places[-1]) == (0, FINE)
    with pytest.raises(InputError, match="finer"):
        olss.path(law, FINE + 1)


@pytest.mark.parametrize("coefficient", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_grid_of_gits_is_the_cheapest_of_all(steps, coefficient, law):
    costs = gits.deviations(law)[::2, ::2]
    n = len(costs)

    def price(places):
        return sum(coefficient**k * float(costs[i, j]) for k, (i, j) in enumerate(pairwise(places)))

    every = [[0, *inner, n - 1] for inner in combinations(range(1, n - 1), steps - 1)]
    assert price(gits.cheapest(costs, steps, coefficient)) == pytest.approx(min(map(price, every)))


def test_the_deviation_of_gits_is_that_of_euler_from_the_chord():
    runs = closed_form(LEVELS, noise=10.0 * normal(1, 3))
    start, end = runs.states[0, 0], runs.states[-1, 0]
    unit = (end - start) / (end - start).norm()

    def off(x):
        return float((x - start - ((x - start) @ unit) * unit).norm())

    euler = runs.states[1, 0] + (LEVELS[3] / LEVELS[1] - 1) * runs.slopes[1, 0]
    assert gits.deviations(runs)[1, 3] == pytest.approx(off(euler) - off(runs.states[3, 0]), abs=1e-12)
    with pytest.raises(InputError, match="finer"):
        gits.cheapest(gits.deviations(runs), len(LEVELS))


@pytest.mark.parametrize("order", [1, 2])
def test_the_grid_of_oss_of_two_steps_is_the_best_of_all(order, law):
    def error(middle):
        grid = torch.tensor([law.levels[i] for i in (0, middle, FINE)], dtype=D64)
        return law.rmse(run(as_table(IPNDM(order), grid), law))

    assert oss.search(law, 2, order) == [0, min(range(1, FINE), key=error), FINE]


def test_oss_finds_better_grids_than_the_even_one(law):
    places = oss.search(law, 4)
    even = [0, 4, 8, 12, FINE]
    tables = [as_table(DDIM(), torch.tensor([law.levels[i] for i in some], dtype=D64)) for some in (places, even)]
    assert score(tables[0], [law]) < score(tables[1], [law])
    with pytest.raises(InputError, match="finer"):
        oss.search(law, FINE + 1)


def test_numbers_in_the_frame_of_bns_and_back_are_the_same_table(law):
    table = bns.complete(as_table(IPNDM(2), torch.tensor((80.0, 9.0, 2.0, 0.4, 0.002), dtype=D64)))
    assert [len(row.values) for row in table.rows] == [1, 2, 3, 4]
    theta = bns.numbers(table, 0.7)
    again = bns.moved(table, theta, 0.7)
    assert torch.allclose(run(again, law), run(table, law), rtol=1e-10)
    assert torch.allclose(bns.descended(table, theta, law, 0.7), run(table, law), rtol=1e-10)


def test_the_gradient_of_bns_is_that_of_differences(law):
    table = bns.complete(as_table(DDIM(), torch.tensor((80.0, 5.0, 0.7, 0.002), dtype=D64)))
    theta = bns.numbers(table, 0.7).requires_grad_()
    some = law.part(torch.arange(4))

    def loss(numbers):
        return (bns.descended(table, numbers, some, 0.7) - some.ends).square().mean().log()

    loss(theta).backward()
    h = 1e-6
    for i in range(len(theta)):
        step = torch.zeros_like(theta).index_fill(0, torch.tensor([i]), h)
        slope = float(loss(theta.detach() + step) - loss(theta.detach() - step)) / (2 * h)
        assert float(theta.grad[i]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("squares", [False, True])
def test_bns_ends_below_its_start_on_noise_it_has_not_seen(squares, law, new):
    given = task(law, 3, budget=20_000)
    plain = as_table(IPNDM(3), torch.tensor((80.0, 9.0, 0.9, 0.002), dtype=D64))
    how = bns.Training(squares=squares, batch=32)
    made = bns.trained(bns.complete(plain), *given.parts, given, how)
    assert isinstance(made, Tabulated)
    assert new.rmse(run(made, new)) < 0.7 * new.rmse(run(plain, new))
    assert given.bill.images == pytest.approx(20_000, rel=0.15)


def test_bns_keeps_its_start_where_no_descent_helps(law):
    given = task(law, 3, budget=500)
    start = as_table(DDIM(), torch.tensor((80.0, 5.0, 0.7, 0.002), dtype=D64))
    made = bns.trained(start, *given.parts, given, bns.Training(rate=100.0))
    assert made is start
    with pytest.raises(InputError, match="rate"):
        bns.Training(rate=math.nan)
