"""Restart: its cost, its place on a grid, its noise, and what exact laws make of it."""

import contextlib
import math

import pytest
import torch

import steindiff as sd
from problems import gaussian, mixture, noisy_state, run
from steindiff import grids, solvers
from steindiff.denoisers import Counter
from steindiff.errors import InputError
from steindiff.noise import generators, initial_noise
from steindiff.report.study import write_report
from steindiff.solvers import DDIM, IPNDM, Cycle, DPMpp2M, Grid, Heun, Restart, UniPC
from steindiff.solvers.restart import PUBLISHED
from steindiff.study import testbed
from steindiff.study.grid import Config
from steindiff.study.run import run_study

D64 = torch.float64
LOW = Restart(Heun(), (Cycle(0.3, 3.0, 3, 4),))


@pytest.mark.parametrize(
    ("name", "nfe"), [*((n, int(n[11:])) for n in PUBLISHED if n[0] == "i"), ("cifar10_vp", 43), ("cifar10_edm", 43)]
)
def test_the_cost_is_the_papers(name, nfe):
    """2 N_main − 1 and 2 K (N_Restart − 1) for each interval, with N_Restart levels."""
    solver, known = solvers.make(f"restart(heun, {name})"), PUBLISHED[name]
    sigmas = grids.with_zero(grids.karras(known.main - 1))
    formula = 2 * known.main - 1 + sum(2 * c.times * c.steps for c in known.cycles)
    assert nfe == formula == solver.nfe(sigmas) == sd.sample(solver, mixture, noisy_state(80.0), sigmas).stats.nfe
    planned, steps = solver.for_nfe(nfe)
    assert (steps, planned.nfe(grids.karras(steps))) == (known.main, nfe)


METHODS = {
    "ddim": DDIM(),
    "heun": Heun(),
    "2m": DPMpp2M(),
    "ipndm": IPNDM(3),
    "unipc": UniPC(3),
    "refresh": UniPC(2, stored="refresh"),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_cost_is_counted_whatever_the_solver(method):
    solver = Restart(method, (Cycle(5.0, 20.0, 2, 3), Cycle(0.06, 0.3, 1, 2)))
    for end in (grids.karras(9), grids.with_zero(grids.karras(9))):
        counter = Counter(mixture)
        assert bool(torch.isfinite(run(solver, counter, noisy_state(80.0), end)).all())
        assert counter.calls == solver.nfe(end)
    exact = 0
    for nfe in (30, 31):
        with contextlib.suppress(InputError):  # two evaluations a step do not spend every budget
            planned, steps = solver.for_nfe(nfe)
            assert planned.nfe(grids.karras(steps)) == nfe
            assert planned.cycles == solver.cycles
            exact += 1
    assert exact == (1 if method == METHODS["refresh"] else 2)


def test_a_budget_that_the_cycles_eat_is_refused():
    with pytest.raises(InputError, match="nfe=8: the cycles alone take 8 evaluations"):
        solvers.make("restart").for_nfe(8)
    assert solvers.make("restart").for_nfe(9)[1] == 1


@pytest.mark.parametrize("method", [Heun(), DPMpp2M(), IPNDM(4), UniPC(2)], ids=["heun", "2m", "ipndm", "unipc"])
def test_it_is_runs_put_together(method):
    """Down to the level nearest t_min, up with fresh noise, down on EDM's grid, K times, and on as a new run."""
    sigmas, x = grids.karras(10), noisy_state(80.0)
    solver = Restart(method, (Cycle(1.0, 4.0, 2, 3),), inflation=1.1, seed=(3, 1, 4, 1, 5)).seeded((7, 1, 4, 1, 5))
    place = int((sigmas - 1.0).abs().argmin())
    grid, state, y = Grid.of(sigmas), method.init(mixture, x, Grid.of(sigmas)), x
    for i in range(place):
        y, _, state, _ = method.step(mixture, y, grid.interval(i), state)
    ups, own = [], x
    own_state = solver.init(mixture, x, grid)
    for i in range(place):
        seen = []
        own, _, own_state, _ = solver.step(
            lambda z, s, k=seen: k.append((z, s)) or mixture(z, s), own, grid.interval(i), own_state
        )
    again = grids.karras(3, float(sigmas[place]), 4.0)
    ups = [z for z, s in seen if abs(float(s) - 4.0) < 1e-12]  # where the network is asked at t_max
    assert len(ups) == 2
    down = run(method, mixture, ups[0], again)
    scale = 1.1 * math.sqrt(16 - float(sigmas[place]) ** 2)
    for before, up in ((y, ups[0]), (down, ups[1])):
        assert 0.6 < float((up - before).std()) / scale < 1.4
    torch.testing.assert_close(own, run(method, mixture, ups[1], again), rtol=1e-12, atol=1e-12)
    expected = run(method, mixture, own, sigmas[place:])
    torch.testing.assert_close(run(solver, mixture, x, sigmas), expected, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- exact laws


@pytest.mark.parametrize("inflation", [1.0, 1.2])
def test_a_point_mass_keeps_its_noise_level(inflation):
    """D = c: with S_noise = 1 the end is c + σₙ ε in law; else the variance of K turns adds up as it must."""
    n, c, sigmas = 4000, 0.7, grids.karras(8)
    solver = Restart(Heun(), (Cycle(2.5, 4.0, 2, 1),), inflation)
    x = c + initial_noise(range(n), (2,), dtype=D64)
    ends = sd.sample(solver, lambda z, s: torch.full_like(z, c), x, sigmas, generator=generators(range(n))).x
    low = float(sigmas[int((sigmas - 2.5).abs().argmin())])
    ratio = 1.0
    for _ in range(2):
        ratio = (ratio * low**2 + inflation**2 * (16 - low**2)) / 16
    found = ((ends - c) / sigmas[-1]).square().mean()
    assert float(found) == pytest.approx(ratio, abs=4 * ratio * math.sqrt(2 / (2 * n)))


def test_errors_contract_as_the_theory_says():
    """x* ~ N(m, v): the way down multiplies the distance of two states under one noise by √((v+l²)/(v+h²)), at every turn."""
    sigmas, v = grids.karras(60, 0.002, 80.0), 0.25
    x = noisy_state(80.0)
    solver = Restart(Heun(), (Cycle(0.3, 3.0, 3, 80),))
    plain = run(Heun(), gaussian, x + 8.0, sigmas) - run(Heun(), gaussian, x, sigmas)
    apart = run(solver, gaussian, x + 8.0, sigmas) - run(solver, gaussian, x, sigmas)
    low = float(sigmas[int((sigmas - 0.3).abs().argmin())])
    factor = ((v + low**2) / (v + 9.0)) ** 1.5
    torch.testing.assert_close(apart, factor * plain, rtol=2e-3, atol=0)
    assert factor < 0.02


def test_the_exact_law_stays_what_it_is():
    n, sigmas = 6000, grids.karras(40)
    x = 0.3 + 0.5 * torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=D64)
    x = x + initial_noise(range(n), (1,), dtype=D64)
    ends = sd.sample(Restart(Heun(), (Cycle(0.3, 3.0, 2, 20),)), gaussian, x, sigmas, generator=generators(range(n))).x
    assert float(ends.mean()) == pytest.approx(0.3, abs=4 * 0.5 / math.sqrt(n))
    assert float(ends.std()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2 * n) + 5e-4)


# ---------------------------------------------------------------- the noise


def test_an_image_has_its_own_noise_in_every_batch():
    sigmas, seeds = grids.karras(8), range(100, 116)
    noise = initial_noise(seeds, (3,), dtype=D64)
    whole = sd.sample(LOW, mixture, noise, sigmas, generator=generators(seeds)).x
    for i in (0, 7, 15):
        alone = sd.sample(LOW, mixture, noise[i : i + 1], sigmas, generator=generators(seeds[i : i + 1])).x
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-12, atol=1e-12)
    again = sd.sample(LOW, mixture, noise, sigmas, generator=generators(seeds)).x
    assert torch.equal(whole, again)
    other = sd.sample(LOW, mixture, noise, sigmas, generator=generators(range(200, 216))).x
    assert not torch.isclose(whole, other).any()


def test_fresh_noise_is_normal_and_new_at_every_place_and_turn():
    n = 5000
    solver = Restart(seed=tuple(range(n)))
    like = torch.zeros(n, 1, dtype=D64)
    draws = [
        initial_noise(range(n), (1,), 1.0, dtype=D64),
        *(solver._noise(like, 2.0, i, t) / 2 for i, t in ((3, 0), (3, 1), (4, 0))),
    ]
    for a in range(4):
        assert float(draws[a].var()) == pytest.approx(1, abs=4 * math.sqrt(2 / n))
        for b in range(a):
            assert abs(float((draws[a] * draws[b]).mean())) < 4 / math.sqrt(n)


def test_a_step_is_pure_and_the_seed_is_a_value():
    x, grid = noisy_state(80.0), Grid.of(grids.karras(8))
    state = LOW.init(mixture, x, grid)
    for i in range(grid.steps):
        step = LOW.step(mixture, x, grid.interval(i), state)
        assert torch.equal(step.x, LOW.step(mixture, x, grid.interval(i), state).x)
        x, state = step.x, step.state
    assert LOW.seeded(3) == Restart(Heun(), LOW.cycles, seed=3) != LOW
    assert not torch.equal(run(LOW.seeded(3), mixture, x, grids.karras(8)), run(LOW, mixture, x, grids.karras(8)))


@pytest.mark.parametrize("method", [Heun(), DPMpp2M(), IPNDM(4)], ids=["heun", "2m", "ipndm"])
def test_linear_is_the_derivative_with_outputs_and_noise_held(method):
    solver = Restart(method, (Cycle(0.3, 3.0, 2, 3), Cycle(10.0, 30.0, 1, 2)))
    x, grid = noisy_state(80.0), Grid.of(grids.karras(7))
    state = solver.init(mixture, x, grid)
    for i in range(grid.steps):
        outputs = []

        def record(z, sigma, seen=outputs):
            seen.append(mixture(z, sigma))
            return seen[-1]

        step = solver.step(record, x, grid.interval(i), state)
        kept = iter(outputs)
        after = solver.step(lambda z, s, k=kept: next(k), x + 1.0, grid.interval(i), state)
        expected = solver.linear(grid.interval(i), state).expand_as(x)
        torch.testing.assert_close(after.x - step.x, expected, rtol=1e-8, atol=1e-8)
        x, state = step.x, step.state


def test_a_correction_wraps_it_and_bills_every_evaluation():
    x, sigmas = noisy_state(80.0), grids.karras(8)
    for rule in ("clamped", "clamped(mode=tweedie)", "energy(moment=4.0)"):
        wrapped = sd.Corrected(LOW, rule)
        assert wrapped.stochastic
        result = sd.sample(wrapped, mixture, x, sigmas, generator=generators(range(5)))
        assert result.stats.nfe == LOW.nfe(sigmas)
        assert bool(torch.isfinite(result.x).all())
    with pytest.raises(InputError, match=r"Corrected\(restart"):
        sd.sample(Restart(sd.Corrected("heun", "clamped")), mixture, x, sigmas)


def test_a_study_measures_no_endpoint_of_it(tmp_path):
    law = sd.analytic.GaussianMixture(
        torch.ones(2) / 2, torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.1 * torch.eye(2).repeat(2, 1, 1)
    )
    bed = testbed.Testbed("two", law, event_shape=(2,), digest="two, 1")
    config = Config(
        beds=("two",), solvers=("heun", "restart(heun, low=0.1, high=0.5, times=1)"), grids=("karras",), nfe=(12,),
        corrections=("none",), n=40, metrics=("energy", "endpoint"),
    )  # fmt: skip
    study = run_study(config, tmp_path, beds=[bed], progress=False)
    plain, restarted = study.results.values()
    assert (set(plain.values), set(restarted.values)) == ({"energy", "endpoint"}, {"energy"})
    assert plain.stats["nfe"] == restarted.stats["nfe"] == 12
    write_report(tmp_path, study)
    assert "restart" in (tmp_path / "report.md").read_text()


# ---------------------------------------------------------------- what is refused


def test_specs_reach_everything():
    assert solvers.make("restart") == Restart(Heun(), PUBLISHED["cifar10_edm"].cycles)
    assert solvers.make("restart(dpmpp_2m, low=0.1, high=1, times=3, steps=1)") == Restart(DPMpp2M(), (Cycle(0.1, 1, 3, 1),))
    assert solvers.make("restart(ddim, imagenet64_39, within=heun)").inflation == 1.003
    assert solvers.make("restart(ddim, imagenet64_39, inflation=1.0, within=heun)").within == Heun()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.make("restart(heun, cifar)"), "did you mean 'cifar10_"),
        (lambda: solvers.make("restart(heun, low=0.1)"), "give low and high"),
        (lambda: solvers.make("restart(universal)"), "unknown solver 'universal'"),
        (lambda: Restart(LOW), "deterministic"),
        (lambda: Restart(cycles=()), "at least one cycle"),
        (lambda: Restart(inflation=0.0), "inflation=0.0"),
        (lambda: Cycle(0.5, 0.5), "low < high"),
        (lambda: Cycle(times=0), "times=0"),
        (lambda: Cycle(steps=1.5), "steps=1.5"),
        (lambda: run(Restart(), gaussian, noisy_state(80.0), grids.from_list([80.0, 1.0])), "nearest level of this grid, 1,"),
        (lambda: run(Restart(), gaussian, noisy_state(80.0), grids.from_list([80.0, 0.0])), "a level above 0 after the first"),
        (lambda: run(Restart(cycles=(Cycle(), Cycle(0.15))), gaussian, noisy_state(80.0), grids.karras(9)), "two cycles begin"),
        (lambda: run(Restart(seed=(1, 2)), gaussian, noisy_state(80.0), grids.karras(9)), "2 seeds for a batch of 5"),
    ],
)
def test_bad_settings_of_restarts_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
