"""The statements of docs/theory.md, each to four standard errors, on a Gaussian and a mixture that is not linear.

research/theory/core.py and research/theory/runs.py compute both sides; what is asked of them is here.
"""

import itertools
import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from research.theory import __main__ as page
from research.theory import core, runs

from steindiff import grids
from steindiff.corrections import CleanTarget, Corrected, FixedGamma
from steindiff.denoisers import EpsilonScaled
from steindiff.diagnostics import noise_mismatch
from steindiff.divergence import Exact
from steindiff.sampling import sample
from steindiff.solvers import DDIM

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[2]

D64 = torch.float64
LAWS = ("gaussian", "mixture")
Z = 4
Case = core.Case
CASES = core.cases()


@cache
def samples(case, n=4000):
    """Two independent samples of a case."""
    return tuple(core.sample_of(case, n, 1000 + i) for i in (0, 1))


# ---------------------------------------------------------------- the identities


@pytest.mark.parametrize("statement", core.STATEMENTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_sides_of_each_statement_agree(case, statement):
    found = core.STATEMENTS[statement](*samples(case))
    assert abs(found.z) < Z
    assert 0 < found.measured.se < 0.5 * abs(found.measured.value) + 0.05, "too noisy to mean anything"


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("schedule", core.SCHEDULES)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_the_wrapper_records_these_moments_and_makes_this_blend(law, schedule, solver):
    """`Corrected` on the same draws: the same γ, and a state whose distance to x* is J(γ)."""
    case = Case(law, schedule, solver=solver)
    drawn, terms = core.draw(case, 300, 5), core.sample_of(case, 300, 5)
    step = drawn.corrected(CleanTarget(history="frozen"))  # this history depends on x*, and not on the state alone
    record, means = step.note, terms.means
    torch.testing.assert_close(record.numbers["gamma_raw"], means.gamma, rtol=1e-9, atol=1e-9)
    for name in ("ux", "uu", "div"):
        torch.testing.assert_close(record.numbers[name], getattr(means.moments, name), rtol=1e-9, atol=1e-9)
    loss = (case.alphas[1] * step.x - drawn.clean).square().sum(1).mean()
    torch.testing.assert_close(loss, means.loss(means.gamma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gamma_improves_exactly_when_it_is_closer(case):
    found = list(core.improvement(*samples(case)))
    assert all(predicted == measured for predicted, measured, clear in found if clear)
    assert sum(clear for _, _, clear in found) >= 5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rho_is_a_fraction(case):
    _, b = samples(case)
    rho = b.estimate(lambda m: m.best**2 * m.c / m.ee)
    assert 0 <= rho.value <= 1
    free = b.estimate(lambda m: m.b**2 / (m.c * m.ee))  # b by Eq. 11 may stray over 1 by its error alone
    assert 0 <= free.value <= 1 + Z * free.se


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_displacement_is_the_predicted_one_and_within_the_plain_error(case):
    """Cor. 4.9 of the package's own states: E‖x^Stein − T‖² = (1−γ*)²c, and it is at most E‖T − x*‖²."""
    found = core.displacement(samples(case)[0], 4000, 2000)
    assert abs(found.distance.z) < Z
    assert found.distance.measured.value > 10 * found.distance.measured.se
    assert found.margin.value > Z * found.margin.se
    assert found.share == pytest.approx(found.distance.measured.value / (found.distance.measured.value + found.margin.value))
    assert 0 < found.share < 1


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("level", [0, 1])
def test_edm_special_case(law, level):
    """γ* = 1/(1−r), the corrected state is D(x), and E_{k−1} is the MMSE at σ: far from σ'² d."""
    case = Case(law, level=level)
    a, b = samples(case, 20000)
    s, s_next = case.sigmas[1:]
    for terms in (a, b):
        for f in (lambda m: m.gamma, lambda m: m.best):
            gamma = terms.estimate(f)
            assert abs(gamma.value - float(1 / (1 - s_next / s))) < Z * gamma.se
    least = b.estimate(lambda m: m.loss(m.best))
    moments = runs.second(law, float(s))
    mmse = moments.yD - moments.DD
    assert abs(least.value - mmse) < Z * math.hypot(least.se, 0.002 * mmse)
    assert abs(mmse - float(s_next**2 * core.DIM)) > 0.3 * mmse
    drawn = core.draw(case, 100, 0)
    gamma = float(1 / (1 - s_next / s))
    state = sample(Corrected(DDIM(), FixedGamma((gamma,))), case.denoiser, drawn.y, case.sigmas[1:]).x
    torch.testing.assert_close(state, case.denoiser(drawn.y, s), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- hypotheses


@pytest.mark.parametrize("case", [c for c in CASES if c.frame == "model" and c.solver == "ddim"], ids=str)
def test_steins_identity_holds_given_one_clean_sample(case):
    """The conditional law N(αx*, σ²): x* by x*, so for the mixture of them too."""
    b = core.sample_of(replace(case, fixed=True), 8000, 11)
    assert abs(core.stein_identity(b, b).z) < Z


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("schedule", core.SCHEDULES)
@pytest.mark.parametrize("noise", [0.8, 1.3])
def test_excess_noise_breaks_the_identity_by_its_square(law, schedule, noise):
    """Off the marginal E⟨u, x−αx*⟩ is κ²σ² E[∇·u]: Eq. 11 is biased by the factor it does not know."""
    found = core.violated(Case(law, schedule, level=1), 8000, 3, noise=noise)
    assert abs(found.z) > 10
    b = core.sample_of(Case(law, schedule, level=1, noise=noise), 8000, 3)
    ratio = b.estimate(lambda m: m.uw / (m.moments.sigma**2 * m.moments.div))
    assert abs(ratio.value - noise**2) < Z * ratio.se


def test_skewed_noise_breaks_it_only_where_u_is_not_linear():
    for law, breaks in (("gaussian", False), ("mixture", True)):
        found = core.violated(Case(law, level=1), 60_000, 9, shape="skewed")
        assert (abs(found.z) > Z) == breaks


@pytest.mark.parametrize("law", LAWS)
def test_a_history_held_constant_breaks_it(law):
    """2M on the true marginal with its true past: γ is right only when the past is differentiated too."""
    held, whole = (core.sample_of(Case(law, solver="dpmpp_2m", level=1, history=h), 3000, 3) for h in ("frozen", "flow"))
    assert abs(core.stein_identity(held, held).z) > 10
    assert abs(core.stein_identity(whole, whole).z) < Z
    right = float(whole.means.best)
    assert right > 1.5
    assert float(held.means.gamma) < 0.85 * right
    if law == "gaussian":  # and on the wrong side of 1: worse than no correction, by Thm 4.11 and as measured
        assert float(held.means.gamma) < 1
        harm = held.estimate(lambda m: m.loss(m.gamma) - m.loss(1.0))
        assert harm.value > Z * harm.se


# ---------------------------------------------------------------- drift and frame


@pytest.mark.parametrize("case", [c for c in CASES if c.level == 0], ids=str)
def test_the_drift_is_there_off_ve_and_gone_in_ve(case):
    """Without its drift term Eq. 11 misses the regression on x* by exactly that term; where α ≡ 1 there is none."""
    _, b = samples(case)
    drift = b.estimate(lambda m: (1 - 1 / m.moments.alpha) * m.moments.ux / m.c)
    if case.frame == "ve" or case.schedule == "edm":
        assert drift.value == 0
        return
    without = b.estimate(lambda m: m.best - m.moments.sigma**2 / m.moments.alpha * m.moments.div / m.c)
    assert abs(without.value) > 5 * without.se
    both = b.estimate(lambda m: m.best - m.gamma)
    assert abs(both.value) < Z * both.se


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("schedule", core.SCHEDULES)
@pytest.mark.parametrize("level", [0, 1])
def test_the_frame_matters_by_the_predicted_amount(law, schedule, level):
    """γ and its drift in both frames, and the distance between the two corrected states, from three second moments."""
    case = Case(law, schedule, level=level)
    moments = runs.second(law, float(case.sigmas[1]))
    for frame in ("model", "ve"):
        mine = replace(case, frame=frame)
        predicted = runs.ddim_gamma(mine, moments)
        _, b = samples(mine)
        gamma = b.estimate(lambda m: m.best)
        assert abs(gamma.value - predicted.gamma) < Z * math.hypot(gamma.se, 0.002 * predicted.gamma)
        drift = b.estimate(lambda m: (1 - 1 / m.moments.alpha) * m.moments.ux / m.c)
        assert abs(drift.value - predicted.drift) <= Z * math.hypot(drift.se, 0.002 * predicted.drift)
    gap, measured = runs.frame_gap(case, moments, 16000, 21)
    if schedule == "edm":
        assert gap == pytest.approx(0, abs=1e-6)
        assert measured.value == 0
        return
    assert gap > 0.05
    assert abs(measured.value - gap) < Z * math.hypot(measured.se, 0.002 * gap)


@pytest.mark.parametrize("case", [c for c in CASES if c.frame == "ve"], ids=str)
def test_without_the_drift_the_estimate_varies_less(case):
    """Cor. D.2: where α ≡ 1 the numerator varies as the divergence alone, and γ̂ has the smaller relative error."""
    (_, ve), (_, model) = samples(case), samples(replace(case, frame="model"))
    divergence, numerator = (ve.estimate(f) for f in (lambda m: m.moments.sigma**2 * m.moments.div, lambda m: m.b))
    assert numerator.se == pytest.approx(divergence.se, rel=1e-6, abs=1e-12)
    drift = model.estimate(lambda m: (1 - 1 / m.moments.alpha) * m.moments.ux)
    assert model.estimate(lambda m: m.b).se > drift.se / 2 > 0
    if case.law == "gaussian":  # D is linear, and its divergence a constant
        assert numerator.se < 1e-9 < drift.se
    here, there = (found.se / abs(found.value) for found in (s.estimate(lambda m: m.gamma) for s in (ve, model)))
    assert 1.02 * here < there


def test_vp_schedules_differ_only_in_the_levels_they_visit():
    """α² + σ² = 1: at the same VE noise levels every VP schedule has the same α, hence the same γ."""
    s = torch.tensor([3.0, 1.0, 0.2], dtype=D64)
    found = [core.SCHEDULES[name].alpha_of(s) for name in ("vp-linear", "vp-cosine", "discrete")]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    y = core.draw(Case("mixture"), 50, 0).y
    states = [
        sample(Corrected(DDIM(), CleanTarget(), divergence=Exact()), Case("mixture", name).denoiser, y, s[:2]).x
        for name in ("vp-linear", "vp-cosine", "discrete")
    ]
    torch.testing.assert_close(states[0], states[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(states[0], states[2], rtol=1e-6, atol=1e-6)


def test_at_high_noise_the_vp_coefficient_has_no_limit():
    """N(0, I): the flow stands still, γ* = (1−α)/(1 − (α'/α)c) with T(y) = c y."""
    model, ve = runs.vp_gamma("unit", -5.0, -3.0)
    s, s_next = math.exp(5), math.exp(3)
    c = s_next / s + (1 - s_next / s) / (1 + s * s)
    k = 1 - math.sqrt((1 + s * s) / (1 + s_next * s_next)) * c
    assert model == pytest.approx((1 - 1 / math.sqrt(1 + s * s)) / k, rel=1e-6)
    assert model > 500
    assert ve < 1.2


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize("shape", ["constant", "wave", "aligned"])
@pytest.mark.parametrize("schedule", core.SCHEDULES)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_a_shifted_score_moves_gamma_within_the_bound(shape, schedule, solver, size):
    case = Case("mixture", schedule, solver=solver, level=1)
    m = core.sample_of(case, 1000, 1).means.moments  # of the frame: its own α and σ
    assert runs.shifted_estimate(case, shape, size, 1000, 1)[0].bound == pytest.approx(
        float(m.sigma**2 / m.alpha * size / m.uu.sqrt()), rel=1e-9
    )
    for found in runs.shifted_estimate(case, shape, size, 1000, 1):
        assert 0 < found.measured <= found.bound * (1 + 1e-9)
        if shape == "aligned":
            assert found.measured == pytest.approx(found.bound, rel=1e-6)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("noise", [0.6, 0.9, 1.2, 2.0])
def test_a_shifted_law_moves_gamma_within_the_bound(law, noise):
    """A state at noise κσ: Eq. 11's error is σ²E⟨u,δ⟩/c, within σ²√(E‖δ‖²/c), which it nearly reaches."""
    found, gap = runs.shifted_law(law, 0.5, 0.4, noise, 40000, 1)
    assert abs(gap) < 0.03
    assert 0.5 * found.bound < found.measured < found.bound


@pytest.mark.parametrize("shape", ["constant", "wave", "aligned"])
@pytest.mark.parametrize("size", [0.1, 1.0, 5.0])
def test_a_shifted_network_costs_within_the_bound(shape, size):
    found = runs.shifted_network("mixture", 0.5, 0.4, shape, size, 4000, 1)
    assert found.measured <= found.bound
    assert found.bound == pytest.approx(0.25 * size, rel=0.1)  # γ* (1−r) is 1 but for sampling error, and σ² a quarter
    if shape == "aligned":  # γ undoes it
        assert found.measured == pytest.approx(0, abs=1e-9)


# ---------------------------------------------------------------- what the coefficient does


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("solver", "rule"), [("ddim", runs.LITERAL), ("dpmpp_2m", runs.FROZEN)])
def test_as_printed_the_rule_diverges(law, solver, rule):
    """With the divergence of the step; for 2M with its history held constant, which is a reading of ours."""
    x = runs.start(64, 0)
    exact = core.law(law).flow(x, 80.0, 0.002, tol=1e-4)
    for steps in (5, 10):
        plain, literal = (runs.run_against_flow(core.law(law), runs.NAMED[solver], r, steps, x, exact) for r in (None, rule))
        assert literal.error > 1000 * plain.error
        assert literal.largest > 100


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "heun"])
def test_without_a_derivative_it_collapses(law, solver):
    """The Gaussian's runs end at its mean, all of them; those of the mixture at a few points. No run is lost."""
    x, model = runs.start(64, 0), core.law(law)
    exact, width = model.flow(x, 80.0, 0.002, tol=1e-4), math.sqrt(runs.variance(law) / core.DIM)
    for steps in (5, 20):
        found = runs.run_against_flow(model, runs.NAMED[solver], runs.FREE, steps, x, exact)
        assert 0.8 * width < found.error < 2 * width
        ends = sample(Corrected(runs.NAMED[solver], runs.FREE), model, x, grids.karras(steps)).x
        if law == "gaussian":
            assert (ends - model.mean).abs().max() < 1e-3
        assert len(torch.unique((ends / 0.05).round(), dim=0)) < 32


@pytest.mark.parametrize("steps", [3, 5, 10])
def test_the_clamp_is_a_no_op_for_ddim_on_the_marginal(steps):
    """Whole Gaussian runs are bitwise plain; on the mixture, every single step from the true marginal is."""
    grid = grids.karras(steps)
    clamped = Corrected(DDIM(), runs.CLAMPED, divergence=Exact())
    x = runs.start(256, 0)
    gaussian = core.law("gaussian")
    assert torch.equal(sample(clamped, gaussian, x, grid).x, sample("ddim", gaussian, x, grid).x)
    mixture = core.law("mixture")
    for s, s_next in itertools.pairwise(grid):
        g = torch.Generator().manual_seed(1)
        y = mixture.sample(2000, g) + s * torch.randn(2000, core.DIM, generator=g, dtype=D64)
        run = sample(clamped, mixture, y, torch.stack([s, s_next]))
        # As r → 0 the coefficient is 1 itself, and its sampling error decides: within that error of plain.
        assert run.trace[0].gamma == 1 or (s_next / s < 0.1 and run.trace[0].gamma > 0.9)


@pytest.mark.parametrize("law", LAWS)
def test_the_clamp_acts_once_noise_exceeds_what_the_step_removes(law):
    """γ < 1 from σ̂² > σ²/(1−r) on: not before."""
    for noise in (0.7, 1.0, 1.2, 1.5, 2.5):
        found = runs.meter(law, 5.0, 0.4, noise, 4000, 1)
        assert (found.gamma < 1) == (found.ratio**2 > 1 / 0.6)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigma", [5.0, 0.5, 0.1])
@pytest.mark.parametrize("noise", [0.5, 1.0, 1.6])
def test_the_meter_and_gamma_are_one_number(law, sigma, noise):
    found = runs.meter(law, sigma, 0.4, noise, 2000, 1)
    assert 0.6 * found.gamma == pytest.approx(1 / found.ratio**2, rel=1e-9)


@pytest.mark.parametrize("noise", [1.0, 1.6])
def test_the_reading_is_of_the_state_and_not_of_a_frame(noise):
    """In VP the residual of the model's own x has another divergence; σ̂/σ of the same state is the same."""
    case = Case("mixture", "vp-linear", noise=noise)
    y, solvers = (
        core.draw(case, 500, 1).y,
        [Corrected(DDIM(), runs.CLAMPED, divergence=Exact(), frame=f) for f in ("model", "ve")],
    )
    model, ve = (sample(solver, case.denoiser, y, case.sigmas[1:]).trace[0].noise_ratio for solver in solvers)
    assert model == pytest.approx(ve, rel=1e-9)
    assert model == pytest.approx(float(noise_mismatch(case.denoiser, y, case.sigmas[1], estimator=Exact())), rel=1e-9)


@pytest.mark.parametrize("sigma", [5.0, 0.5, 0.1])
@pytest.mark.parametrize("noise", [0.5, 1.0, 1.6, 2.5])
def test_the_reading_on_a_gaussian_is_its_closed_form(sigma, noise):
    assert runs.meter("gaussian", sigma, 0.4, noise, 20000, 1).ratio == pytest.approx(
        runs.gaussian_reading(sigma, noise), rel=0.015
    )
    if sigma == 5:
        assert runs.gaussian_reading(sigma, noise) == pytest.approx(noise, rel=0.03)
    if sigma == 0.1:  # narrower than the law: it sees little of κ
        assert abs(runs.gaussian_reading(sigma, noise) - 1) < 0.3 * abs(noise - 1) + 1e-9


def test_acting_on_the_meter_keeps_the_noise():
    """Too much noise: the clamped step leaves more of it, in units of what the next step assumes, than the plain one."""
    for noise in (1.6, 2.5):
        found = runs.meter("mixture", 5.0, 0.4, noise, 10000, 1)
        assert found.after["clamped"] > 1.3 * found.after["plain"]
        assert found.after["clamped"] > noise
    literal = runs.meter("mixture", 5.0, 0.4, 1.0, 10000, 1).after["literal"]
    assert literal < 0.2  # on the marginal the printed step removes nearly all noise: the next one assumes all of it


@pytest.mark.parametrize("level", [0, 1])
def test_the_exact_flow_is_not_the_least_squares_step(level):
    """DDIM is nearer to x* and to the noise-consistent target than the flow itself, and lacks energy."""
    found = runs.candidates(Case("mixture", level=level), 10000, 1)
    ddim, exact = found["DDIM"], found["exact flow"]
    assert abs(exact.energy.value) < Z * exact.energy.se  # the flow stays on the marginal
    for distance in ("clean", "consistent"):
        near, far = getattr(ddim, distance), getattr(exact, distance)
        assert far.value - near.value > Z * math.hypot(near.se, far.se)
    assert ddim.energy.value < -10 * ddim.energy.se
    literal = found["Eq. 11 on DDIM"]
    assert literal.clean.value < ddim.clean.value
    assert literal.flow.value > 10 * ddim.flow.value
    assert literal.energy.value < 3 * ddim.energy.value


# ---------------------------------------------------------------- equivalences


@pytest.mark.parametrize("name", ["epsilon-scaling by 1/b", "shifted timestep", "DCW in pixels"])
def test_known_tricks_are_a_gamma(name):
    found = runs.equivalences(1)
    assert found[name] < 1e-12
    assert found["epsilon-scaling, 2M"] > 1e-4  # of first-order steps only


@pytest.mark.parametrize("schedule", ["vp-linear", "vp-cosine", "discrete"])
def test_in_vp_the_equivalence_is_one_of_the_ve_frame(schedule):
    case, b = Case("mixture", schedule), 1.01
    grid = case.sigmas
    _, y = runs.noisy("mixture", float(grid[0]), 50, 0)
    scaled = sample("ddim", EpsilonScaled(case.denoiser, b), y, grid).x
    blends = (Corrected(DDIM(), FixedGamma((1 / b,) * 2), frame=f) for f in ("ve", "model"))
    ve, model = (sample(blend, case.denoiser, y, grid).x for blend in blends)
    torch.testing.assert_close(ve, scaled, rtol=1e-12, atol=1e-12)
    assert (model - scaled).abs().max() > 1e-3


# ---------------------------------------------------------------- the page


def test_the_page_names_tests_that_exist_and_every_statement():
    text = (ROOT / "docs" / "theory.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_theory*.py"))
    assert named == {name for name in named if f"def {name}(" in tests}
    statements = "Lemma 4.6", "Thm 4.3", "Thm 4.10", "Thm 4.11", "Thm 4.4", "Thm 4.7", "Thm 4.8", "Cor. 4.9", "Cor. 4.12"
    for statement in (*statements, "Eqs. 14 and 15", "Prop. 4.1 (C.1)", "Prop. D.1", "Cor. D.2", "Eq. 174", "Eqs. 38–46"):
        assert f"**{statement}" in text
    assert "{{" not in text
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / link).exists()


def test_the_script_fills_its_template_or_fails(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert page.fill("a {{b}}", {"b": "c"}) == "a c"
    with pytest.raises(KeyError, match="no value"):
        page.fill("{{a}} {{b}}", {"a": ""})
    with pytest.raises(KeyError, match="does not use"):
        page.fill("a", {"b": ""})
    assert page.main(["--outdir", str(tmp_path), "--samples", "100"]) == 2
    assert "--samples 100: must be at least 500" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    values = page.edm_values(500, 1)
    assert len(values["edm_table"]) == 4
