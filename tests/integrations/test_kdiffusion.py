"""`sample_steindiff` has k-diffusion's arguments, spends what `sigmas` say, and ends where `steindiff.sample` ends."""

import inspect
import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import steindiff as sd
from problems import MODEL
from steindiff.denoisers import Guided, sigma_data_of
from steindiff.errors import InputError, NonFiniteError
from steindiff.integrations import kdiffusion
from steindiff.integrations.kdiffusion import SAMPLERS, sample_steindiff
from steindiff.solvers import Setting
from steindiff.solvers.table import save_all

ROOT = Path(__file__).parents[2]
TOP = 14.6
N = 5
SIGMAS = sd.grids.with_zero(sd.grids.karras(N - 1, 0.03, TOP))
SETTING = Setting(TOP, 0.0, sigma_data=1.0)


def noise(batch=4, top=TOP, dtype=torch.float64):
    return (top * torch.randn(batch, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(dtype)


class Recorded:
    """A model of k-diffusion's convention around the exact law; it records how it is called."""

    def __init__(self, law=MODEL):
        self.law, self.calls = law, []

    def __call__(self, x, sigma, **extra_args):
        self.calls.append((x, sigma, extra_args))
        return self.law(x.double(), sigma.double()).to(x.dtype)

    @property
    def told(self):
        return [float(sigma[0]) for _, sigma, _ in self.calls]


def loop_2m(model, x, sigmas):
    """DPM-Solver++ 2M written from its formula: x' = (σ'/σ) x + (1 − σ'/σ) D̂, D̂ = D + h/(2 h₁) (D − D₁); D at σ' = 0."""
    old = None
    for i in range(len(sigmas) - 1):
        s, t = float(sigmas[i]), float(sigmas[i + 1])
        d = ahead = model(x, torch.full((len(x),), s, dtype=x.dtype))
        if old is not None and t > 0:
            ahead = d + math.log(s / t) / math.log(float(sigmas[i - 1]) / s) / 2 * (d - old)
        x, old = t / s * x + (1 - t / s) * ahead, d
    return x


def test_the_arguments_are_those_of_k_diffusion():
    names = list(inspect.signature(sample_steindiff).parameters)
    assert names[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    by_name = inspect.signature(SAMPLERS["steindiff_unipc_3"]).parameters
    # a web UI fills in what it finds by these names
    assert not {"n", "eta", "sigma_min", "sigma_max", "sigma_sched", "noise_sampler", "s_churn"} & set(by_name)


@pytest.mark.parametrize(("n", "last"), [(5, 0.0), (20, 0.0), (5, None)])
def test_on_given_levels_it_is_the_loop_and_our_own_sample(n, last):
    sigmas = sd.grids.karras(n - 1, 0.03, TOP)
    sigmas = sd.grids.with_zero(sigmas) if last == 0 else torch.cat([sigmas, torch.tensor([0.01])])
    spec = "dpmpp_2m(lower_order_final=False)"
    ours = sample_steindiff(MODEL, noise(), sigmas, disable=True, solver=spec)
    torch.testing.assert_close(ours, loop_2m(MODEL, noise(), sigmas), rtol=1e-10, atol=1e-10)
    assert torch.equal(ours, sd.sample(spec, MODEL, noise(), sigmas).x)


SPECS = [*sd.solvers.names(), "auto", "universal", "free", "evodiff", "pndm", "restart(heun)"]


@pytest.mark.parametrize("spec", SPECS)
def test_every_solver_runs_and_costs_what_it_says(spec):
    model, seen = Recorded(), []
    end = sample_steindiff(model, noise(), SIGMAS, {"cond": 1}, seen.append, True, solver=spec)
    solver = sd.solvers.make(spec)
    assert len(model.calls) == (N if solver.plans else solver.nfe(SIGMAS))
    assert [d["i"] for d in seen] == list(range(N))
    assert all(sigma.shape == (4,) and sigma.dtype == x.dtype and extra == {"cond": 1} for x, sigma, extra in model.calls)
    assert end.shape == (4, 3)
    exact = MODEL.flow(noise(), TOP, 1e-3, tol=1e-6)
    assert float((end - exact).square().mean().sqrt()) < 0.6  # the data's standard deviation is 1.2


@pytest.mark.parametrize("spec", ["ddim", "dpmpp_3m", "unipc_3", "ipndm_4"])
def test_one_evaluation_at_each_given_level_but_the_last(spec):
    model = Recorded()
    sample_steindiff(model, noise(), SIGMAS, disable=True, solver=spec)
    assert model.told == pytest.approx(SIGMAS[:-1].tolist())


def test_a_solver_with_levels_of_its_own_takes_the_ends_and_the_count():
    table = sd.Table.universal(N, TOP, 0.0, 1.0)
    ours = sd.sample(table.solver, MODEL, noise(), table.sigmas).x
    for sigmas in (SIGMAS, sd.grids.with_zero(sd.grids.log_snr(N - 1, 0.5, TOP)), SIGMAS.float()):
        model = Recorded()
        end = sample_steindiff(model, noise(), sigmas, disable=True)
        torch.testing.assert_close(end, ours, rtol=1e-5, atol=1e-5)
        assert len(model.calls) == N
        assert max(model.told) < TOP / 1.25  # the first step evaluates nothing
    kept = torch.cat([SIGMAS[:-1], torch.tensor([0.01])])
    above = sd.Table.universal(N, TOP, 0.01, 1.0)
    end = sample_steindiff(Recorded(), noise(), kept, disable=True)
    torch.testing.assert_close(end, sd.sample(above.solver, MODEL, noise(), above.sigmas).x)


def test_a_start_at_a_low_level_takes_a_published_solver_on_the_given_levels():
    sigmas, model = sd.grids.with_zero(sd.grids.karras(N - 1, 0.03, 2.0)), Recorded()
    x = MODEL.sample(4, torch.Generator().manual_seed(0)) + noise(top=2.0)
    end = sample_steindiff(model, x, sigmas, disable=True)
    assert model.told == pytest.approx(sigmas[:-1].tolist())
    assert torch.equal(end, sd.sample("ipndm_4", MODEL, x, sigmas).x)
    with pytest.raises(InputError, match="universal tables with 5 evaluations start between"):
        sample_steindiff(MODEL, x, sigmas, disable=True, solver="universal")


def test_the_last_part_of_divided_sigmas_goes_on_where_the_first_has_ended():
    whole = sample_steindiff(MODEL, noise(), SIGMAS, disable=True, solver="ddim")
    half = sample_steindiff(MODEL, noise(), SIGMAS[:4], disable=True, solver="ddim")
    torch.testing.assert_close(sample_steindiff(MODEL, half, SIGMAS[3:], disable=True, solver="ddim"), whole)


def test_the_scale_of_guidance_chooses_the_table():
    weak = MODEL.__class__(MODEL.weights, MODEL.means * 0.5, MODEL.covariances)
    guided = Guided(MODEL, weak, 3.0)
    expected = sd.sample("auto", guided, noise(), nfe=N, setting=replace(SETTING, guidance=3.0)).x
    assert not torch.equal(expected, sd.sample("auto", guided, noise(), nfe=N, setting=SETTING).x)

    def model(x, sigma, cond_scale):
        return Guided(MODEL, weak, cond_scale)(x, sigma)

    def bound(x, sigma):
        return guided(x, sigma)

    assert torch.equal(sample_steindiff(model, noise(), SIGMAS, {"cond_scale": 3.0}, disable=True), expected)
    assert torch.equal(sample_steindiff(bound, noise(), SIGMAS, disable=True, guidance=3.0), expected)


def test_sigma_data_is_the_models_or_one():
    class Wrapped:
        sigma_data = 0.5

        def __call__(self, x, sigma):
            return MODEL(x, sigma)

    class Outer:
        inner_model = Wrapped()

        def __call__(self, x, sigma):
            return MODEL(x, sigma)

    half = sd.sample("universal", MODEL, noise(), nfe=N, setting=replace(SETTING, sigma_data=0.5)).x
    one = sd.sample("universal", MODEL, noise(), nfe=N, setting=SETTING).x
    assert sigma_data_of(Outer()) == 0.5
    assert torch.equal(sample_steindiff(Outer(), noise(), SIGMAS, disable=True), half)
    assert torch.equal(sample_steindiff(Recorded(), noise(), SIGMAS, disable=True), one)
    assert torch.equal(sample_steindiff(Outer(), noise(), SIGMAS, disable=True, sigma_data=1.0), one)


def test_a_callback_gets_each_step_and_cannot_change_it():
    for spec in ("dpmpp_2m", "universal"):
        model, seen, wrote = Recorded(), [], []

        def write(d, wrote=wrote):
            wrote.append(d["i"])
            d["x"].zero_()
            d["denoised"].zero_()

        end = sample_steindiff(model, noise(dtype=torch.float32), SIGMAS, callback=seen.append, disable=True, solver=spec)
        assert [set(d) for d in seen] == [{"x", "i", "sigma", "sigma_hat", "denoised"}] * N
        for d, (x, sigma, _) in zip(seen, model.calls, strict=True):
            torch.testing.assert_close(d["x"], x)
            torch.testing.assert_close(d["denoised"], MODEL(x.double(), sigma.double()).float())
            assert d["x"].dtype == d["denoised"].dtype == torch.float32
            assert float(d["sigma_hat"]) == pytest.approx(float(sigma[0]))
            assert d["sigma"].ndim == 0
        again = sample_steindiff(model, noise(dtype=torch.float32), SIGMAS, callback=write, disable=True, solver=spec)
        assert torch.equal(again, end)
        assert wrote == list(range(N))


def test_what_a_callback_raises_ends_the_run():
    class Interrupted(Exception):
        pass

    def stop(d):
        if d["i"] == 2:
            raise Interrupted

    model = Recorded()
    with pytest.raises(Interrupted):
        sample_steindiff(model, noise(), SIGMAS, callback=stop, disable=True, solver="ddim")
    assert len(model.calls) == 3


@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("spec", ["dpmpp_2m", "auto"])
def test_half_precision_comes_in_and_goes_out_and_the_state_is_wider(spec, dtype, near):
    model, seen = Recorded(), []
    end = sample_steindiff(model, noise(dtype=dtype), SIGMAS, callback=seen.append, disable=True, solver=spec)
    assert end.dtype == dtype
    assert all(x.dtype == sigma.dtype == dtype for x, sigma, _ in model.calls)
    assert {d["x"].dtype for d in seen} == {d["denoised"].dtype for d in seen} == {dtype}
    wide = sample_steindiff(MODEL, noise(dtype=dtype).double(), SIGMAS, disable=True, solver=spec)
    assert float((end - wide).square().mean().sqrt()) < near


def test_a_model_of_half_precision_under_a_wide_state():
    def model(x, sigma):
        return MODEL(x.double(), sigma.double()).half()

    end = sample_steindiff(model, noise(dtype=torch.float32), SIGMAS, disable=True)
    assert end.dtype == torch.float32
    torch.testing.assert_close(end.double(), sample_steindiff(MODEL, noise(), SIGMAS, disable=True), rtol=0.01, atol=0.01)


def test_every_image_has_its_own_arguments():
    shift = torch.arange(12.0, dtype=torch.float64)[:, None] / 10

    def model(x, sigma, cond):
        return MODEL(x - cond, sigma) + cond  # the law moved by cond, one for each image of the whole batch

    x = noise(12, top=0.25)

    def cut(y, sigma):
        return model(y, sigma, shift[: len(y)])

    for correction in (None, "clamped(mode=full)"):  # whose probe of the network asks for the first eight images
        end = sample_steindiff(model, x, SIGMAS[3:], {"cond": shift}, disable=True, solver="ddim", correction=correction)
        moved = sample_steindiff(cut, x, SIGMAS[3:], disable=True, solver="ddim", correction=correction)
        torch.testing.assert_close(end, moved, rtol=1e-6, atol=1e-6)
    x = noise(12)
    alone = sample_steindiff(model, x[7:8], SIGMAS, {"cond": shift[7:8]}, disable=True)
    torch.testing.assert_close(alone, sample_steindiff(model, x, SIGMAS, {"cond": shift}, disable=True)[7:8])


def test_corrections_are_those_of_corrected():
    for spec in ("clamped(mode=tweedie)", "epsilon_scaling(b=1.01)", "clamped"):
        seen = []
        ours = sample_steindiff(MODEL, noise(64), SIGMAS, {}, seen.append, True, solver="dpmpp_2m", correction=spec)
        assert [d["i"] for d in seen] == list(range(N))
        expected = sd.sample(sd.Corrected("dpmpp_2m", spec, frame="ve"), MODEL, noise(64), SIGMAS).x
        torch.testing.assert_close(ours, expected)
        assert not torch.equal(ours, sample_steindiff(MODEL, noise(64), SIGMAS, disable=True, solver="dpmpp_2m"))
    none = sample_steindiff(MODEL, noise(), SIGMAS, disable=True, correction="none")
    assert torch.equal(none, sample_steindiff(MODEL, noise(), SIGMAS, disable=True))


class Net(nn.Module):
    """A small network with attention's and a normalisation's parts."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.LayerNorm(16), nn.Linear(16, 3))

    def forward(self, x, sigma, **extra_args):
        s = sigma[:, None]
        return (x + 0.1 * self.inside(torch.cat([x / (1 + s**2).sqrt(), s.log()], 1))) / (1 + s**2)


@pytest.mark.parametrize("correction", [None, "clamped(mode=tweedie)", "clamped(mode=full)"])
@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode(correction, inside):
    """Programs run all of it in inference mode; weights that were made there know no gradient outside either."""

    def run(net, x, mode):
        with torch.inference_mode(mode):
            return sample_steindiff(net, x, SIGMAS, disable=True, solver="ddim", correction=correction)

    torch.manual_seed(0)
    plain = Net()
    with torch.inference_mode():
        net, x = Net(), noise(8, dtype=torch.float32).clone()
        net.load_state_dict(plain.state_dict())
    outside = run(plain, noise(8, dtype=torch.float32), False)
    torch.testing.assert_close(run(net, x, inside), outside, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("spec", "extra"), [("ddim", 2 * N), ("dpmpp_2m", 4)])
def test_finite_differences_take_the_place_of_gradients_in_inference_mode(spec, extra):
    """Two for each step that needs a derivative, here all or the first and the last, and none to find out what works."""
    model = Recorded()
    with torch.inference_mode():
        sample_steindiff(model, noise(), SIGMAS, disable=True, solver=spec, correction="clamped")
    assert len(model.calls) == N + extra


def test_known_parts_of_an_image_stay_known():
    """Inpainting is a part of the model: it puts noise of the level where the image is known, and the image into its answer."""
    known, mask, eps = torch.full((4, 3), 0.7, dtype=torch.float64), torch.tensor([1.0, 1.0, 0.0]), noise(top=1.0)

    def model(x, sigma, denoise_mask):
        x = x * denoise_mask + (known + eps * sigma[:, None]) * (1 - denoise_mask)
        return MODEL(x, sigma) * denoise_mask + known * (1 - denoise_mask)

    for spec, near in (("dpmpp_2m", 1e-12), ("auto", 0.02)):
        end = sample_steindiff(model, noise(), SIGMAS, {"denoise_mask": mask}, disable=True, solver=spec)
        torch.testing.assert_close(end[:, 2], known[:, 2], rtol=0, atol=near)


def test_the_bar_is_tqdms(capsys):
    sample_steindiff(MODEL, noise(), SIGMAS, disable=True)
    assert capsys.readouterr().err == ""
    sample_steindiff(MODEL, noise(), SIGMAS, disable=False)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sigmas": SIGMAS.flip(0)}, "is not positive"),
        ({"sigmas": torch.tensor([3.0, 2.0, 2.0, 0.0])}, r"sigmas\[2\] = 2 is not below the one before it"),
        ({"sigmas": torch.tensor([3.0])}, "need a 1-D tensor of n\\+1 ≥ 2 noise levels"),
        ({"sigmas": torch.tensor([])}, "need a 1-D tensor"),
        ({"sigmas": torch.tensor([math.nan, 1.0, 0.0])}, r"sigmas\[0\] = nan is not finite"),
        ({"sigmas": torch.tensor([3, 2, 0])}, "need floating point"),
        ({"x": torch.zeros(4, 3, dtype=torch.long)}, "need a floating-point tensor"),
        ({"x": torch.zeros(3)}, "need a floating-point tensor"),
        ({"x": torch.full((4, 3), math.nan)}, "NaN or infinite values"),
        ({"solver": "dpmp_2m"}, "did you mean 'dpmpp_2m'"),
        ({"correction": "clampd"}, "did you mean 'clamped'"),
        ({"sigma_data": 0.0}, "need a positive standard deviation"),
        ({"guidance": -1.0}, "need a scale from 0"),
        ({"flow": True}, r"sigma=14\.6.*: the levels of a flow are times t ≤ 1; leave flow=False"),
        ({"model": lambda x, sigma: x[:, :2]}, "shape and dtype must stay unchanged"),
    ],
)
def test_bad_input_is_refused(change, said):
    given = {"model": MODEL, "x": noise(), "sigmas": SIGMAS, "disable": True, **change}
    with pytest.raises(InputError, match=said):
        sample_steindiff(**given)


def test_an_answer_that_is_not_finite_names_its_level():
    with pytest.raises(NonFiniteError, match=r"step 2, sigma = 1\.28"):
        sample_steindiff(lambda x, s: MODEL(x, s) / (s[:, None] > 3), noise(), SIGMAS, disable=True, solver="ddim")


@pytest.fixture(scope="module")
def calibrated():
    return kdiffusion.calibrate(MODEL, noise(48), SIGMAS, nfe=3)


def three(sigmas=None):
    return sd.grids.with_zero(sd.grids.karras(2, 0.03, TOP)) if sigmas is None else sigmas


def test_a_calibrated_table_runs_from_the_object_and_from_its_file(calibrated, tmp_path):
    assert calibrated.nfe == 3
    assert calibrated.sigmas[0] == TOP
    assert float(calibrated.sigmas[-1]) == pytest.approx(0.03)
    x, model = noise(8), Recorded()
    end = sample_steindiff(model, x, three(), disable=True, table=calibrated)
    assert len(model.calls) == 3
    exact = MODEL.flow(x, TOP, 1e-3, tol=1e-6)
    universal = sample_steindiff(MODEL, x, three(), disable=True)
    assert float((end - exact).norm()) < float((universal - exact).norm())
    path = save_all(tmp_path / "tables.safetensors", [calibrated])
    for given in (calibrated.solver, path, str(path)):
        assert torch.equal(sample_steindiff(MODEL, x, three(), disable=True, table=given), end)
    corrected = sample_steindiff(MODEL, x, three(), disable=True, table=calibrated, correction="dcw")
    assert not torch.equal(corrected, end)


def test_auto_finds_the_table_of_the_very_model(calibrated, tmp_path, monkeypatch):
    end = sample_steindiff(MODEL, noise(), three(), disable=True, table=calibrated)
    calibrated.save(tmp_path / "three.safetensors")
    monkeypatch.setenv("STEINDIFF_TABLES", str(tmp_path))
    assert torch.equal(sample_steindiff(MODEL, noise(), three(), disable=True), end)
    assert not torch.equal(sample_steindiff(MODEL, noise(), three(), disable=True, guidance=3.0), end)


def test_a_table_for_anything_else_is_refused(calibrated):
    other = MODEL.__class__(MODEL.weights, MODEL.means + 0.2, MODEL.covariances)
    low = sd.grids.with_zero(sd.grids.karras(2, 0.03, 5.0))
    for given, said in [
        ({"sigmas": SIGMAS}, "nfe=5: the table is for 3 evaluations"),
        ({"sigmas": low, "x": noise(top=5.0)}, r"first_level=5\.0: the table starts at 14\.6"),
        ({"guidance": 3.0}, "calibrated for guidance 1.0"),
        ({"model": other}, "calibrated for network"),
        ({"x": torch.cat([noise(), noise()], 1)}, "calibrated for event"),
        ({"solver": "ddim"}, "give a solver or a table, and not both"),
        ({"sigmas": torch.tensor([TOP, 9.0, 8.0, 7.0])}, r"sigma_min=7\.0: the last level of this table"),
    ]:
        with pytest.raises(InputError, match=said):
            sample_steindiff(**{"model": MODEL, "x": noise(), "sigmas": three(), "disable": True, "table": calibrated, **given})
    insisted = calibrated.anyway("network")
    assert torch.isfinite(sample_steindiff(other, noise(), three(), disable=True, table=insisted)).all()


def test_a_model_that_rounds_levels_to_its_times_is_served():
    """As discrete wrappers do: a table's levels are rounded like any others, which changes little."""
    known = sd.schedules.DiscreteBetas.scaled_linear()
    levels = known.ratio(torch.arange(1000.0, dtype=torch.float64))

    def rounded(x, sigma, **extra_args):
        nearest = (levels.log() - sigma[:, None].log()).abs().argmin(1)
        return MODEL(x, levels[nearest])

    sigmas = sd.grids.with_zero(sd.grids.karras(N - 1, float(levels[0]), float(levels[-1])))
    for spec in ("auto", "dpmpp_2m"):
        ends = [sample_steindiff(model, noise(), sigmas, disable=True, solver=spec) for model in (rounded, Recorded())]
        assert 0 < float((ends[0] - ends[1]).abs().max()) < 0.05


def test_every_image_may_have_its_own_level():
    """Wrappers that tell each image's own level, such as TimeSelected, are passed on as they are."""
    model = Recorded()
    levels = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(kdiffusion.denoiser(model)(noise(), levels), MODEL(noise(), levels))
    assert torch.equal(model.calls[0][1], levels)


def flowing(x, t, **extra_args):
    """The same law as a rectified flow's denoiser: x = (1−t) x* + t ε."""
    t = t[:, None]
    return MODEL(x / (1 - t), (t / (1 - t))[:, 0])


TIMES = torch.tensor([0.95, 0.9, 0.75, 0.5, 0.2, 0.0], dtype=torch.float64)


def test_a_flow_is_run_in_its_own_time():
    x, seen, ratios = noise(top=0.95), [], TIMES / (1 - TIMES)
    end = sample_steindiff(flowing, x, TIMES, callback=seen.append, disable=True, solver="dpmpp_2m", flow=True)
    ours = sd.sample("dpmpp_2m", MODEL, x / 0.05, ratios).x
    torch.testing.assert_close(end, ours, rtol=1e-9, atol=1e-9)
    assert [float(d["sigma"]) for d in seen] == pytest.approx(TIMES[:-1].tolist())
    torch.testing.assert_close(seen[0]["x"], x)
    half = sample_steindiff(flowing, x, TIMES[:4], disable=True, solver="ddim", flow=True)
    straight = x
    for t, u in zip(TIMES[:3].tolist(), TIMES[1:4].tolist(), strict=True):  # Euler on dx/dt = (x − D)/t
        straight = straight + (u - t) * (straight - flowing(straight, torch.full((4,), t, dtype=x.dtype))) / t
    torch.testing.assert_close(half, straight, rtol=1e-9, atol=1e-9)


def test_a_flow_starts_from_pure_noise():
    times, x = torch.cat([torch.ones(1, dtype=torch.float64), TIMES[1:]]), noise(64, top=1.0)
    exact = MODEL.flow(1000 * x, 1000.0, 1e-3, tol=1e-6)
    errors = {}
    for spec in ("auto", "dpmpp_2m"):
        end = sample_steindiff(flowing, x, times, disable=True, solver=spec, flow=True)
        errors[spec] = float((end - exact).square().mean().sqrt())
    assert errors["auto"] < errors["dpmpp_2m"] < 0.5
    steep = torch.tensor([1.0, 0.9995, 0.5, 0.0], dtype=torch.float64)
    assert torch.isfinite(sample_steindiff(flowing, x, steep, disable=True, solver="ddim", flow=True)).all()


def test_a_table_for_a_flow():
    times, x = torch.tensor([1.0, 0.7, 0.03, 0.0], dtype=torch.float64), noise(32, top=1.0)
    table = kdiffusion.calibrate(flowing, x, times, nfe=2, flow=True)
    assert table.nfe == 2
    times, new = times[[0, 1, 3]], noise(8, top=1.0).flip(0)
    exact = MODEL.flow(1000 * new, 1000.0, 1e-3, tol=1e-6)
    end = sample_steindiff(flowing, new, times, disable=True, table=table, flow=True)
    plain = sample_steindiff(flowing, new, times, disable=True, solver="dpmpp_2m", flow=True)
    assert float((end - exact).norm()) < float((plain - exact).norm())


def test_the_denoiser_of_a_model_serves_every_part_of_the_package():
    D = kdiffusion.denoiser(Recorded(), {"cond_scale": 2.0})
    assert sd.denoisers.guidance_of(D) == 2.0
    assert sd.denoisers.is_conditioned(D)
    assert sd.denoisers.schedule_of(D) == sd.schedules.VE()
    assert sd.sample("dpmpp_2m", D, noise(), SIGMAS).stats.nfe == N


def test_the_example_runs_and_is_the_one_in_the_docs(capsys):
    path = ROOT / "examples" / "k_diffusion_loop.py"
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    euler, two, auto = (float(line.split()[-1]) for line in lines)
    assert auto < min(euler, two)
    assert all("6 evaluations" in line for line in lines)
    page = (ROOT / "docs" / "integrations" / "kdiffusion.md").read_text()
    assert path.read_text().split('"""', 2)[2].strip() in page
    assert path.read_text().count("\n") < 40


def test_the_calls_on_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "integrations" / "kdiffusion.md").read_text()
    names = {
        "model": MODEL,
        "x": noise(),
        "many_x": noise(64),
        "sigmas": three(),
        "extra_args": {},
        "callback": None,
        "disable": True,
    }
    first, second, *_ = page.split("```python")[1:]
    for block in (first, second):
        exec(block.split("```")[0], names)
        assert names["x"].shape == (4, 3)
    assert sd.Table.load("five.safetensors").nfe == 3
