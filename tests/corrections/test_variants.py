"""Fast KM and self-consistency against their definitions (Boţ & Nguyen 2023; paper's Algorithm 2 and Props. D.4–D.6)."""

import math
from dataclasses import dataclass

import pytest
import torch

import steindiff as sd
from steindiff import grids, solvers
from steindiff.corrections import Chain, CleanTarget, Corrected, FastKM, FixedGamma, Reason, SelfConsistent
from steindiff.corrections.variants import compatibility, interpolated
from steindiff.errors import InputError, SteindiffError
from steindiff.solvers import Grid, Solver, Step

MODEL = sd.analytic.GaussianMixture(
    torch.tensor([0.4, 0.6], dtype=torch.float64),
    torch.tensor([[1.0, -1.0, 0.5], [-1.0, 0.5, 0.0]], dtype=torch.float64),
    torch.stack([0.2 * torch.eye(3, dtype=torch.float64), 0.1 * torch.eye(3, dtype=torch.float64)]),
)
X = sd.initial_noise(range(16), (3,), dtype=torch.float64)


@dataclass(frozen=True)
class Fixed(Solver):
    """A "solver" whose step is one fixed map: what the fixed-point iteration is made for."""

    matrix: torch.Tensor
    order: int = 1

    def init(self, denoiser, x, grid):
        return None

    def step(self, denoiser, x, interval, state):
        return Step(x @ self.matrix.T, x, None)

    def nfe(self, sigmas):
        return 0


def iterate(matrix, correction, x, n):
    solver = Corrected(Fixed(matrix), correction, frame="ve")
    grid = Grid.of(torch.ones(n + 1, dtype=torch.float64))
    state, xs = solver.init(None, x, grid), [x]
    for k in range(n):
        done = solver.step(None, x, grid.interval(k), state)
        x, state = done.x, done.state
        xs.append(x)
    return xs


@pytest.mark.parametrize(("a", "s"), [(3.0, 1.0), (2.5, 0.5), (10.0, 0.2)])
def test_fast_km_follows_its_formula_and_keeps_fixed_points(a, s):
    angle = torch.tensor(0.7, dtype=torch.float64)
    rotation = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    x = torch.tensor([[1.0, 2.0], [-0.5, 0.3]], dtype=torch.float64)
    xs = iterate(rotation, FastKM(a, s), x, 6)
    images = [z @ rotation.T for z in xs]
    for k in range(1, 6):
        c = s * a / (2 * (k + a))
        expected = (
            (1 - c) * xs[k] + (1 - s) * k / (k + a) * (xs[k] - xs[k - 1])
            + c * images[k] + s * k / (k + a) * (images[k] - images[k - 1])
        )  # fmt: skip
        assert torch.allclose(xs[k + 1], expected, atol=1e-14)
    identity = iterate(torch.eye(2, dtype=torch.float64), FastKM(a, s), x, 5)
    assert all(torch.allclose(z, x, atol=1e-14) for z in identity)


def test_fast_km_residual_falls_faster_than_the_plain_blend():
    """On a rotation, where x ↦ T(x) alone never converges: ‖x − T(x)‖ = o(1/k) against O(1/√k) for the averaged iteration."""
    angle = math.pi * 0.98
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    rotation = torch.block_diag(rotation, torch.tensor([[math.cos(0.02), -math.sin(0.02)], [math.sin(0.02), math.cos(0.02)]]))
    x = torch.ones(1, 4, dtype=torch.float64)
    fast = iterate(rotation, FastKM(3.0, 1.0), x, 400)[-1]
    averaged = x
    for _ in range(400):
        averaged = 0.5 * (averaged + averaged @ rotation.T)
    assert float((fast - fast @ rotation.T).norm()) < 0.5 * float((averaged - averaged @ rotation.T).norm())


def test_fast_km_first_step_is_half_way_as_documented():
    sigmas = grids.karras(3)
    plain = next(sd.steps("ddim", MODEL, X, sigmas)).step.x
    blended = next(sd.steps(Corrected("ddim", FastKM()), MODEL, X, sigmas)).step.x
    assert torch.allclose(blended, 0.5 * (X + plain), rtol=1e-14)


def test_interpolation_is_linear_in_log_sigma():
    """Prop. D.4: exact at both ends, and for a state linear in log σ."""
    start, end = 10.0, 0.1
    x, denoised = X[:2], torch.zeros(2, 3, dtype=torch.float64)
    jump = end / start * x
    for share in (0.0, 0.3, 1.0):
        middle = start ** (1 - share) * end**share
        got = interpolated(x, denoised, torch.tensor([start, middle, end], dtype=torch.float64))
        assert torch.allclose(got, (1 - share) * x + share * jump, rtol=1e-12)


def test_compatibility_is_one_at_agreement_and_falls_like_a_gaussian():
    """Prop. D.5."""
    delta = torch.tensor([[0.0, 0.0], [3.0, 4.0], [30.0, 40.0]], dtype=torch.float64)
    omega = compatibility(delta, torch.tensor(5.0, dtype=torch.float64))
    assert torch.allclose(omega, torch.tensor([1.0, math.exp(-0.5), math.exp(-50.0)], dtype=torch.float64))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc_2"])
def test_self_consistency_moves_by_eta_omega_delta(name, eta):
    """Prop. D.6: ‖x − x^S‖ = ηω‖δ‖, along δ, per sample; the last step is untouched."""
    sigmas = grids.karras(12, sigma_min=0.5)
    wrapped, base = Corrected(name, SelfConsistent(eta=eta, scale=2.0)), solvers.make(name)
    x, state, grid = X, None, Grid.of(sigmas)
    state = wrapped.init(MODEL, x, grid)
    for i in range(grid.steps):
        interval = grid.interval(i)
        proposal = base.step(MODEL, x, interval, state.inner)
        moved = wrapped.step(MODEL, x, interval, state)
        if interval.last:
            assert torch.equal(moved.x, proposal.x)
            break
        delta = interpolated(x, proposal.denoised, sigmas[i : i + 3]) - proposal.x
        omega = torch.exp(-delta.square().sum(1) / (2 * 4.0 * 3 * sigmas[i + 1] ** 2))
        assert torch.allclose(moved.x - proposal.x, eta * omega[:, None] * delta, atol=1e-12)
        assert torch.allclose(moved.note.numbers["weight"], eta * omega)
        x, state = moved.x, moved.state


def test_look_ahead_to_zero_is_skipped():
    sigmas = grids.with_zero(grids.karras(3))
    result = sd.sample(Corrected("ddim", SelfConsistent(eta=1.0)), MODEL, X, sigmas)
    assert bool(torch.isfinite(result.x).all())
    first_two = [e.step.x for e in sd.steps(Corrected("ddim", SelfConsistent(eta=1.0)), MODEL, X, sigmas)][:3]
    assert torch.equal(sd.solvers.make("ddim").step(MODEL, first_two[1], Grid.of(sigmas).interval(2), ()).x, first_two[2])


CLAMPED = CleanTarget(gamma_max=1.0)


def test_no_evaluation_is_added_and_the_correction_inside_is_traced():
    sigmas = grids.karras(5)
    for rule in (Chain(CLAMPED, SelfConsistent()), Chain(CLAMPED, FastKM()), Chain(CLAMPED, FastKM(), SelfConsistent())):
        solver = Corrected("dpmpp_2m", rule)
        result = sd.sample(solver, MODEL, X, sigmas, generator=torch.Generator().manual_seed(3))
        assert result.stats.nfe == 5 == solver.nfe(sigmas)
        assert result.stats.vjps == 5
        assert all(0 < r.gamma <= 1 and r.reason != "plain" for r in result.trace)
        assert solver.order == 2
    solver = Corrected("dpmpp_2m", Chain(CLAMPED, SelfConsistent()))
    a, b = (sd.sample(solver, MODEL, X, sigmas, generator=torch.Generator().manual_seed(k)) for k in (3, 4))
    assert [r.gamma_raw for r in a.trace] != [r.gamma_raw for r in b.trace]  # the probes' seed reaches the estimator


def test_a_chain_hands_each_part_what_the_part_before_has_made():
    """One step by hand: the blend first, then the look-ahead against the blended state."""
    sigmas = grids.karras(5)
    gammas = FixedGamma((0.5,) * 5)
    blended = next(sd.steps(Corrected("ddim", gammas), MODEL, X, sigmas)).step
    delta = interpolated(X, blended.denoised, sigmas[:3]) - blended.x
    omega = compatibility(delta, 3**0.5 * sigmas[1])
    chained = next(sd.steps(Corrected("ddim", Chain(gammas, SelfConsistent())), MODEL, X, sigmas)).step
    torch.testing.assert_close(chained.x, blended.x + 0.5 * omega[:, None] * delta)
    assert chained.note.reason == Reason.FIXED
    assert {"gamma", "weight"} <= chained.note.numbers.keys()


def test_a_chain_refuses_the_divergence_of_a_step_that_was_moved():
    for second in (CLAMPED, CleanTarget(gamma_max=1.0, mode="analytical")):
        with pytest.raises(SteindiffError, match="put the correction that needs it first"):
            sd.sample(Corrected("ddim", Chain(CLAMPED, second)), MODEL, X, grids.karras(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FastKM(a=2.0),
        lambda: FastKM(s=0.0),
        lambda: FastKM(s=1.5),
        lambda: SelfConsistent(eta=1.5),
        lambda: SelfConsistent(scale=0.0),
    ],
)
def test_bad_options_are_refused(make):
    with pytest.raises(InputError, match="need"):
        make()
