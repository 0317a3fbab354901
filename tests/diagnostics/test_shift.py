"""The distribution shift along a run: the run's own score, what is measured beside the exact flow, and the command."""

import json
import math
from dataclasses import dataclass

import pytest
import torch

from commandline import run_command
from problems import MODEL, noisy_state
from steindiff import corrections, grids, initial_noise, sample, solvers
from steindiff.analytic import DiagonalMixture, Gaussian
from steindiff.corrections import FixedGamma
from steindiff.denoisers import Counter
from steindiff.diagnostics.pushforward import run_scores
from steindiff.diagnostics.setup import ShiftSetup, configure_shift
from steindiff.diagnostics.shift import Level, exact_states, look, run_shift
from steindiff.errors import InputError
from steindiff.metrics import EnergyTarget
from steindiff.report.shift import write_report
from steindiff.solvers import UniPC
from steindiff.study.testbed import make, wine_mixture

D64 = torch.float64
VARIANCES, MEAN = torch.tensor([4.0, 0.5, 0.01], dtype=D64), torch.tensor([0.5, -1.0, 0.2], dtype=D64)
GAUSSIAN = Gaussian(MEAN, VARIANCES.diag())
LEVELS = grids.log_snr(4, 0.05, 10.0)
BED = make("wine_mixture")
BIMODAL = DiagonalMixture(
    torch.tensor([0.4, 0.6], dtype=D64), torch.tensor([[-1.0], [1.2]], dtype=D64), torch.full((2, 1), 0.3, dtype=D64)
)


def noise(count, d, sigma=10.0):
    return initial_noise(range(count), (d,), sigma, dtype=D64)


# --- the run's own score ----------------------------------------------------------------------------------------------


def test_the_score_of_a_linear_run_is_that_of_its_gaussian():
    x = noise(5, 3)
    slope, shift = torch.ones(3, dtype=D64), torch.zeros(3, dtype=D64)
    found = list(run_scores(solvers.make("ddim"), GAUSSIAN, x, LEVELS))
    assert len(found) == 5
    for i, at in enumerate(found):
        if i:
            s, t = LEVELS[i - 1], LEVELS[i]
            gain = t / s + (1 - t / s) * VARIANCES / (VARIANCES + s**2)
            slope, shift = gain * slope, gain * shift + (1 - t / s) * s**2 / (VARIANCES + s**2) * MEAN
        torch.testing.assert_close(at.x, slope * x + shift)
        torch.testing.assert_close(at.score, -(at.x - shift) / (slope * 10.0) ** 2, rtol=1e-9, atol=0)
        assert bool((at.sign == 1).all())


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_the_score_of_a_nonlinear_run_is_the_slope_of_its_log_density(solver):
    """In one dimension log p̃(F(x₀)) = log p₀(x₀) − log |F'(x₀)|, differentiated along x₀ by differences."""
    run, h = solvers.make(solver), 1e-3
    x = torch.linspace(-15, 15, 13, dtype=D64)[:, None]

    def end(z):
        return [y[:, 0] for y in [z, *[at.x for at in list(run_scores(run, BIMODAL, z, LEVELS))[1:]]]]

    far, low, here, high, wide = (end(x + k * h) for k in (-2, -1, 0, 1, 2))
    for k, at in enumerate(run_scores(run, BIMODAL, x, LEVELS)):
        left, right = ((b[k] - a[k]) / (2 * h) for a, b in ((far, here), (here, wide)))
        density = -torch.stack([(x[:, 0] - h) ** 2, (x[:, 0] + h) ** 2]) / 200 - torch.stack([left, right]).abs().log()
        slope = (density[1] - density[0]) / (high[k] - low[k])
        torch.testing.assert_close(at.score[:, 0], slope, rtol=1e-3, atol=1e-4)


def test_a_run_that_turns_the_noise_over_says_so():
    folding = FixedGamma((3.0, 1.0, 1.0, 1.0))  # x' = −2 x + 3 T(x), whose slope is r > 0 times less than 2/3 where D is flat
    scores = list(run_scores(corrections.apply(folding, "ddim"), GAUSSIAN, noise(4, 3), LEVELS))
    assert [float(at.sign[0]) for at in scores] == [1, -1, -1, -1, -1]


# --- what states show -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.8, 1.0, 1.3])
def test_what_states_with_other_noise_show_on_a_gaussian(kappa):
    sigma, n, d = 0.5, 20_000, 3
    generator = torch.Generator().manual_seed(0)
    x = GAUSSIAN.sample(n, generator) + kappa * sigma * torch.randn(n, d, generator=generator, dtype=D64)
    levels = torch.tensor([sigma, 0.2], dtype=D64)
    (seen,) = look(solvers.make("ddim"), GAUSSIAN, [x], levels, 0.5)
    A = sigma**2 / (VARIANCES + sigma**2)
    told, size = float(sigma**2 * A.sum()), float((A**2 * (VARIANCES + kappa**2 * sigma**2)).sum())
    gap = (told - size) / (sigma * math.sqrt(d * size))
    for share, want in ((seen.noise, math.sqrt(size / told)), (seen.stein, gap)):
        assert abs(share.value.value - want) < 4 * share.value.se
        assert 0 < share.value.se < 0.01
    spread = VARIANCES + kappa**2 * sigma**2
    excess = sigma * math.sqrt(float((spread * (1 / spread - 1 / (VARIANCES + sigma**2)) ** 2).sum()) / d)  # σ S/√d
    assert abs(gap) <= excess + 1e-12
    assert seen.gamma.value.value == pytest.approx(1 / (1 - 0.4))
    torch.testing.assert_close(seen.scaled, x / math.hypot(sigma, 0.5))


def test_gamma_is_that_of_eq_9_with_the_clean_sample_known():
    """On the marginal E⟨u, x − D⟩ = E⟨u, x − x*⟩; 2M with the history that the states make."""
    n, generator = 20_000, torch.Generator().manual_seed(1)
    clean = MODEL.sample(n, generator)
    levels = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=D64)
    states = exact_states(MODEL, clean + 4.0 * torch.randn(n, 3, generator=generator, dtype=D64), levels, steps=24)
    seen = list(look(solvers.make("dpmpp_2m"), MODEL, states, levels, 1.0))
    first = 0.5 * (states[0] - MODEL(states[0], 4.0))  # u of the first step, r = 1/2
    e = states[0] - clean
    assert seen[0].gamma.value.value == pytest.approx(float((first * e).sum() / first.square().sum()), rel=0.015)
    weights = (1.5, -0.5)  # of the two values, h = h₁
    D, before = MODEL(states[1], 2.0), MODEL(states[0], 4.0)
    u = 0.5 * (states[1] - weights[0] * D - weights[1] * before)
    want = (u * (states[1] - D)).sum() / u.square().sum()
    assert seen[1].gamma.value.value == pytest.approx(float(want), rel=1e-9)
    assert seen[3].gamma is None


def test_the_standard_error_of_gamma_is_that_of_a_ratio():
    x = noisy_state(2.0, batch=500)
    (seen,) = look(solvers.make("heun"), MODEL, [x], torch.tensor([2.0, 1.0], dtype=D64), 1.0)
    w, u = x - MODEL(x, 2.0), x - sample("heun", MODEL, x, torch.tensor([2.0, 1.0], dtype=D64)).x
    a, c = (u * w).sum(1), u.square().sum(1)
    gamma = a.sum() / c.sum()
    assert seen.gamma.value.value == pytest.approx(float(gamma))
    assert seen.gamma.value.se == pytest.approx(float((a - gamma * c).std() / c.mean() / 500**0.5))


def test_a_network_is_looked_at_through_one_probe():
    x, levels = noisy_state(0.7, batch=4000), torch.tensor([0.7, 0.3], dtype=D64)
    exact, probed = (next(look(solvers.make("ddim"), D, [x], levels, 1.0)) for D in (MODEL, lambda z, s: MODEL(z, s)))
    assert exact.gamma.value == pytest.approx(probed.gamma.value)
    for name in ("noise", "stein"):
        a, b = getattr(exact, name).value, getattr(probed, name).value
        assert 0 < abs(a.value - b.value) < 3 * b.se
        assert b.se > a.se


@dataclass(frozen=True)
class Elsewhere(solvers.DDIM):
    """DDIM with D of the same state at half the noise level, as a table may tell its network."""

    def step(self, denoiser, x, interval, state):
        step = super().step(denoiser, x, interval, state)
        return step._replace(x=step.x + 0.1 * denoiser(x, interval.sigma / 2))


def test_what_is_known_at_a_state_is_known_at_its_own_level_only():
    x, levels = noisy_state(2.0, batch=8), torch.tensor([2.0, 1.0], dtype=D64)
    counter = Counter(lambda z, s: MODEL(z, s))
    (seen,) = look(Elsewhere(), counter, [x], levels, 1.0)
    w = x - MODEL(x, 2.0)
    u = 0.5 * w - 0.1 * MODEL(x, 1.0)
    assert seen.gamma.value.value == pytest.approx(float((u * w).sum() / u.square().sum()))
    assert counter.calls == 2


def test_the_exact_flow_is_exact_at_every_level():
    sigmas = grids.karras(5, 0.05, 10.0)
    x = noise(3, 3)
    states = exact_states(MODEL, x, sigmas, steps=120)
    assert len(states) == 6
    for y, sigma in zip(states, sigmas.tolist(), strict=True):
        torch.testing.assert_close(y, MODEL.flow(x, 10.0, sigma, tol=1e-6), rtol=0, atol=5e-5)


@pytest.mark.parametrize(("least", "taken"), [(7, 8), (8, 8), (9, 12)])
def test_the_exact_flow_takes_at_least_the_steps_that_are_asked_for(least, taken):
    counter = Counter(MODEL)
    exact_states(counter, noise(3, 3), grids.karras(4, 0.05, 10.0), steps=least)
    assert counter.calls == taken


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shift")
    setup = ShiftSetup(beds=("wine_mixture",), solvers=("dpmpp_2m",), nfe=(5,), rules=("none", "literal", "energy"), n=96)
    shift = run_shift(setup, folder)
    write_report(folder, shift)
    return folder, shift


def test_every_run_starts_on_the_flow_and_leaves_it(found):
    plain, literal, energy = found[1].runs
    for run in (plain, literal, energy):
        assert len(run.levels) == 6
        assert run.levels[0].gap == (0, 0)
        assert run.levels[0].excess == pytest.approx((0, 0))
        assert math.isnan(run.levels[-1].gamma.value)
    assert plain.levels[-1].gap.value > 0.01
    assert literal.levels[-1].gap.value > 3 * plain.levels[-1].gap.value
    assert energy.levels[1].score is None
    assert 0 < found[1].errors["wine_mixture"] < 0.1 * plain.levels[-1].gap.value


def test_the_energy_distance_is_that_to_other_noise(found):
    """At the first level both sets of states are noise, of seeds that are not the same."""
    own, others = (initial_noise(range(i, i + 96), (13,), dtype=D64) / math.hypot(80, BED.setting.sigma_data) for i in (0, 96))
    assert found[1].runs[0].levels[0].distance == pytest.approx(EnergyTarget(others).shares(own).value)


def test_unipc_is_looked_at_with_the_evaluation_of_the_state_itself(tmp_path):
    """Its stored evaluation is of a state that the flow's run never had."""
    setup = ShiftSetup(beds=("wine_mixture",), solvers=("unipc_2",), nfe=(4,), rules=("none",), n=16)
    (run,) = run_shift(setup, tmp_path).runs
    law, x, sigmas = BED.law.to(D64), initial_noise(range(16), (13,), dtype=D64), grids.karras(4)
    states = exact_states(law, x, sigmas)
    for stored in ("refresh", "keep"):
        seen = look(UniPC(2, stored=stored), law, states, sigmas, BED.setting.sigma_data)
        gammas = [at.gamma.value.value for at in seen if at.gamma]
        same = gammas == pytest.approx([level.gamma_flow.value for level in run.levels[:-1]], rel=1e-6)
        assert same == (stored == "refresh")


def test_a_run_that_overflows_ends_at_its_last_finite_state(tmp_path):
    setup = ShiftSetup(beds=("wine_mixture",), solvers=("ddim",), nfe=(4,), rules=("epsilon_scaling(1e-308)",), n=16)
    (run,) = run_shift(setup, tmp_path).runs
    assert "NaN or infinite" in run.failure
    assert [level.gap.value for level in run.levels] == [0]


def test_the_flow_is_the_same_beside_every_run_and_the_run_is_not(found):
    plain, literal, _ = found[1].runs
    for name in ("gamma_flow", "noise_flow", "stein_flow"):
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(plain.levels[:-1], literal.levels[:-1], strict=True)]
        assert all(a == b for a, b in pairs), name
    assert plain.levels[0].gamma == literal.levels[0].gamma
    second = literal.levels[1]  # the printed rule has jumped to D, noise level zero
    assert second.noise.value < 0.2 < 0.9 < second.noise_flow.value
    assert second.excess.value > 1 > second.distance.value - second.excess.value
    assert second.gamma_change.value == pytest.approx(second.gamma.value - second.gamma_flow.value)
    assert plain.levels[3].gamma != plain.levels[3].gamma_flow


def test_the_stein_gap_stays_below_the_score_difference(found):
    for run in found[1].runs[:2]:
        for level in run.levels:
            assert abs(level.stein_change.value) <= level.score.rms.value + 3 * math.hypot(
                level.stein_change.se, level.score.rms.se
            )
            assert level.stein_change.value == pytest.approx(level.stein.value - level.stein_flow.value)
    assert max(level.score.median for level in found[1].runs[0].levels) > 0.01
    assert {level.score.folded for level in found[1].runs[0].levels} == {0}
    assert [level.score.folded for level in found[1].runs[1].levels][1:3] == [
        0,
        1,
    ]  # the printed rule's second step goes past D
    x, law = initial_noise(range(16), (13,), dtype=D64), wine_mixture()
    start = law(x, 80.0).square().sum(1) / (80.0**2 * 13)  # the scores differ by D/80²; the testbed is float32
    assert found[1].runs[0].levels[0].score.rms.value == pytest.approx(float(start.mean().sqrt()), rel=1e-4)
    assert found[1].runs[0].levels[0].score.median == pytest.approx(float(start.sqrt().quantile(0.5)), rel=1e-4)


def test_the_flow_has_the_noise_it_is_told_and_no_stein_gap(found):
    for level in found[1].runs[0].levels:
        assert abs(level.noise_flow.value - 1) < 4 * level.noise_flow.se
        assert abs(level.stein_flow.value) < 4 * level.stein_flow.se


def test_the_report_has_every_level(found):
    folder, shift = found
    text = (folder / "report.md").read_text(encoding="utf-8")
    results = json.loads((folder / "results.json").read_text())
    assert [len(run["levels"]) for run in results["runs"]] == [6, 6, 6]
    assert (folder / "shift.png").stat().st_size > 10_000
    for title in ("plain", "Eq. 11 as printed", "energy"):
        assert f"### wine_mixture, dpmpp_2m, NFE 5, {title}" in text.replace("\\", "")
    assert "steindiff diagnose --shift --model wine_mixture --solver dpmpp_2m --nfe 5 --samples 96 --seed 0" in text
    assert "The Stein gap's change is within σ S/√d, its bound, at 12 of the 12 levels" in text.replace("\\", "")
    assert f"| {results['runs'][0]['levels'][2]['sigma']:.3g} |" in text
    assert isinstance(shift.runs[0].levels[0], Level)


def test_the_command_takes_its_own_options(tmp_path, monkeypatch, capsys):
    args = [
        "--shift",
        "--model",
        "wine_mixture",
        "--solver",
        "ddim",
        "--nfe",
        "3",
        "--samples",
        "16",
        "--outdir",
        str(tmp_path),
    ]
    code, out, err = run_command(monkeypatch, capsys, "diagnose", *args)
    assert code == 0, out + err
    assert "wine_mixture, ddim, NFE 3, plain" in out
    assert json.loads((tmp_path / "run.json").read_text())["config"]["n"] == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tol": 0.1}, "--shift with --tol"),
        ({"all_solvers": True}, "--shift with --all"),
        ({"preset": "full"}, "--shift with --preset full"),
        ({"nfe": (5, 5)}, "none twice"),
        ({"nfe": (5, "six")}, "whole numbers"),
        ({"samples": 8}, "n=8"),
        ({"solvers": ("dpmp_2m",)}, "did you mean 'dpmpp_2m'"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        configure_shift(**changes)
