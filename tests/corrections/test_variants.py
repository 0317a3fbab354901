"""Self-consistency and the iteration of Boţ & Nguyen against their definitions, and what each of them does to a run."""

import math
from dataclasses import dataclass

import pytest
import torch

import steindiff as sd
from steindiff import corrections, grids, solvers
from steindiff.corrections import BotNguyen, Chain, CleanTarget, Corrected, FixedGamma, Reason, SelfConsistent
from steindiff.corrections.variants import compatibility, interpolated
from steindiff.errors import InputError, SteindiffError
from steindiff.solvers import Grid, Solver, Step

MODEL = sd.analytic.GaussianMixture(
    torch.tensor([0.4, 0.6], dtype=torch.float64),
    torch.tensor([[1.0, -1.0, 0.5], [-1.0, 0.5, 0.0]], dtype=torch.float64),
    torch.stack([0.2 * torch.eye(3, dtype=torch.float64), 0.1 * torch.eye(3, dtype=torch.float64)]),
)
X = sd.initial_noise(range(16), (3,), dtype=torch.float64)
VARIANCES = 1 / torch.arange(1, 65, dtype=torch.float64)
WIDE = sd.analytic.Gaussian(torch.zeros(64, dtype=torch.float64), VARIANCES.diag())
"""64 dimensions, root mean square 0.27."""
START = sd.initial_noise(range(32), (64,), dtype=torch.float64)


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
def test_bot_nguyen_follows_its_formula_and_keeps_fixed_points(a, s):
    angle = torch.tensor(0.7, dtype=torch.float64)
    rotation = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    x = torch.tensor([[1.0, 2.0], [-0.5, 0.3]], dtype=torch.float64)
    xs = iterate(rotation, BotNguyen(a, s), x, 6)
    images = [z @ rotation.T for z in xs]
    for k in range(1, 6):
        c = s * a / (2 * (k + a))
        expected = (
            (1 - c) * xs[k] + (1 - s) * k / (k + a) * (xs[k] - xs[k - 1])
            + c * images[k] + s * k / (k + a) * (images[k] - images[k - 1])
        )  # fmt: skip
        assert torch.allclose(xs[k + 1], expected, atol=1e-14)
    identity = iterate(torch.eye(2, dtype=torch.float64), BotNguyen(a, s), x, 5)
    assert all(torch.allclose(z, x, atol=1e-14) for z in identity)


def test_bot_nguyen_residual_falls_faster_than_the_plain_blend():
    """On a rotation, where x ↦ T(x) alone never converges: ‖x − T(x)‖ = o(1/k) against O(1/√k) for the averaged iteration."""
    angle = math.pi * 0.98
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    rotation = torch.block_diag(rotation, torch.tensor([[math.cos(0.02), -math.sin(0.02)], [math.sin(0.02), math.cos(0.02)]]))
    x = torch.ones(1, 4, dtype=torch.float64)
    fast = iterate(rotation, BotNguyen(3.0, 1.0), x, 400)[-1]
    averaged = x
    for _ in range(400):
        averaged = 0.5 * (averaged + averaged @ rotation.T)
    assert float((fast - fast @ rotation.T).norm()) < 0.5 * float((averaged - averaged @ rotation.T).norm())


def test_bot_nguyen_first_step_is_half_way_as_documented():
    sigmas = grids.karras(3)
    plain = next(sd.steps("ddim", MODEL, X, sigmas)).step.x
    blended = next(sd.steps(Corrected("ddim", BotNguyen()), MODEL, X, sigmas)).step.x
    assert torch.allclose(blended, 0.5 * (X + plain), rtol=1e-14)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_bot_nguyen_has_a_wrong_limit(name):
    """The noise of its first half step stays: the spread does not tend to the law's, whatever the number of steps."""
    spreads = [
        float(sd.sample(Corrected(name, "bot_nguyen"), WIDE, START, grids.karras(n)).x.square().mean().sqrt())
        for n in (40, 160)
    ]
    right = float(sd.sample(name, WIDE, START, grids.karras(160)).x.square().mean().sqrt())
    assert right == pytest.approx(0.27, abs=0.01)
    assert spreads == pytest.approx([22, 22], abs=3)
    trace = sd.sample(Corrected(name, "bot_nguyen"), WIDE, START, grids.karras(5)).trace
    assert {(r.gamma, r.reason) for r in trace} == {(1.0, "fixed")}  # no coefficient of the paper's is in it


def test_fast_km_is_the_analytical_blend_without_an_upper_bound():
    """Our reading of the paper's fast KM: (1−γ) x + γ T(x), γ from the linear part's divergence (1 − r) d, by hand."""
    sigmas = grids.karras(4)
    run = sd.sample(Corrected("ddim", "fast_km"), WIDE, START, sigmas)
    x, gammas = START, []
    for i in range(4):
        r = sigmas[i + 1] / sigmas[i]
        u = (1 - r) * (x - WIDE(x, sigmas[i]))
        gammas.append(sigmas[i] ** 2 * (1 - r) * 64 / u.square().sum(1).mean())
        x = x - gammas[-1] * u
    torch.testing.assert_close(run.x, x)
    assert [r.gamma for r in run.trace] == pytest.approx([float(gamma) for gamma in gammas])
    assert max(gammas) > 1.2
    assert (run.stats.vjps, run.stats.jvps) == (0, 0)


def test_interpolation_is_linear_in_log_sigma():
    """Prop. D.4: exact at both ends, and for a state linear in log σ."""
    start, end = 10.0, 0.1
    for share in (0.0, 0.3, 1.0):
        middle = start ** (1 - share) * end**share
        got = interpolated(X[:2], X[2:4], (start, middle, end))
        assert torch.allclose(got, (1 - share) * X[:2] + share * X[2:4], rtol=1e-12)


def test_compatibility_is_one_at_agreement_and_falls_like_a_gaussian():
    """Prop. D.5."""
    delta = torch.tensor([[0.0, 0.0], [3.0, 4.0], [30.0, 40.0]], dtype=torch.float64)
    omega = compatibility(delta, torch.tensor(5.0, dtype=torch.float64))
    assert torch.allclose(omega, torch.tensor([1.0, math.exp(-0.5), math.exp(-50.0)], dtype=torch.float64))
    narrow = compatibility(
        torch.full((1, 4), 200.0, dtype=torch.float16), torch.tensor(400.0)
    )  # ‖δ‖² = 160000 overflows float16
    assert float(narrow) == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("look_ahead", ["state", "proposal"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc_2"])
def test_self_consistency_moves_by_eta_omega_delta(name, eta, look_ahead):
    """Prop. D.6: ‖x − x^S‖ = ηω‖δ‖, along δ, per sample; the last step is untouched."""
    sigmas = grids.karras(12, sigma_min=0.5)
    rule = SelfConsistent(eta=eta, scale=2.0, look_ahead=look_ahead)
    wrapped, base = Corrected(name, rule), solvers.make(name)
    x, state, grid = X, None, Grid.of(sigmas)
    state = wrapped.init(MODEL, x, grid)
    for i in range(grid.steps):
        interval = grid.interval(i)
        proposal = base.step(MODEL, x, interval, state.inner)
        moved = wrapped.step(MODEL, x, interval, state)
        if interval.last:
            assert torch.equal(moved.x, proposal.x)
            break
        delta = ahead(x, proposal, sigmas[i : i + 3], look_ahead) - proposal.x
        omega = torch.exp(-delta.square().sum(1) / (2 * 4.0 * 3 * sigmas[i + 1] ** 2))
        assert torch.allclose(moved.x - proposal.x, eta * omega[:, None] * delta, atol=1e-12)
        assert torch.allclose(moved.note.numbers["weight"], eta * omega)
        x, state = moved.x, moved.state


def ahead(x, proposal, levels, look_ahead="state"):
    """x^tr by hand."""
    first, middle, last = levels
    w = (first / middle).log() / (first / last).log()
    start, level = (x, first) if look_ahead == "state" else (proposal.x, middle)
    return (1 - w) * x + w * (proposal.denoised + last / level * (start - proposal.denoised))


def test_both_look_aheads_of_a_first_order_step_are_one():
    runs = [
        sd.sample(Corrected("ddim", SelfConsistent(look_ahead=at)), MODEL, X, grids.karras(6)).x for at in ("state", "proposal")
    ]
    assert torch.allclose(*runs, rtol=1e-12)
    second = sd.sample(Corrected("dpmpp_2m", SelfConsistent(look_ahead="proposal")), MODEL, X, grids.karras(6)).x
    assert not torch.allclose(
        sd.sample(Corrected("dpmpp_2m", SelfConsistent()), MODEL, X, grids.karras(6)).x, second, rtol=1e-3
    )


def test_the_defaults_of_self_consistency_are_the_weight_omega_alone():
    """x = x^S + ω δ with τ = √d σ': no η, no scale."""
    sigmas = grids.karras(12, sigma_min=0.5)
    event = next(sd.steps(Corrected("dpmpp_2m", "self_consistent(proposal=none)"), MODEL, X, sigmas))
    base = solvers.make("dpmpp_2m")
    proposal = base.step(MODEL, X, event.interval, base.init(MODEL, X, event.interval.grid))
    delta = ahead(X, proposal, sigmas[:3]) - proposal.x
    omega = torch.exp(-delta.square().sum(1) / (2 * 3 * sigmas[1] ** 2))
    assert torch.allclose(event.step.x - proposal.x, omega[:, None] * delta, atol=1e-12)


def test_the_scale_counts_every_number_of_an_image():
    """τ = √d σ', d all of 1 × 3 × 1: the weight is the one of the flat state."""
    sigmas = grids.karras(12, sigma_min=0.5)
    solver = Corrected("dpmpp_2m", "self_consistent(proposal=none)", frame="ve")
    flat, image = (next(sd.steps(solver, half, x, sigmas)).step.note.numbers["weight"] for x in (X, X.reshape(-1, 1, 3, 1)))
    assert torch.equal(flat, image)


def half(x, sigma):
    """D of N(0, 1)."""
    return x / (1 + sigma**2)


@pytest.mark.parametrize("grid", ["karras", "log_snr"])
def test_the_weight_reads_the_grid_and_not_agreement(grid):
    """On a point every solver is exact and nothing disagrees; ω falls all the same, by the length of the step alone."""
    point = sd.analytic.Gaussian(torch.zeros(64, dtype=torch.float64), 1e-14 * torch.eye(64, dtype=torch.float64))
    for n, least, most in ((5, 0.0, 0.8), (160, 0.999, 1.0)):
        sigmas = grids.make(grid, n)
        event = next(sd.steps(Corrected("ddim", SelfConsistent()), point, START, sigmas))
        first, middle, last = sigmas[:3]
        w = (first / middle).log() / (first / last).log()
        surplus = (((1 - w) * first + w * last) / middle - 1) * START / first
        omega = torch.exp(-surplus.square().mean(1) / 2)
        torch.testing.assert_close(event.step.note.numbers["weight"], omega)
        assert least <= float(omega.min()) <= float(omega.max()) <= most
        assert float(event.step.x.square().mean()) > float((middle / first * START).square().mean())  # it only adds noise


def end(name, rule, n):
    """Root mean square distance to the exact end point of the wide law, and the trace."""
    run = sd.sample(corrections.apply(rule, name), WIDE, START, grids.karras(n))
    exact = START * ((VARIANCES + 0.002**2) / (VARIANCES + 80**2)).sqrt()
    return float((run.x - exact).square().mean().sqrt()), run.trace


def test_self_consistency_takes_a_second_order_method_to_first_order():
    plain, held = ([end("dpmpp_2m", rule, n)[0] for n in (80, 160)] for rule in ("none", "self_consistent"))
    assert math.log2(plain[0] / plain[1]) > 1.8
    assert 0.8 < math.log2(held[0] / held[1]) < 1.3
    assert held[1] > 20 * plain[1]


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_five_steps_gain_by_half_the_weight(name):
    """A run of 2M with the paper's coefficient inside is the same as with none."""
    plain, alone, inside = (
        end(name, rule, 5)[0] for rule in ("none", "self_consistent(eta=0.5, proposal=none)", "self_consistent(eta=0.5)")
    )
    assert 0.04 < alone < 0.8 * plain
    assert inside == pytest.approx(alone, rel=0.05)


def test_a_divergence_answers_to_the_noise_that_self_consistency_adds():
    """γ takes the surplus for a step too long, shortens it, and so leaves more noise: 40 times the law's spread off."""
    error, trace = end("ddim", "self_consistent(eta=0.5, proposal=clamped)", 5)
    assert error > 10
    ratios = [r.noise_ratio for r in trace]
    assert ratios == sorted(ratios)
    assert ratios[0] == pytest.approx(1, abs=0.05)
    assert ratios[-1] > 50


@pytest.mark.parametrize("last", [0.25, 0.0])
def test_where_there_is_no_look_ahead_the_step_is_plain(last):
    """The last step has none; on a grid to zero neither has the one before, whose look-ahead is σ = 0."""
    sigmas = grids.karras(12, sigma_min=0.5)
    sigmas = grids.with_zero(sigmas) if last == 0 else torch.cat([sigmas, sigmas[-1:] / 2])
    events = list(sd.steps(Corrected("ddim", SelfConsistent(eta=1.0)), MODEL, X, sigmas))
    plain = [torch.equal(e.step.x, sd.solvers.make("ddim").step(MODEL, e.x_before, e.interval, ()).x) for e in events]
    assert plain == [*[False] * 11, last == 0, True]
    assert [e.step.note.reason is Reason.PLAIN for e in events] == plain
    assert bool(torch.isfinite(events[-1].step.x).all())


CLAMPED = CleanTarget(gamma_max=1.0)


def test_no_evaluation_is_added_and_the_correction_inside_is_traced():
    sigmas = grids.karras(5)
    for rule in (Chain(CLAMPED, SelfConsistent()), Chain(CLAMPED, BotNguyen()), Chain(CLAMPED, BotNguyen(), SelfConsistent())):
        solver = Corrected("dpmpp_2m", rule)
        result = sd.sample(solver, MODEL, X, sigmas, generator=torch.Generator().manual_seed(3))
        assert result.stats.nfe == 5 == solver.nfe(sigmas)
        assert result.stats.vjps == 2  # the first step and the last, of first order: those between depend on a history
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
    delta = ahead(X, blended, sigmas[:3]) - blended.x
    omega = compatibility(delta, 3**0.5 * sigmas[1])
    chained = next(sd.steps(Corrected("ddim", Chain(gammas, SelfConsistent())), MODEL, X, sigmas)).step
    torch.testing.assert_close(chained.x, blended.x + omega[:, None] * delta)
    assert chained.note.reason == Reason.FIXED
    assert {"gamma", "weight"} <= chained.note.numbers.keys()


def test_a_chain_refuses_the_divergence_of_a_step_that_was_moved():
    for second in (CLAMPED, CleanTarget(gamma_max=1.0, mode="analytical")):
        with pytest.raises(SteindiffError, match="put the correction that needs it first"):
            sd.sample(Corrected("ddim", Chain(CLAMPED, second)), MODEL, X, grids.karras(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: BotNguyen(a=2.0),
        lambda: BotNguyen(s=0.0),
        lambda: BotNguyen(s=1.5),
        lambda: SelfConsistent(eta=1.5),
        lambda: SelfConsistent(scale=0.0),
        lambda: SelfConsistent(look_ahead="image"),
    ],
)
def test_bad_options_are_refused(make):
    with pytest.raises(InputError, match="need"):
        make()
