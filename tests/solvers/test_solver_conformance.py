"""What every solver promises: declared cost, no state of its own, exactness where D is constant, derivatives."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from problems import gaussian, mixture, noisy_state, run
from steindiff import grids, sampling, solvers
from steindiff.corrections import CleanTarget, Corrected
from steindiff.denoisers import Counter
from steindiff.divergence import Choice, Exact
from steindiff.divergence.products import mapped
from steindiff.errors import InputError
from steindiff.solvers import DDIM, DEIS, IPNDM, PNDM, DPMpp2S, DPMpp3M, DPMpp3S, Grid, Heun, UniPC
from steindiff.solvers.coefficients import phi

# Every registered name, and the settings `make` does not reach.
SOLVERS = {
    **{name: solvers.make(name) for name in solvers.names()},
    "dpmpp_3m, exact": DPMpp3M(exact=True, lower_order_final=False),
    "dpmpp_2s, tail": DPMpp2S(tail=(1,)),
    "dpmpp_3s, tail": DPMpp3S(tail=(2, 1)),
    "heun, euler at end": Heun(euler_at_end=True),
    "unipc_3, bh1, no corrector": UniPC(3, "bh1", corrector=False),
    "unipc_2, refresh": UniPC(2, stored="refresh"),
    "unipc_3, not lowered": UniPC(3, lower_order_final=False),
    "deis_3, sigma": DEIS(3, "sigma"),
    "deis_4, log_sigma, lowered": DEIS(4, "log_sigma", lower_order_final=True),
    "pndm": PNDM(),
    "pndm, sigma": PNDM(middle="sigma"),
    "s-pndm": PNDM(2),
}
ENDS = {
    "min": lambda n: grids.karras(n),
    "zero": lambda n: grids.with_zero(grids.karras(n - 1)) if n > 1 else torch.tensor([80.0, 0.0], dtype=torch.float64),
}

every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
every_end = pytest.mark.parametrize("end", ENDS)


def _steps(solver, denoiser, x, sigmas):
    """(x before, interval, state before, step) for every step."""
    grid = Grid.of(sigmas)
    state = solver.init(denoiser, x, grid)
    for i in range(grid.steps):
        interval = grid.interval(i)
        step = solver.step(denoiser, x, interval, state)
        yield x, interval, state, step
        x, state = step.x, step.state


@every_solver
@every_end
@pytest.mark.parametrize("n", [1, 2, 3, 5, 20])
def test_nfe_is_as_declared(solver, end, n):
    sigmas = ENDS[end](n)
    counter = Counter(mixture)
    x = run(solver, counter, noisy_state(80.0), sigmas)
    assert counter.calls == solver.nfe(sigmas)
    assert bool(torch.isfinite(x).all())
    assert sampling.sample(solver, mixture, noisy_state(80.0), sigmas).stats.nfe == solver.nfe(sigmas)


def test_nfe_by_hand():
    to_min, to_zero = (ENDS[end](5) for end in ("min", "zero"))
    expected = {"ddim": (5, 5), "heun": (10, 9), "dpmpp_2s": (10, 9), "dpmpp_3s": (15, 13)}
    for name in solvers.names():
        solver = solvers.make(name)
        assert (solver.nfe(to_min), solver.nfe(to_zero)) == expected.get(name, (5, 5)), name
    assert Heun(euler_at_end=True).nfe(to_min) == 9
    assert DPMpp3S(tail=(2, 1)).nfe(to_min) == 12
    assert UniPC(stored="refresh").nfe(to_min) == 9
    assert [PNDM(order).nfe(sigmas) for order in (4, 2) for sigmas in (to_min, to_zero)] == [14, 14, 6, 6]
    assert [PNDM(order).nfe(ENDS["zero"](1)) for order in (4, 2)] == [1, 1]
    assert PNDM().nfe(ENDS["zero"](3)) == 9


@every_solver
def test_interleaved_runs_equal_separate_runs(solver):
    grids_ = [ENDS["zero"](6), grids.log_snr(6, 0.1, 20.0)]
    starts = [noisy_state(80.0, seed=1), noisy_state(20.0, batch=3, seed=2)]
    alone = [[step.x for *_, step in _steps(solver, mixture, x, s)] for x, s in zip(starts, grids_, strict=True)]
    pairs = zip(*(_steps(solver, mixture, x, s) for x, s in zip(starts, grids_, strict=True)), strict=True)
    together = [[run_.x for *_, run_ in pair] for pair in pairs]
    for i, pair in enumerate(together):
        assert torch.equal(pair[0], alone[0][i])
        assert torch.equal(pair[1], alone[1][i])


@every_solver
def test_solvers_are_values(solver):
    assert dataclasses.replace(solver) == solver
    assert hash(dataclasses.replace(solver)) == hash(solver)
    assert solver.seeded(3) is solver
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.order = 7


@every_solver
def test_step_is_pure(solver):
    """The same inputs give the same outputs, bitwise, and are left as they were."""
    for x, interval, state, step in _steps(solver, mixture, noisy_state(80.0), ENDS["zero"](5)):
        kept = [z.clone() for z in (x, *(state or ()))]
        again = solver.step(mixture, x, interval, state)
        assert torch.equal(again.x, step.x)
        assert torch.equal(again.denoised, step.denoised)
        assert all(torch.equal(a, b) for a, b in zip((x, *(state or ())), kept, strict=True))


@every_solver
@every_end
def test_batch_permutation(solver, end):
    x, order = noisy_state(80.0), torch.tensor([3, 0, 4, 2, 1])
    sigmas = ENDS[end](6)
    torch.testing.assert_close(run(solver, mixture, x[order], sigmas), run(solver, mixture, x, sigmas)[order])


@every_solver
@every_end
def test_dtypes(solver, end):
    sigmas = ENDS[end](8)
    double = run(solver, mixture, noisy_state(80.0), sigmas)
    single = run(solver, mixture, noisy_state(80.0).float(), sigmas)
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(single.double(), double, rtol=2e-4, atol=2e-4)


@every_solver
def test_last_step_to_zero(solver):
    """Every method becomes DDIM there, x = D, but iPNDM and PNDM, whose constant coefficients go on: x = x − σ Σ_j c_j ε̂_j."""
    *_, (x, interval, state, step) = _steps(solver, mixture, noisy_state(80.0), ENDS["zero"](6))
    expected = step.denoised
    if isinstance(solver, (IPNDM, PNDM)):
        noise = [r / s for r, s in zip([x - step.denoised, *state], reversed(interval.grid.levels[:-1]), strict=False)]
        weights = {1: [1.0], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
        expected = x - interval.sigma * sum(w * e for w, e in zip(weights[solver.order], noise, strict=True))
    torch.testing.assert_close(step.x, expected, rtol=1e-12, atol=1e-12)


@every_solver
def test_one_step(solver):
    """No history: a multistep method takes DDIM's step."""
    sigmas, x = grids.from_list([5.0, 1.0]), noisy_state(5.0)
    out = run(solver, mixture, x, sigmas)
    more_stages = isinstance(solver, (Heun, DPMpp2S, DPMpp3S, PNDM)) and solver.nfe(sigmas) > 1
    if more_stages:
        assert not torch.allclose(out, run(DDIM(), mixture, x, sigmas), rtol=1e-3)
    else:
        torch.testing.assert_close(out, run(DDIM(), mixture, x, sigmas), rtol=1e-12, atol=1e-12)


class _Frozen:
    """Returns what the calls of one evaluation of a step returned, whatever it is asked now."""

    def __init__(self):
        self.outputs, self.replay = [], None

    def __call__(self, x, sigma):
        if self.replay is not None:
            return next(self.replay)
        self.outputs.append(mixture(x, sigma))
        return self.outputs[-1]


@every_solver
@every_end
def test_linear_is_the_derivative_with_outputs_frozen(solver, end):
    """With its network outputs held fixed a step is affine in x, so a finite difference is exact."""
    for x, interval, state, _ in _steps(solver, mixture, noisy_state(80.0), ENDS[end](6)):
        frozen = _Frozen()
        before = solver.step(frozen, x, interval, state).x
        frozen.replay = iter(frozen.outputs)
        shift = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype) * interval.sigma
        after = solver.step(frozen, x + shift, interval, state).x
        torch.testing.assert_close(after - before, solver.linear(interval, state) * shift, rtol=1e-9, atol=1e-9)


@every_solver
def test_no_graph_is_kept(solver):
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    x = noisy_state(80.0).requires_grad_()
    result = sampling.sample(solver, lambda z, s: weight * mixture(z, s), x, ENDS["zero"](5))
    assert not result.x.requires_grad
    assert result.x.grad_fn is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode
@every_solver
def test_derivatives_agree(solver):
    """vᵀJw by reverse mode, forward mode and central differences, for every step of a run."""
    generator = torch.Generator().manual_seed(3)
    for x, interval, state, _ in _steps(solver, mixture, noisy_state(5.0), grids.log_snr(5, 0.2, 5.0)):
        v, w = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2))

        def move(z, at=interval, with_state=state):
            return solver.step(mixture, z, at, with_state).x

        leaf = x.clone().requires_grad_()
        reverse = (torch.autograd.grad(move(leaf), leaf, v)[0] * w).sum()
        with forward_ad.dual_level():
            forward = (v * forward_ad.unpack_dual(move(forward_ad.make_dual(x, w))).tangent).sum()
        h = 1e-5
        difference = (v * (move(x + h * w) - move(x - h * w))).sum() / (2 * h)
        torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(difference, reverse, rtol=1e-6, atol=1e-7)


FREE = Choice("vjp", {"vjp": 1.0}, {})


@dataclasses.dataclass(frozen=True)
class Drifting(solvers.Solver):
    """DDIM with a state of its own kind, which it uses at every step but the first: nothing is said of `remembers`."""

    order = 1

    def init(self, denoiser, x, grid):
        return {"count": 0, "values": []}

    def step(self, denoiser, x, interval, state):
        step = solvers.DDIM().step(denoiser, x, interval, ())
        moved = sum(state["values"], step.x)
        return step._replace(x=moved, state={"count": state["count"] + 1, "values": [0.1 * step.denoised]})

    def nfe(self, sigmas):
        return len(sigmas) - 1


FREE_RUN = solvers.make("free(dpmpp_3m)").plan(8)
OTHERS = {
    "free": FREE_RUN,
    "own": (Drifting(), None),
    "corrected": (Corrected("unipc_2", CleanTarget(mode="tweedie")), None),
    "one that keeps states": (Corrected("ddim", "bot_nguyen"), None),
}


@pytest.mark.parametrize("name", [*SOLVERS, *OTHERS])
@every_end
def test_a_step_remembers_what_moves_it(name, end):
    """T changes with the tensors of the state where `remembers` is true, and nowhere else."""
    solver, sigmas = OTHERS.get(name) or (SOLVERS[name], None)
    seen = set()
    for x, interval, state, step in _steps(solver, mixture, noisy_state(80.0), ENDS[end](8) if sigmas is None else sigmas):
        other = solver.step(mixture, x, interval, mapped(lambda z: z + 0.1 + z.square(), state))
        remembers = solver.remembers(interval, state)
        assert remembers == (not torch.equal(other.x, step.x))
        seen.add(remembers)
    one_step = isinstance(solver, (Heun, DPMpp2S, DPMpp3S)) or (
        solver.order == 1 and not isinstance(solver, (UniPC, Drifting, Corrected))
    )
    assert seen == ({False} if one_step else {False, True})


def _trace_by_differences(step, x):
    """tr ∂T/∂x per sample, by central differences of fourth order along every coordinate."""
    h, total = 1e-4 * (1 + x.abs().max()), torch.zeros(len(x), dtype=x.dtype)
    for e in torch.eye(x.shape[1], dtype=x.dtype):
        near, far = ((step(x + c * h * e) - step(x - c * h * e)) @ e for c in (1, 2))
        total += (8 * near - far) / (12 * h)
    return total


@every_solver
@every_end
def test_the_divergence_of_eq_11_is_that_of_the_finished_step(solver, end):
    """At every step of a corrected run: E[∇·u] = d − E[tr ∂T/∂x] by differences, with the history which that run has frozen.

    T is the whole step, every stage and UniPC's corrector, and γ is made of this number. First step, warm-up, full history,
    lowered order, last step. (Frames and VP models, at one step: tests/test_correction.py.)
    """
    corrected, history = Corrected(solver, CleanTarget(gamma_max=0.9, history="frozen"), divergence=Exact(FREE)), []
    for x, interval, state, step in _steps(corrected, mixture, noisy_state(80.0), ENDS[end](8)):

        def move(z, at=interval, frozen=state.inner):
            return solver.step(mixture, z, at, frozen).x

        numbers = step.note.numbers
        expected = 3 - _trace_by_differences(move, x).mean()
        torch.testing.assert_close(numbers["div"], expected, rtol=1e-6, atol=1e-8)
        uu = (x - move(x)).square().sum(1).mean()
        torch.testing.assert_close(numbers["gamma_raw"], interval.sigma**2 * expected / uu, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(step.x, torch.lerp(x, move(x), numbers["gamma"]))
        history.append(len(state.inner or ()))
    assert history[0] == 0
    if step.state.inner is not None:  # step 4 of 8: full order, not yet lowered
        assert history[4] >= solver.order - 1


@every_solver
@every_end
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_constant_denoiser_is_exact(solver, end, n):
    """D = c: y − c shrinks with σ, whatever the steps."""
    c = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    x, sigmas = noisy_state(80.0), ENDS[end](n)
    out = run(solver, lambda z, s: c.expand_as(z), x, sigmas)
    torch.testing.assert_close(out, c + sigmas[-1] / sigmas[0] * (x - c), rtol=1e-11, atol=1e-11)


@every_solver
def test_gaussian_flow(solver):
    """x* ~ N(m, v): (y − m)/√(v + σ²) is constant along the flow; the error falls with the steps and ends small."""
    x, errors = noisy_state(80.0), []
    for n in (10, 20, 80):
        out = run(solver, gaussian, x, grids.karras(n))
        errors.append(float((out - (0.3 + ((0.25 + 0.002**2) / (0.25 + 80.0**2)) ** 0.5 * (x - 0.3))).abs().max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < (0.05 if solver.order == 1 else 0.005)


def _gauss(f, start, end, panels=40):
    """∫ f by composite Gauss–Legendre quadrature, float64."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(start, end, panels + 1)
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    return float((half[:, None] * weights * f(middle[:, None] + half[:, None] * nodes)).sum())


def _vp_time(sigma):
    """The time at which √(e^B − 1) = σ, B = (β₁−β₀)t²/2 + β₀t, β₀ = 0.1, β₁ = 20."""
    return (np.sqrt(0.01 + 2 * 19.9 * np.log1p(sigma**2)) - 0.1) / 19.9


@pytest.mark.parametrize("variable, s", [("vp_time", _vp_time), ("sigma", lambda z: z), ("log_sigma", np.log)])
@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("n", [4, 20])
def test_deis_integrates_polynomials_in_its_variable(variable, s, order, n):
    """ε = s^m gives x' − x = ∫ s(σ)^m dσ for every m < order, on short grids too, whose steps span decades of σ."""
    sigmas = grids.karras(n)
    grid, solver = Grid.of(sigmas), DEIS(order, variable)
    for i in range(order - 1, n):
        interval = grid.interval(i)
        levels = sigmas[i - order + 1 : i + 1].flip(0).numpy()
        for m in range(order):
            eps = [torch.tensor([[float(z)]], dtype=torch.float64) for z in s(levels) ** m]
            x = torch.zeros(1, 1, dtype=torch.float64)
            earlier = tuple(at * e for at, e in zip(levels[1:], eps[1:], strict=True))
            step = solver.step(lambda z, at, e=eps[0]: z - at * e, x, interval, earlier)
            ends = float(interval.sigma.log()), float(interval.sigma_next.log())
            expected = _gauss(lambda u, m=m: s(np.exp(u)) ** m * np.exp(u), *ends)
            assert float(step.x) == pytest.approx(expected, rel=1e-9, abs=1e-12 * float(interval.sigma))


@pytest.mark.parametrize("h", [1e-8, 1e-3, 0.0999, 0.1001, 0.5, 2.0, 10.0])
def test_phi(h):
    """φ_k = ∫₀¹ h e^(−h(1−s)) s^k ds on both sides of the change from series to recursion."""
    values = phi(h, 3)
    for k, value in enumerate(values):
        assert float(value) == pytest.approx(_gauss(lambda z, k=k: h * np.exp(-h * (1 - z)) * z**k, 0.0, 1.0), rel=1e-11)


def test_names_make_and_order():
    for name in solvers.names():
        solver = solvers.make(name)
        digits = [c for c in name.split("_")[-1] if c.isdigit()]
        assert solver.order == (int(digits[0]) if digits else {"ddim": 1, "heun": 2}[name])
    with pytest.raises(InputError, match="unknown solver 'dpmp_2m': did you mean 'dpmpp_2m'"):
        solvers.make("dpmp_2m")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DEIS(order=5), "order=5"),
        (lambda: DEIS(variable="time"), "variable='time'"),
        (lambda: IPNDM(order=0), "order=0"),
        (lambda: UniPC(order=4), "order=4"),
        (lambda: UniPC(variant="bh3"), "variant='bh3'"),
        (lambda: UniPC(stored="drop"), "stored='drop'"),
        (lambda: DPMpp2S(tail=(3,)), r"tail=\(3,\)"),
        (lambda: DPMpp3S(tail=(0,)), r"tail=\(0,\)"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
