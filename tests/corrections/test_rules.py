"""Rules for γ: Eq. 11 by hand, bounds and reasons, tables, and what each rule gives with an exact denoiser."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steindiff import solvers
from steindiff.analytic import GaussianMixture
from steindiff.corrections import CleanTarget, Corrected, FixedGamma, NoiseConsistent, Reason, Sparse
from steindiff.corrections.blend import Moments, Need
from steindiff.corrections.stein import stein_ratio
from steindiff.denoisers import FromEps, FromFlow, FromV
from steindiff.divergence import Hutchinson
from steindiff.errors import InputError
from steindiff.sampling import sample
from steindiff.schedules import DiscreteBetas, RectifiedFlow, VPCosine, VPLinear

torch.set_num_threads(1)
D64 = torch.float64


def moments(alpha=1.0, sigma=2.0, alpha_next=1.0, sigma_next=1.0, ux=3.0, uu=4.0, div=5.0, dtype=D64):
    values = (alpha, sigma, alpha_next, sigma_next, ux, uu, div, 0.0)
    return Moments(*(torch.tensor(v, dtype=dtype) for v in values))


def reason(decision):
    return Reason(int(decision.reason))


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    "m, expected",
    [
        (moments(), 5.0),  # 2² · 5 / 4: no drift where α = 1
        (moments(ux=1e6), 5.0),
        (moments(alpha=0.5), 9.25),  # ((1 − 2) 3 + (4/0.5) 5) / 4
        (moments(alpha=0.5, ux=-3.0), 10.75),
        (moments(alpha=0.5, div=0.0), -0.75),
        (moments(sigma=0.0), 0.0),
    ],
)
def test_equation_11_by_hand(m, expected):
    assert float(stein_ratio(m)) == pytest.approx(expected, rel=1e-15)
    assert float(CleanTarget().decide(m, 0).raw) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    "m, expected",
    [
        (moments(), 2.5),  # (1 − ½) 4 · 5 / 4
        (moments(sigma_next=0.0), 5.0),  # to noise level zero the target is the clean sample
        (moments(alpha=0.5, alpha_next=0.75), (-0.5 * 3 + (1.5 - 0.5) * 4 * 5) / 4),
        (moments(alpha=0.5, alpha_next=1.0, sigma_next=0.0), 9.25),
    ],
)
def test_the_noise_consistent_coefficient_by_hand(m, expected):
    assert float(NoiseConsistent().decide(m, 0).raw) == pytest.approx(expected, rel=1e-15)


def test_a_step_to_noise_zero_makes_both_targets_one():
    m = moments(alpha=0.3, alpha_next=1.0, sigma_next=0.0, ux=-1.7, div=0.4)
    assert float(NoiseConsistent().decide(m, 0).raw) == pytest.approx(float(stein_ratio(m)), rel=1e-14)


# ---------------------------------------------------------------- bounds and reasons


@pytest.mark.parametrize(
    "rule, m, gamma, why",
    [
        (CleanTarget(), moments(), 5.0, Reason.RULE),
        (CleanTarget(gamma_max=5.0), moments(), 5.0, Reason.RULE),
        (CleanTarget(gamma_max=1.0), moments(), 1.0, Reason.CLAMPED_HIGH),
        (CleanTarget(), moments(div=-5.0), 1e-6, Reason.CLAMPED_LOW),
        (CleanTarget(gamma_min=6.0), moments(), 6.0, Reason.CLAMPED_LOW),
        (CleanTarget(), moments(div=math.nan), 1.0, Reason.NON_FINITE),
        (CleanTarget(gamma_max=0.5), moments(div=math.inf), 1.0, Reason.NON_FINITE),
        (CleanTarget(), moments(div=-math.inf), 1.0, Reason.NON_FINITE),
        (CleanTarget(), moments(uu=math.nan), 1.0, Reason.NON_FINITE),
        (CleanTarget(), moments(uu=math.inf), 1.0, Reason.NON_FINITE),  # not 1e-6: ∞ says nothing
        (CleanTarget(), moments(uu=1e-300), 1.0, Reason.NON_FINITE),  # γ = 2e301 is no float32
        (CleanTarget(), moments(uu=0.0), 1.0, Reason.ZERO_RESIDUAL),
        (CleanTarget(gamma_max=1.0), moments(uu=0.0, div=0.0), 1.0, Reason.ZERO_RESIDUAL),
        (NoiseConsistent(), moments(div=-5.0), -2.5, Reason.RULE),
        (NoiseConsistent(gamma_min=0.0), moments(div=-5.0), 0.0, Reason.CLAMPED_LOW),
        (NoiseConsistent(gamma_max=2.0), moments(), 2.0, Reason.CLAMPED_HIGH),
        (NoiseConsistent(), moments(uu=0.0), 1.0, Reason.ZERO_RESIDUAL),
        (NoiseConsistent(), moments(div=math.nan), 1.0, Reason.NON_FINITE),
        (FixedGamma((0.25,)), moments(uu=0.0, div=math.nan), 0.25, Reason.FIXED),
    ],
)
def test_bounds_and_reasons(rule, m, gamma, why):
    decision = rule.decide(m, 0)
    assert float(decision.gamma) == gamma
    assert reason(decision) is why
    if why in (Reason.CLAMPED_LOW, Reason.CLAMPED_HIGH):
        assert float(decision.raw) != gamma


def shrink(x, sigma):
    return x / (1 + sigma.to(x) ** 2)


def test_plain_and_inactive_are_reasons_of_a_run():
    grid = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=D64)
    x = 4 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    plain = sample("ddim", shrink, x, grid).trace
    assert [r.reason for r in plain] == ["plain"] * 3
    sparse = sample(Corrected("ddim", Sparse(CleanTarget(gamma_max=1.0), steps=[1])), shrink, x, grid).trace
    assert [r.reason for r in sparse][::2] == ["inactive"] * 2
    assert sparse[1].reason in ("rule", "clamped_high")
    reached = {r.reason for r in (*plain, *sparse)}
    # "within_noise" is Energy's: tests/test_energy.py reaches it
    assert reached | {"rule", "clamped_low", "clamped_high", "non_finite", "zero_residual", "fixed", "within_noise"} == {
        r.name.lower() for r in Reason
    }


anything = st.floats(width=32, allow_nan=True, allow_infinity=True)
bounds = st.none() | st.floats(-3, 3)


@settings(max_examples=300, deadline=None)
@given(st.lists(anything, min_size=7, max_size=7), bounds, bounds, st.sampled_from([torch.float32, D64]))
def test_every_decision_is_finite_and_within_its_bounds(values, low, high, dtype):
    m = moments(*values, dtype=dtype)
    rules = [CleanTarget(), CleanTarget(gamma_max=1.0), FixedGamma((0.5,))]
    if low is None or high is None or low <= high:
        rules.append(NoiseConsistent(low, high))
    for rule in rules:
        decision = rule.decide(m, 0)
        gamma = decision.gamma.to(torch.float32)  # what a float32 state is blended with
        assert torch.isfinite(gamma)
        assert decision.gamma.shape == decision.reason.shape == ()
        match reason(decision):
            case Reason.NON_FINITE | Reason.ZERO_RESIDUAL:
                assert float(gamma) == 1
            case Reason.FIXED:
                assert float(gamma) == 0.5
            case why:
                assert why in (Reason.RULE, Reason.CLAMPED_LOW, Reason.CLAMPED_HIGH)
                assert getattr(rule, "gamma_min", None) is None or decision.gamma >= rule.gamma_min - 1e-6
                assert getattr(rule, "gamma_max", None) is None or decision.gamma <= rule.gamma_max + 1e-6


@pytest.mark.parametrize(
    "bad",
    [
        {"gamma_min": 0.0},
        {"gamma_min": -1.0},
        {"gamma_min": math.nan},
        {"gamma_min": math.inf},
        {"gamma_max": 0.0},  # was once read as "no bound", and then froze the state
        {"gamma_max": -1.0},
        {"gamma_max": math.nan},
        {"gamma_max": math.inf},
        {"gamma_min": 0.9, "gamma_max": 0.5},
        {"mode": "half"},
        {"history": "kept"},
        {"threshold": 0.0},
        {"threshold": math.nan},
    ],
)
def test_impossible_options_are_refused(bad):
    with pytest.raises(InputError, match=r"need|choose"):
        CleanTarget(**bad)


@pytest.mark.parametrize("low, high", [(2.0, 1.0), (math.nan, None), (None, math.inf), (-math.inf, None)])
def test_impossible_bounds_are_refused(low, high):
    with pytest.raises(InputError, match="need finite bounds"):
        NoiseConsistent(low, high)


# ---------------------------------------------------------------- modes


def test_what_each_mode_needs():
    assert CleanTarget().need(80.0) is Need.FULL
    assert CleanTarget(mode="analytical").need(0.01) is Need.LINEAR
    adaptive = CleanTarget(mode="adaptive", threshold=0.7)
    assert [adaptive.need(s) for s in (80.0, 0.71, 0.7, 0.01)] == [Need.LINEAR, Need.LINEAR, Need.FULL, Need.FULL]
    assert NoiseConsistent().need(1.0) is Need.FULL
    assert FixedGamma((1.0,)).need(1.0) is Need.NOTHING
    frozen = CleanTarget(mode="adaptive", threshold=0.7, history="frozen")
    assert [frozen.need(s) for s in (0.71, 0.7)] == [Need.LINEAR, Need.FROZEN]
    assert CleanTarget(history="frozen").need(80.0) is NoiseConsistent(history="frozen").need(1.0) is Need.FROZEN


def test_how_each_need_is_met():
    """A history makes the whole divergence Tweedie's, and a frozen one what it is called; without one both are the same."""
    assert [need.met(True) for need in Need] == [Need.NOTHING, Need.LINEAR, Need.TWEEDIE, Need.FROZEN, Need.TWEEDIE]
    assert [need.met(False) for need in Need] == [Need.NOTHING, Need.LINEAR, Need.TWEEDIE, Need.FULL, Need.FULL]


@pytest.mark.parametrize("rule", [CleanTarget, NoiseConsistent])
def test_a_history_is_frozen_only_where_a_derivative_is_taken(rule):
    with pytest.raises(InputError, match="history='constant': choose total or frozen"):
        rule(history="constant")
    with pytest.raises(InputError, match=r"history='frozen', mode='tweedie': only full and adaptive take a derivative"):
        rule(mode="tweedie", history="frozen")


@pytest.mark.parametrize("name", solvers.names())
def test_the_analytical_mode_takes_the_linear_part_and_no_derivative(name):
    """γ from ∇·u = (1 − ∂T/∂x at fixed network) d; adaptive switches to the estimator below its threshold."""
    grid = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=D64)
    x = 4 * torch.randn(64, 5, generator=torch.Generator().manual_seed(0), dtype=D64)
    solver = solvers.make(name)
    run = sample(Corrected(solver, CleanTarget(gamma_max=1.0, mode="analytical")), shrink, x, grid)
    assert (run.stats.jvps, run.stats.vjps, run.stats.nfe) == (0, 0, solver.nfe(grid))
    assert run.stats.forward_equivalents == run.stats.nfe
    first = run.trace[0].moments
    assert first["div"] == pytest.approx((1 - 0.5) * 5)  # every method's linear part starts as r = ½
    assert first["div_se"] == 0
    assert run.trace[0].gamma_raw == pytest.approx(16 * first["div"] / first["uu"])
    below = CleanTarget(gamma_max=1.0, mode="adaptive", threshold=2.0, history="frozen")
    adaptive = sample(Corrected(solver, below), shrink, x, grid)
    assert math.isnan(adaptive.trace[0].noise_ratio)
    # UniPC's last step calls no network at all (the evaluation is stored): nothing to differentiate
    assert adaptive.stats.vjps == (1 if name.startswith("unipc") else 2) * (solver.nfe(grid) // 3)
    torch.testing.assert_close(adaptive.trace[0].gamma, run.trace[0].gamma)


# ---------------------------------------------------------------- tables


def test_a_table_is_used_step_by_step():
    rule = FixedGamma((0.5, 1.0, 1.25))
    assert [float(rule.decide(moments(), i).gamma) for i in range(3)] == [0.5, 1.0, 1.25]
    assert rule.decide(moments(), 0).gamma.dtype == D64


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_table_of_another_length_is_refused_before_any_evaluation(n):
    def never(x, sigma):
        raise AssertionError("evaluated")

    grid = torch.linspace(4, 1, n + 1, dtype=D64)
    with pytest.raises(InputError, match=rf"table of 3 values for a run of {n} steps"):
        sample(Corrected(solvers.make("ddim"), FixedGamma((1.0,) * 3)), never, torch.ones(1, 2), grid)


@pytest.mark.parametrize("table", [(), (math.nan,), (1.0, math.inf)])
def test_an_impossible_table_is_refused(table):
    with pytest.raises(InputError, match="at least one value, all finite"):
        FixedGamma(table)


def test_a_frozen_run_repeats_it(tmp_path):
    grid = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=D64)
    x = 4 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=D64)
    ddim = solvers.make("ddim")
    run = sample(Corrected(ddim, CleanTarget(gamma_max=1.3)), shrink, x, grid)
    gammas = [r.gamma for r in run.trace]
    assert gammas != [1.0] * 3
    path = tmp_path / "gamma.json"
    path.write_text(json.dumps(gammas))
    rule = FixedGamma.load(path)
    assert rule == FixedGamma.from_gammas(gammas) == FixedGamma.load(str(path))
    frozen = sample(Corrected(ddim, rule), shrink, x, grid)
    assert torch.equal(frozen.x, run.x)
    assert (frozen.stats.nfe, frozen.stats.vjps) == (3, 0)
    alone = sample(Corrected(ddim, rule), shrink, x[4:5], grid)  # an image no longer depends on its batch
    assert torch.equal(alone.x[0], run.x[4])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        "null",
        '"12"',
        '["1"]',
        "[true]",
        '{"1": 2}',
        "[[1]]",
        "[null]",
        "[]",
        "[NaN]",
        "[1e999]",
        "[1" + "0" * 400 + "]",
    ],
)
def test_files_that_hold_no_table_are_refused(tmp_path, text):
    path = tmp_path / "gamma.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"gamma\.json is not a gamma table"):
        FixedGamma.load(path)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a gamma table"):
        FixedGamma.load(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a gamma table"):
        FixedGamma.load(tmp_path / "binary.json")
    with pytest.raises(InputError, match="not a gamma table"):
        FixedGamma.load(tmp_path)


# ---------------------------------------------------------------- exact denoisers


class Model:
    """Two Gaussians in 8 dimensions; exact D, and draws of the coupling y = x* + σ ε with their x*."""

    d = 8

    def __init__(self):
        means = torch.randn(2, self.d, generator=torch.Generator().manual_seed(3), dtype=D64)
        covariances = 0.09 * torch.eye(self.d, dtype=D64).expand(2, self.d, self.d)
        self.law = GaussianMixture(torch.ones(2, dtype=D64) / 2, means, covariances)

    def __call__(self, y, sigma):
        return self.law(y, sigma)

    def draw(self, n, sigma, seed):
        g = torch.Generator().manual_seed(seed)
        clean = self.law.sample(n, g)
        return clean + sigma * torch.randn(n, self.d, generator=g, dtype=D64), clean


MODEL = Model()


def as_eps(schedule):
    def network(x, t):
        a, s = (z.to(D64)[:, None] for z in (schedule.alpha(t.double()), schedule.sigma(t.double())))
        return (x - a * MODEL(x / a, schedule.ratio(t.double()))) / s

    return FromEps(network, schedule)


def as_v(schedule):
    def network(x, t):
        a, s = (z.to(D64)[:, None] for z in (schedule.alpha(t.double()), schedule.sigma(t.double())))
        x0 = MODEL(x / a, schedule.ratio(t.double()))
        return a * (x - a * x0) / s - s * x0

    return FromV(network, schedule)


def as_flow(schedule):
    def network(x, t):
        a, s = (z.to(D64)[:, None] for z in (schedule.alpha(t.double()), schedule.sigma(t.double())))
        x0 = MODEL(x / a, schedule.ratio(t.double()))
        return (x - a * x0) / s - x0

    return FromFlow(network, schedule)


DENOISERS = {
    "ve": MODEL,
    "vp-linear": as_eps(VPLinear()),
    "cosine": as_v(VPCosine()),
    "rectified flow": as_flow(RectifiedFlow()),
    "discrete": as_eps(DiscreteBetas.linear()),
}
PAIRS = [(8.0, 2.5), (1.0, 0.4), (0.3, 0.05)]


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("sigma", [8.0, 1.0, 0.1])
def test_the_adapters_give_back_the_exact_denoiser(name, sigma):
    y, _ = MODEL.draw(20, sigma, seed=0)
    s = torch.tensor(sigma, dtype=D64)
    torch.testing.assert_close(DENOISERS[name](y, s), MODEL(y, s), rtol=1e-4, atol=1e-4)


def gammas(rule, denoiser, frame, sigma, sigma_next, batches=12, n=2000):
    """γ_raw of one DDIM step over independent batches of the true coupling: mean and its standard error."""
    grid = torch.tensor([sigma, sigma_next], dtype=D64)
    solver = Corrected(solvers.make("ddim"), rule, divergence=Hutchinson(method="vjp"), frame=frame)
    values = []
    for i in range(batches):
        y, _ = MODEL.draw(n, sigma, seed=100 + i)
        run = sample(solver, denoiser, y, grid, generator=torch.Generator().manual_seed(i))
        values.append(run.trace[0].gamma_raw)
    values = torch.tensor(values, dtype=D64)
    return float(values.mean()), float(values.std() / math.sqrt(batches))


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("frame", ["model", "ve"])
@pytest.mark.parametrize("sigma, sigma_next", PAIRS)
def test_noise_consistent_is_one_for_ddim_with_an_exact_denoiser(name, frame, sigma, sigma_next):
    mean, se = gammas(NoiseConsistent(), DENOISERS[name], frame, sigma, sigma_next)
    assert 0 < se < 0.05
    assert abs(mean - 1) < 4.4 * se  # Student's t with 11 degrees of freedom: 4.4 is what 4 is to a normal


@pytest.mark.parametrize("sigma, sigma_next", PAIRS)
def test_clean_target_is_one_over_one_minus_r_for_exact_ddim(sigma, sigma_next):
    expected = 1 / (1 - sigma_next / sigma)
    mean, se = gammas(CleanTarget(), MODEL, "model", sigma, sigma_next)
    assert 0 < se < 0.05 * expected
    assert abs(mean - expected) < 4.4 * se


def test_clean_target_to_noise_zero_is_plain_ddim():
    mean, se = gammas(CleanTarget(), MODEL, "model", 1.0, 0.0)
    assert abs(mean - 1) < 4.4 * se


@pytest.mark.parametrize("name", ["vp-linear", "cosine", "rectified flow"])
@pytest.mark.parametrize("sigma, sigma_next", PAIRS)
def test_clean_target_off_ve_is_the_direct_regression_on_the_clean_sample(name, sigma, sigma_next):
    """E⟨u, x − x*⟩/E‖u‖² with x* known, in the model's x: Eq. 11 with its drift is the same number."""
    denoiser = DENOISERS[name]
    mean, se = gammas(CleanTarget(), denoiser, "model", sigma, sigma_next)
    s, s_next = torch.tensor([sigma, sigma_next], dtype=D64)
    a, a_next = denoiser.schedule.alpha_of(s), denoiser.schedule.alpha_of(s_next)
    direct = []
    for i in range(12):
        y, clean = MODEL.draw(2000, sigma, seed=500 + i)
        r = s_next / s
        x, u = a * y, a * y - a_next * (r * y + (1 - r) * MODEL(y, s))
        direct.append((u * (x - clean)).sum() / u.square().sum())
    direct = torch.stack(direct)
    assert abs(mean - float(direct.mean())) < 4.4 * math.hypot(se, float(direct.std()) / math.sqrt(12))


def test_reasons_are_numbered_once():
    assert [int(r) for r in Reason] == list(range(len(Reason)))
    assert all(a < b for a, b in itertools.pairwise(Reason))
