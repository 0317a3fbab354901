"""Diagnostics against closed forms on Gaussians and dense Jacobians; the command as a user meets it."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from commandline import run_command
from problems import PROPERTY, mixture, noisy_state
from steindiff import Corrected, InputError, SteindiffError, grids, models, sample, solvers
from steindiff.analytic import Gaussian
from steindiff.corrections import CleanTarget, Sparse
from steindiff.diagnostics import (
    along_trajectory,
    certificate_threshold,
    discrepancy_amplification,
    linearize,
    lipschitz,
    local_denoiser_lipschitz,
    noise_mismatch,
    random_directions,
    reference_flow,
    step_bound,
    step_maps,
    summarize,
)
from steindiff.diagnostics.setup import PRESETS, configure
from steindiff.divergence import Exact
from steindiff.errors import NonFiniteError

VARIANCES = torch.tensor([4.0, 1.0, 0.3, 0.01], dtype=torch.float64)
AXES = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
MODEL = Gaussian(torch.tensor([0.5, -1.0, 0.2, 0.0], dtype=torch.float64), AXES @ VARIANCES.diag() @ AXES.mT)


def states(batch=3, scale=1.0, seed=0, d=4):
    return scale * torch.randn(batch, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(sigma):
    """Eigenvalues of ∂D/∂x: λ/(λ + σ²)."""
    return VARIANCES / (VARIANCES + sigma**2)


def ddim_gain(s, t):
    return t / s + (1 - t / s) * slope(s)


def heun_gain(s, t):
    d, d_hat = (1 - slope(s)) / s, ddim_gain(s, t) * (1 - slope(t)) / t
    return 1 + (t - s) * (d + d_hat) / 2


def gains_2m(sigmas, i):
    """History frozen: the current value enters with 1 + h/(2h₁), or alone where the order is 1."""
    s, t = sigmas[i], sigmas[i + 1]
    last = i in (0, len(sigmas) - 2)
    weight = 1.0 if last else 1 + (s / t).log() / (2 * (sigmas[i - 1] / s).log())
    return t / s + (1 - t / s) * weight * slope(s)


# --- closed forms on a Gaussian ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("levels", [(80.0, 10.0), (2.0, 0.5), (0.3, 0.002)])
@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_step_maps_on_a_gaussian(name, levels, tol):
    (step,) = step_maps(solvers.make(name), MODEL, states(scale=levels[0]), torch.tensor(levels, dtype=torch.float64))
    gain = (ddim_gain if name == "ddim" else heun_gain)(*levels).abs().max()
    result = lipschitz(step.map, step.x, tol=tol)
    assert bool(result.converged.all())
    assert bool((result.residual <= tol).all())
    torch.testing.assert_close(result.value, gain.expand(3), rtol=tol, atol=0)
    assert bool((result.value <= gain * (1 + 1e-12)).all())


def test_every_step_of_2m_with_its_history_frozen():
    sigmas = grids.karras(6)
    reports = list(along_trajectory(solvers.make("dpmpp_2m"), MODEL, states(scale=80.0), sigmas, tol=1e-8))
    for i, report in enumerate(reports):
        want = float(gains_2m(sigmas, i).abs().max())
        assert report.lipschitz == pytest.approx([want] * 3, rel=1e-8)
        assert all(report.converged)
        assert (report.index, report.sigma) == (i, float(sigmas[i]))
        assert all(g <= want * (1 + 1e-9) for g in report.random)


def test_the_denoiser_and_the_certificate_are_tight_for_ddim_on_a_gaussian():
    s, t = torch.tensor(2.0, dtype=torch.float64), 0.5
    L = local_denoiser_lipschitz(MODEL, states(), s, tol=1e-10).value
    torch.testing.assert_close(L, slope(2.0).max().expand(3), rtol=1e-9, atol=0)
    assert step_bound(float(L[0]), 2.0, t) == pytest.approx(float(ddim_gain(2.0, t).max()))


# --- other Jacobians --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "double", "forward", "fd"])
def test_a_map_that_is_not_symmetric_nor_linear(method):
    A = torch.randn(7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    A[0, 6] = 30.0  # far from normal: eigenvalues say nothing
    x = 0.3 * states(5, d=7)
    J = (1 - torch.tanh(x @ A.mT) ** 2)[:, :, None] * A
    result = lipschitz(lambda z: torch.tanh(z @ A.mT), x, tol=1e-6, method=method)
    torch.testing.assert_close(result.value, torch.linalg.svdvals(J)[:, 0], rtol=1e-6, atol=1e-8)
    stretched = (J @ result.direction[..., None]).norm(dim=(1, 2))
    torch.testing.assert_close(stretched, result.value, rtol=1e-5, atol=1e-8)


def test_the_embedded_network_against_its_dense_jacobian():
    model = models.load("digits", dtype=torch.float64)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor(0.5, dtype=torch.float64)
    J = [torch.autograd.functional.jacobian(lambda z: model.denoiser(z[None], sigma)[0].flatten(), y) for y in x]
    want = torch.linalg.svdvals(torch.stack(J).reshape(2, 64, 64))[:, 0]
    result = local_denoiser_lipschitz(model.denoiser, x, sigma, tol=1e-4)
    assert bool(result.converged.all())
    torch.testing.assert_close(result.value, want, rtol=1e-4, atol=0)


def test_convergence_is_said_honestly():
    """A spectrum dense at its top: too few iterations must be called unconverged, and the value stay below the largest."""
    top = torch.linspace(1.0, 2.0, 400, dtype=torch.float64)
    x = states(4, d=400)
    short = lipschitz(lambda z: z * top, x, tol=1e-3, max_iterations=5)
    assert not bool(short.converged.any())
    assert short.iterations.tolist() == [5] * 4
    assert bool((short.value < 2).all())
    gap = ((short.value[:, None] - top) / short.value[:, None]).abs().min(1).values
    assert bool((gap <= short.residual).all())
    full = lipschitz(lambda z: z * top, x, tol=1e-3, max_iterations=200)
    assert bool(full.converged.all())
    assert bool((full.iterations < 200).all())
    torch.testing.assert_close(full.value, torch.full((4,), 2.0, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [0.0, 0.7, 1e-6, 1e4])
def test_a_multiple_of_the_identity_takes_one_iteration(factor, dtype):
    result = lipschitz(lambda z: factor * z, torch.ones(2, 3, 4, dtype=dtype), tol=1e-5)
    torch.testing.assert_close(result.value, torch.full((2,), factor, dtype=dtype), rtol=1e-5, atol=0)
    assert result.iterations.tolist() == [1, 1]


def test_more_iterations_than_dimensions_do_no_harm():
    result = lipschitz(lambda z: z @ torch.diag(torch.tensor([3.0, 1.0])), torch.ones(2, 2), tol=1e-12, max_iterations=30)
    torch.testing.assert_close(result.value, torch.full((2,), 3.0))


class _Plain(torch.autograd.Function):
    """x ↦ 2x with a backward that cannot be differentiated and no forward rule."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


class _WrongForward(_Plain):
    @staticmethod
    def jvp(ctx, t):
        return 5 * t


def test_missing_and_wrong_derivative_rules():
    x = torch.ones(2, 3, dtype=torch.float64)
    assert linearize(lambda z: _Plain.apply(z) ** 2, x).method == "fd"
    assert lipschitz(lambda z: _Plain.apply(z), x).value.tolist() == pytest.approx([2, 2])
    with pytest.raises(SteindiffError, match="not adjoint"):
        linearize(lambda z: _WrongForward.apply(z), x, "forward")
    with pytest.raises(SteindiffError, match="no gradient"):
        linearize(lambda z: z.detach() * 2, x)
    with torch.inference_mode(), pytest.raises(SteindiffError, match="inference_mode"):
        linearize(lambda z: z * 2, x)
    with torch.no_grad():
        assert linearize(lambda z: z * 2, x).method == "double"
    with pytest.raises(InputError, match="method='jvp'"):
        linearize(lambda z: z * 2, x, "jvp")
    with pytest.raises(InputError, match="tol=0"):
        lipschitz(lambda z: z * 2, x, tol=0)
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        lipschitz(lambda z: z * float("inf"), x, method="double")


def test_random_directions_have_the_frobenius_mean():
    A = torch.diag(torch.tensor([10.0, 1.0, 0.1, 0.0], dtype=torch.float64))
    gains = random_directions(lambda z: z @ A, states(50), 400)
    assert gains.shape == (400, 50)
    # v uniform on the sphere: E‖Av‖²/‖v‖² = ‖A‖_F²/d.
    assert float(gains.square().mean()) == pytest.approx(float(A.square().sum()) / 4, rel=0.02)
    assert float(gains.max()) <= 10
    with pytest.raises(InputError, match="k=0"):
        random_directions(lambda z: z, states(), 0)


# --- the actual error, the reference flow and the certificate ----------------------------------------------------------


def test_actual_amplification_of_a_linear_step_is_exact():
    sigmas = grids.karras(5)
    x = states(scale=80.0)
    reference = reference_flow(MODEL, x, sigmas)
    reports = list(along_trajectory(solvers.make("ddim"), MODEL, x, sigmas, reference=reference, tol=1e-8))
    assert all(v != v for v in reports[0].actual)
    for report, step in zip(reports[1:], list(step_maps(solvers.make("ddim"), MODEL, x, sigmas))[1:], strict=True):
        e = (step.x - MODEL.flow(x, 80.0, report.sigma)) @ AXES
        want = (e * ddim_gain(report.sigma, report.sigma_next)).norm(dim=1) / e.norm(dim=1)
        assert report.actual == pytest.approx(want.tolist(), rel=1e-3)
        assert max(report.actual) <= max(report.lipschitz) * (1 + 1e-6)
        assert report.discrepancy == pytest.approx((e.norm(dim=1) / 2).tolist(), rel=1e-3)


def test_a_free_step_stretches_by_its_weight():
    table = solvers.Table.universal(3).solver
    sigmas, x = table.own_grid, states(scale=80.0)
    reference = reference_flow(MODEL, x, sigmas)
    reports = list(along_trajectory(table, MODEL, x, sigmas, reference=reference, tol=1e-8))
    assert reports[0].lipschitz == pytest.approx([table.rows[0].a] * 3)
    assert reports[0].random == pytest.approx([table.rows[0].a] * len(reports[0].random))
    assert all(v == v for report in reports[1:] for v in report.actual)


def test_no_number_where_the_error_is_not_known():
    x = states()
    assert bool(discrepancy_amplification(lambda z: 2 * z, x, x).isnan().all())
    assert bool(discrepancy_amplification(lambda z: 2 * z, x, x + 1e-3, floor=1.0).isnan().all())
    torch.testing.assert_close(discrepancy_amplification(lambda z: 2 * z, x, x + 1e-3), torch.full((3,), 2.0).double())
    with pytest.raises(InputError, match="shape"):
        discrepancy_amplification(lambda z: z, x, x[:1])


def test_the_reference_flow_and_its_error_on_a_gaussian():
    x, sigmas = states(scale=80.0), torch.cat([grids.karras(n) for n in (3, 7)]).unique().flip(0)
    for max_step in (0.2, 1.0):
        reference = reference_flow(MODEL, x, sigmas, max_step=max_step)
        for sigma, y, error in zip(sigmas, reference.states, reference.errors, strict=True):
            gap = (y - MODEL.flow(x, 80.0, float(sigma))).norm(dim=1)
            assert bool((gap <= error + 1e-11).all())
    assert float(reference_flow(MODEL, x, sigmas).errors.max()) < 1e-4
    with pytest.raises(InputError, match="not on the reference's grid"):
        reference.at(torch.tensor(3.3))
    with pytest.raises(InputError, match="need both positive"):
        reference_flow(MODEL, x, grids.with_zero(sigmas))


@given(st.floats(0.05, 50), st.floats(0, 0.99), st.floats(0.01, 1), st.floats(0.2, 1))
@PROPERTY
def test_at_the_threshold_the_bound_is_one(sigma, ratio, alpha_next, ratio_alpha):
    step = (sigma, ratio * sigma, alpha_next * ratio_alpha, alpha_next)
    threshold = certificate_threshold(*step)
    assert threshold <= 1 / alpha_next * (1 + 1e-9)
    assert step_bound(threshold, *step) == pytest.approx(1)
    assert certificate_threshold(sigma, ratio * sigma) == pytest.approx(1)
    with pytest.raises(InputError, match="sigma_next < sigma"):
        certificate_threshold(sigma, sigma)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_3m", "unipc_2", "deis_3", "ipndm_4", "dpmpp_2s"])
def test_step_maps_follow_the_run(name):
    x, sigmas = noisy_state(80.0), grids.karras(6)
    maps = list(step_maps(solvers.make(name), mixture, x, sigmas))
    assert torch.equal(maps[-1].map(maps[-1].x), sample(name, mixture, x, sigmas).x)
    for step, after in pairwise(maps):
        assert torch.equal(step.map(step.x), after.x)


def test_an_estimating_correction_is_refused_with_a_remedy():
    corrected = Corrected(solvers.make("ddim"), CleanTarget(gamma_max=1.0), divergence=Exact())
    with pytest.raises(SteindiffError, match="FixedGamma"):
        list(along_trajectory(corrected, mixture, noisy_state(80.0), grids.karras(3)))


def test_a_network_that_cuts_its_graph_is_refused():
    """Its step would be r x + a constant: a contraction, and wrong."""
    with pytest.raises(SteindiffError, match="no_grad"):
        next(
            along_trajectory(
                solvers.make("ddim"), lambda x, s: 0.5 * x + 0.5 * mixture(x.detach(), s), noisy_state(80.0), grids.karras(3)
            )
        )


# --- meters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("excess", [0.5, 1.0, 3.0])
def test_the_noise_meter_reads_the_noise_of_a_point(excess):
    """For x* a point, D is constant and ‖x − D‖²/d is the noise itself."""
    point = Gaussian(torch.zeros(4, dtype=torch.float64), 1e-12 * torch.eye(4, dtype=torch.float64))
    x = states(4000, scale=0.7 * excess)
    assert float(noise_mismatch(point, x, torch.tensor(0.7))) == pytest.approx(excess, rel=0.02)


def test_the_noise_meter_is_one_on_the_marginal():
    x = noisy_state(0.5, batch=20000)
    assert float(noise_mismatch(mixture, x, torch.tensor(0.5), estimator=Exact())) == pytest.approx(1, abs=0.01)


def test_trace_summaries():
    solver = Corrected("dpmpp_2m", Sparse(CleanTarget(gamma_max=1.0), steps=range(4)), divergence=Exact())
    trace = sample(solver, mixture, noisy_state(80.0, batch=64), grids.karras(5)).trace
    summary = summarize(trace)
    assert summary.steps == 5
    assert 0 < summary.gamma_min <= summary.gamma_median <= summary.gamma_max == 1
    assert summary.raw_max > 1
    assert sum(summary.reasons.values()) == 5
    assert summary.reasons["inactive"] == 1
    assert 0 < summary.noise_min <= summary.noise_max
    plain = summarize(sample("ddim", mixture, noisy_state(80.0), grids.karras(3)).trace)
    assert plain.noise_max != plain.noise_max
    with pytest.raises(InputError, match="empty trace"):
        summarize([])


# --- the command ------------------------------------------------------------------------------------------------------


def run(monkeypatch, capsys, *args):
    code, out, err = run_command(monkeypatch, capsys, "diagnose", *args)
    return code, " ".join((out + err).split())


def small_model(path):
    """A model file: three factor analysers in 12 dimensions."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "weights": torch.ones(3) / 3,
        "means": torch.randn(3, 12, generator=generator),
        "loadings": torch.randn(3, 12, 2, generator=generator),
        "log_diagonal": torch.full((3, 12), -4.0),
    }
    models.save(path, tensors, {"kind": "factor_mixture", "name": "small", "event_shape": [3, 2, 2]})
    return str(path)


def test_the_command_writes_a_report_with_its_numbers(tmp_path, monkeypatch, capsys):
    args = [
        "--model",
        small_model(tmp_path / "small.safetensors"),
        "--solver",
        "ddim,unipc_2",
        "--nfe",
        "12,3",
        "--samples",
        "2",
        "--outdir",
        str(tmp_path),
    ]
    code, text = run(monkeypatch, capsys, *args)
    assert code == 0, text
    results = json.loads((tmp_path / "results.json").read_text())
    report = (tmp_path / "report.md").read_text()
    cells = {(c["solver"], c["nfe"]): c for c in results["cells"]}
    assert list(cells) == [("ddim", 3), ("ddim", 12), ("unipc_2", 3), ("unipc_2", 12)]
    assert len(cells["ddim", 3]["reports"]) == 3
    assert len(cells["ddim", 12]["reports"]) == 6  # the quick preset measures six steps of a long run
    for cell in cells.values():
        assert all(all(r["converged"]) and len(r["lipschitz"]) == 2 for r in cell["reports"])
        peak = max(v for r in cell["reports"] for v in r["lipschitz"])
        assert f"| {cell['nfe']} | {cell['solver']} | {len(cell['reports'])} of {cell['steps']} | {peak:.3g} |" in report
    assert {t["rule"] for t in results["traces"]} == {"none", "clamped", "literal"}
    assert len(results["denoiser"]["small"]["lipschitz"]) == 24
    for name in ("steps", "denoiser", "gamma", "toy"):
        assert f"({name}.png)" in report
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert results["toy"]["half a turn, T(x) = −x"]["factors"] == pytest.approx({"1": 1.0, "0.9": 0.8, "0.75": 0.5, "0.5": 0.0})
    assert "| a quarter turn | 1 | 0.5 | 0.707 | 0.707 | 0.0156 |" in report
    assert "about 24 at NFE 6" in report
    assert "cannot be recovered" in report
    assert json.loads((tmp_path / "run.json").read_text())["config"]["nfe"] == [3, 12]
    assert [path.name for path in tmp_path.glob(".*")] == [".steindiff.json"]  # what the command has written is listed there


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--solver", "dpmp_2m"], "did you mean 'dpmpp_2m'"),
        (["--model", "digit"], "did you mean 'digits'"),
        (["--preset", "quik"], "did you mean 'quick'"),
        (["--nfe", "5,six"], "whole numbers separated by commas"),
        (["--nfe", "1,5"], "need nfe ≥ 2"),
        (["--nfe", "5,5"], "none twice"),
        (["--solver", "ddim", "--all"], "give one of them"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(tmp_path, monkeypatch, capsys, args, message):
    code, text = run(monkeypatch, capsys, *args, "--outdir", str(tmp_path / "out"))
    assert code == 2
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_presets():
    assert configure("quick") == PRESETS["quick"]
    assert configure("full").solvers == solvers.names()
    assert configure("quick", all_solvers=True, nfe=(20, 5)).nfe == (5, 20)
    assert PRESETS["quick"].trajectories(3072) == 2
    assert PRESETS["full"].nfe == (5, 6, 8, 10, 15, 20, 50, 100)
