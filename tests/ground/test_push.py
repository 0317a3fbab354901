"""Runs that are fed evaluations: they end where `sample` ends, to the bit, and ask as often."""

import pytest
import torch

from steindiff import grids, sample, solvers
from steindiff.corrections import Chain, CleanTarget, Corrected, EpsilonScaling, FixedGamma, NoiseConsistent, make
from steindiff.denoisers import Counter, FromEps
from steindiff.errors import InputError
from steindiff.push import Fed, asked, share_of_noise
from steindiff.schedules import VPLinear
from steindiff.solvers import Statistics, Table
from steindiff.solvers.free import Free

EVENT = (2, 4, 4)
SIGMAS = grids.karras(6)


def _denoiser(schedule=None):
    weight = torch.randn(1, *EVENT, generator=torch.Generator().manual_seed(3))
    return FromEps(lambda x, t: torch.tanh(weight * x + t.reshape(-1, 1, 1, 1)) + 0.9 * x, schedule or VPLinear())


def _noise(n=3):
    return 80 * torch.randn(n, *EVENT, generator=torch.Generator().manual_seed(5))


def _fed(solver, denoiser, x, sigmas, **how):
    run, seen = Fed.start(solver, x, sigmas, denoiser, **how), []
    while run.query is not None:
        seen.append(run.query)
        run = run.told(denoiser(*run.query))
    return run.x, seen


def _statistics():
    levels = tuple(grids.karras(12).tolist())
    return Statistics.constant(0.9, -0.1, 0.05, levels, EVENT)


NAMED = {name: (solvers.make(name), SIGMAS) for name in solvers.names()}
OTHERS = {
    "universal": solvers.make("universal").plan(5),
    "free": solvers.make("free(dpmpp_3m)").plan(5),
    "auto": solvers.make("auto").plan(4),
    "pndm": (solvers.make("pndm"), SIGMAS),
    "pndm(2) to zero": (solvers.make("pndm(2)"), grids.with_zero(SIGMAS)),
    "heun to zero": (solvers.make("heun"), grids.with_zero(SIGMAS)),
    "dpmpp_3s with a tail": (solvers.DPMpp3S(tail=(2,)), SIGMAS),
    "unipc_3 refreshed": (solvers.make("unipc_3(stored=refresh)"), SIGMAS),
    "unip": (solvers.make("unipc_2(corrector=False)"), SIGMAS),
    "evodiff": (solvers.make("evodiff"), SIGMAS),
    "dpm_v3": (solvers.DPMSolverV3(_statistics()), SIGMAS),
    "restart": (solvers.make("restart(heun, low=0.5, high=2.0)"), SIGMAS),
}
METHODS = {**NAMED, **OTHERS}


@pytest.mark.parametrize("name", METHODS)
def test_a_fed_run_ends_where_sample_does_to_the_bit(name):
    solver, sigmas = METHODS[name]
    x, counter = _noise(), Counter(_denoiser())
    expected = sample(solver, counter, x, sigmas)
    end, seen = _fed(solver, _denoiser(), x, sigmas)
    assert torch.equal(end, expected.x)
    assert len(seen) == counter.calls == expected.stats.nfe
    before = asked(solver, sigmas)
    assert [a.sigma for a in before] == [float(query.sigma) for query in seen]


CORRECTIONS = {
    "tweedie": make("tweedie"),
    "clamped": make("clamped(mode=tweedie)"),
    "analytical": make("analytical"),
    "fast_km": make("fast_km"),
    "noise_consistent": NoiseConsistent(gamma_max=1.5, mode="tweedie"),
    "energy": make("energy(moment=9.0, significance=0.0)"),
    "energy of bands": make("energy(moment=(3.0, 5.0), bands=channels, significance=0.0)"),
    "epsilon scaling": EpsilonScaling(1.01),
    "dcw": make("dcw"),
    "fixed": FixedGamma((0.9, 1.0, 0.95, 1.0, 0.8, 1.0)),
    "sparse": make("sparse(tweedie, below=5.0)"),
    "self-consistent": make("self_consistent"),
    "bot_nguyen": make("bot_nguyen"),
    "chain": Chain(CleanTarget(mode="tweedie", gamma_max=1.0), EpsilonScaling(1.01)),
}


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc_2", "heun"])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_without_derivatives_are_fed_too(name, solver):
    corrected = Corrected(solver, CORRECTIONS[name])
    x = _noise()
    end, _ = _fed(corrected, _denoiser(), x, SIGMAS)
    assert torch.equal(end, sample(corrected, _denoiser(), x, SIGMAS).x)
    assert not torch.equal(end, sample(solver, _denoiser(), x, SIGMAS).x)


def test_the_frame_of_a_correction_is_that_of_the_schedule():
    corrected, x = Corrected("dpmpp_2m", "tweedie"), _noise()
    ends = {frame: _fed(Corrected("dpmpp_2m", "tweedie", frame=frame), _denoiser(), x, SIGMAS)[0] for frame in ("model", "ve")}
    assert torch.equal(ends["model"], sample(corrected, _denoiser(), x, SIGMAS).x)
    assert not torch.equal(ends["model"], ends["ve"])


@pytest.mark.parametrize("rule", ["clamped", "energy", "noise_consistent", "sparse(adaptive, below=3.0)"])
def test_corrections_that_differentiate_are_refused_with_a_way_to_run_them(rule):
    with pytest.raises(InputError, match=r"takes derivatives.*mode=tweedie.*integrations\.diffusers\.denoiser"):
        Fed.start(Corrected("dpmpp_2m", rule), _noise(), SIGMAS, _denoiser())


def test_a_correction_after_a_free_step_is_refused_as_well():
    inner, sigmas = Free(solver=Corrected("dpmpp_2m", "clamped(history=frozen)")).plan(5)
    with pytest.raises(InputError, match="takes derivatives"):
        Fed.start(inner, _noise(), sigmas, _denoiser())


@pytest.mark.parametrize("name", ["restart", "dpmpp_2m"])
def test_generators_seed_a_fed_run_as_they_seed_sample(name):
    solver, sigmas = METHODS[name]
    x = _noise(2)
    for seeds in (7, [8, 9]):
        make_ = (lambda s: torch.Generator().manual_seed(s)) if isinstance(seeds, int) else _several
        end, _ = _fed(solver, _denoiser(), x, sigmas, generator=make_(seeds))
        assert torch.equal(end, sample(solver, _denoiser(), x, sigmas, generator=make_(seeds)).x)


def _several(seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def test_half_precision_is_for_the_network_and_not_for_the_state():
    x = _noise()
    run = Fed.start(solvers.make("dpmpp_2m"), x, SIGMAS)
    with pytest.raises(InputError, match=r"torch\.float16.*torch\.float32"):
        run.told(torch.zeros_like(x, dtype=torch.float16))
    with pytest.raises(InputError, match=r"told \(1, 2, 4, 4\)"):
        run.told(torch.zeros_like(x[:1]))


def test_a_run_that_is_over_takes_nothing_more():
    solver, sigmas = solvers.make("ddim"), grids.karras(1)
    run = Fed.start(solver, _noise(), sigmas).told(torch.zeros(3, *EVENT))
    assert run.query is None
    with pytest.raises(InputError, match="the run is over"):
        run.told(torch.zeros(3, *EVENT))
    with pytest.raises(InputError, match="the run is over"):
        run.moved(torch.zeros(3, *EVENT))


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc_2", "heun", "dpmpp_2s", "universal"])
def test_a_change_from_outside_is_not_forgotten(name):
    """The corrector of UniPC and the second half of Heun's step go back to the start of the step."""
    solver, sigmas = METHODS[name]
    constant, x = torch.full((3, *EVENT), 0.5), _noise()
    for place in range(len(asked(solver, sigmas))):
        runs = []
        for change in (0.0, 1.0):
            run, i = Fed.start(solver, x, sigmas), 0
            while run.query is not None:
                run = run.moved(torch.full_like(x, change)) if i == place else run
                run, i = run.told(constant), i + 1
            runs.append(run.x)
        assert bool(((runs[1] - runs[0]).abs() > 1e-6).all()), f"the change at evaluation {place} is lost"


def test_a_change_at_the_start_of_a_step_is_a_change_of_the_state():
    x, change = _noise(), torch.randn(3, *EVENT, generator=torch.Generator().manual_seed(1))
    denoiser, solver = _denoiser(), solvers.make("dpmpp_2m")
    run = Fed.start(solver, x, SIGMAS, denoiser).moved(change)
    assert run.query is not None
    while run.query is not None:
        run = run.told(denoiser(*run.query))
    assert torch.equal(run.x, sample(solver, denoiser, x + change, SIGMAS).x)


def test_what_a_run_will_ask_is_known_before():
    table = Table.universal(5)
    listed = asked(table.solver, table.sigmas)
    assert [a.step for a in listed] == [1, 2, 3, 4, 5]
    assert share_of_noise(table.solver, table.sigmas) == pytest.approx(table.solver.rows[0].a)
    mean = Table.universal(5, mean=torch.full((2, 1, 1), 3.0)).solver
    assert share_of_noise(mean, table.sigmas) == pytest.approx(table.solver.rows[0].a)
    assert share_of_noise(solvers.make("dpmpp_2m"), SIGMAS) == 1
    assert listed[0].sigma == pytest.approx(table.solver.told[1] * table.solver.levels[1])
    heun = asked(solvers.make("heun"), grids.karras(2))
    assert [(a.step, a.first) for a in heun] == [(0, True), (0, False), (1, True), (1, False)]
    assert [a.sigma for a in heun] == pytest.approx([80.0, *[float(grids.karras(2)[1])] * 2, 0.002])


def test_a_table_keeps_its_purpose():
    """What a denoiser says of itself is read, though it is not called."""
    table = Table.universal(4)
    mine = solvers.Tabulated(table.solver.levels, table.solver.rows, table.solver.told, purpose=solvers.Purpose(guidance=2.0))
    with pytest.raises(InputError, match=r"calibrated for guidance 2\.0, and this run has guidance 1\.0"):
        Fed.start(mine, _noise(), table.sigmas, _denoiser())
