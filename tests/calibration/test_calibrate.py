"""A calibration from end to end: it gains, it is never worse than what its gate knows, it stops and goes on."""

import math
from dataclasses import replace

import pytest
import torch

import steindiff
from exact_paths import isotropic, normal
from problems import MODEL
from steindiff import models
from steindiff.calibration import Options, Settings, calibrate, calibrations, gate, trajectories
from steindiff.calibration.calibrate import divided, enough
from steindiff.denoisers import Guided
from steindiff.errors import InputError, NonFiniteError
from steindiff.io.files import HALF
from steindiff.sampling import sample
from steindiff.solvers import Row, Setting, Table, Tabulated

NOISE = 80 * normal(48, 3)
QUICK = Options(steps=32, settings=Settings(iterations=6, along=0.2))


def end_rmse(solver, law, seed=9, n=96):
    exact = trajectories(law, 80 * normal(n, 3, seed=seed), count=64)
    return exact.rmse(sample(solver, law, exact.noise, solver.own_grid).x)


@pytest.fixture(scope="module")
def made():
    return calibrations(MODEL, NOISE, [2, 3], options=QUICK)


def test_a_gaussian_law_is_exact_in_one_evaluation():
    law = isotropic()
    assert end_rmse(calibrate(law, NOISE, 1).solver, law) < 3e-4


def test_it_gains_on_new_noise(made):
    for table in made:
        universal = Table.universal(table.nfe, sigma_data=MODEL.sigma_data).solver
        assert end_rmse(table.solver, MODEL) < end_rmse(universal, MODEL)
        assert table.report["gate"]["kept"] == table.solver.name == "calibrated table"


def test_the_root_package_has_it():
    assert steindiff.calibrate is calibrate


def test_a_report_says_what_was_seen_and_what_it_cost(made):
    report = made[1].report
    seen = report["gate"]
    assert report["trajectories"] == {"fitted": 30, "choosing": 6, "gate": 12}
    assert seen["rmse"] <= seen["others"][seen["best"]] == min(seen["others"].values())
    assert {"universal", "ddim on karras", "unipc_3 on log_snr", "heun on karras", "ipndm_4 on karras"} <= set(seen["others"])
    assert report["cost"]["of_fine_runs"] == 33 * 48
    assert report["cost"]["evaluated_images"] > 0
    assert (report["nfe"], report["steps"]) == (3, 32)
    assert made[0].solver.purpose == made[1].solver.purpose
    assert made[0].solver.purpose.event == (3,)


def test_an_image_depends_on_its_noise_alone(made):
    table, x = made[1], 80 * normal(64, 3, seed=4)
    together = sample(table.solver, MODEL, x, table.sigmas).x
    torch.testing.assert_close(sample(table.solver, MODEL, x[7:8], table.sigmas).x, together[7:8], rtol=1e-12, atol=1e-12)


def test_the_order_of_the_noises_does_not_matter(made):
    shuffled = NOISE[torch.randperm(48, generator=torch.Generator().manual_seed(1))]
    again = calibrate(MODEL, shuffled, 2, options=QUICK).solver
    for mine, theirs in zip(made[0].solver.rows, again.rows, strict=True):
        assert (mine.a, *mine.values) == pytest.approx((theirs.a, *theirs.values), rel=1e-6)


@pytest.mark.parametrize("n", [8, 11, 16, 37, 64, 128])
def test_noises_are_divided_without_overlap(n):
    parts = divided(normal(n, 5, seed=n))
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    fitted, choosing, guarded = map(len, parts)
    assert fitted >= n // 2
    assert min(choosing, guarded) >= min(4, n // 4)


def test_the_more_an_image_tells_the_fewer_are_fitted():
    assert enough(10, 3072) < enough(5, 3072) < enough(5, 64)
    assert enough(10, 10**6) == 8


def test_the_gate_keeps_nothing_that_is_worse():
    """A poor table loses to the best of the others; one that equals it does not pass either."""
    law, setting = trajectories(MODEL, 80 * normal(16, 3, seed=3)), Setting(sigma_data=MODEL.sigma_data)
    others = gate.alternatives(4, setting)
    poor = others["ddim on log_snr"]
    kept, verdict = gate.passed(poor, others, law)
    assert kept is others[verdict.best]
    assert verdict.kept == verdict.best
    assert verdict.rmse > verdict.others[verdict.best]
    best = others[verdict.best]
    assert gate.passed(replace(best, name="mine"), others, law)[1].kept == verdict.best


def test_the_gate_counts_a_run_that_diverges_as_the_worst():
    law = trajectories(MODEL, 80 * normal(16, 3, seed=3))
    wild = Tabulated((80.0, 0.002), (Row(1e200, (1.0,)),), (1.0,))
    others = gate.alternatives(1, Setting(sigma_data=MODEL.sigma_data))
    verdict = gate.passed(wild, others, law)[1]
    assert verdict.rmse > 1e100
    assert verdict.kept != "table"
    assert gate.passed(others["universal"], {"wild": wild}, law)[1].kept == "universal table"


class Stops:
    """A law that fails after so many evaluations, as a killed process does."""

    def __init__(self, calls: float) -> None:
        self.left, self.images = calls, 0
        self.law = MODEL

    def __call__(self, x, sigma):
        self.left -= 1
        self.images += len(x)
        if self.left < 0:
            raise KeyboardInterrupt
        return MODEL(x, sigma)


def test_a_stopped_calibration_goes_on_where_it_was(tmp_path, made):
    whole = Stops(math.inf)
    once = calibrations(whole, NOISE, [2, 3], options=QUICK, work=tmp_path / "whole")
    for calls in (20, 60):
        with pytest.raises(KeyboardInterrupt):
            calibrations(Stops(calls), NOISE, [2, 3], options=QUICK, work=tmp_path / "cut")
        assert not list((tmp_path / "cut").rglob(f"*{HALF}*"))
    rest = Stops(math.inf)
    again = calibrations(rest, NOISE, [2, 3], options=QUICK, work=tmp_path / "cut")
    assert rest.images <= whole.images - 33 * 48
    for mine, theirs, plain in zip(once, again, made, strict=True):
        assert repr(mine.solver) == repr(theirs.solver) == repr(plain.solver)
    done = Stops(0)
    assert repr(calibrations(done, NOISE, [2, 3], options=QUICK, work=tmp_path / "cut")[1].solver) == repr(once[1].solver)


def test_a_damaged_work_file_is_named(tmp_path):
    calibrate(MODEL, NOISE, 1, options=QUICK, work=tmp_path)
    (fine,) = tmp_path.rglob("fine.safetensors")
    fine.write_bytes(fine.read_bytes()[:100])
    with pytest.raises(InputError, match=r"fine\.safetensors is damaged .*remove it"):
        calibrate(MODEL, NOISE, 2, options=QUICK, work=tmp_path)


def test_images_with_classes_are_fitted_each_by_its_own():
    """Half of the images are guided to one component and half to another; the table serves both."""
    parts = [isotropic(0.05, mean=m) for m in (-0.6, 0.6)]
    asked = []

    def conditioned(places):
        asked.append(places)
        conditional = lambda x, s: torch.where((places % 2 == 0)[:, None], parts[0](x, s), parts[1](x, s))  # noqa: E731
        return Guided(conditional, MODEL, 2.0)

    table = calibrate(Guided(MODEL, MODEL, 2.0), NOISE, 3, conditioned=conditioned, options=replace(QUICK, batch=20))
    assert table.solver.purpose.guidance == 2.0
    assert max(map(len, asked)) == 20
    assert set(torch.cat(asked).tolist()) == set(range(48))
    assert table.report["gate"]["rmse"] <= min(table.report["gate"]["others"].values())


class Small(Stops):
    """A denoiser whose memory runs out above some number of images."""

    def __init__(self, most, error):
        super().__init__(math.inf)
        self.most, self.error, self.failures, self.largest = most, error, 0, 0

    def __call__(self, x, sigma):
        if len(x) > self.most:
            self.failures += 1
            raise self.error
        self.largest = max(self.largest, len(x))
        return super().__call__(x, sigma)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_where_memory_runs_out_the_batch_is_halved(made, error):
    small = Small(7, error)
    table = calibrate(small, NOISE, 2, options=QUICK)
    assert (small.failures, small.largest) == (3, 6)  # 48, 24, 12: every later call has six
    for mine, theirs in zip(made[0].solver.rows, table.solver.rows, strict=True):
        assert (mine.a, *mine.values) == pytest.approx((theirs.a, *theirs.values), rel=1e-4)
    assert table.report["cost"] == made[0].report["cost"]


def test_images_with_classes_keep_theirs_where_the_batch_is_halved():
    small = Small(5, MemoryError())
    asked = []

    def conditioned(places):
        asked.append(places)
        return lambda x, sigma: small(x, sigma) + (0 if len(x) == len(places) else math.nan)

    law = trajectories(small, NOISE[:16], count=8, conditioned=conditioned)
    torch.testing.assert_close(law.ends, trajectories(MODEL, NOISE[:16], count=8).ends)
    assert sorted(torch.cat(asked[-4:]).tolist()) == list(range(16))


def test_no_memory_for_one_image_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"no memory on cpu for one image at once \(.*\): calibrate .* smaller than \(3,\)"):
        calibrate(Small(0, MemoryError()), NOISE, 2, options=QUICK, work=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_a_batch_that_cannot_be_divided_is_not():
    with pytest.raises(InputError, match="for 16 images, which cannot be divided, at once"):
        trajectories(Small(8, MemoryError()), NOISE[:16], count=8, stacked=False)


def test_memory_that_runs_out_beside_the_network_is_an_error(monkeypatch):
    def full(*args):
        raise MemoryError

    monkeypatch.setattr(gate, "passed", full)
    with pytest.raises(InputError, match=r"beside the network, with 48 noises of shape \(3,\) .* give fewer noises"):
        calibrate(MODEL, NOISE, 1, options=QUICK)


def test_another_error_of_a_network_is_its_own():
    with pytest.raises(RuntimeError, match="a bug"):
        calibrate(Small(0, RuntimeError("a bug")), NOISE, 1, options=QUICK)


def test_a_network_that_is_in_training_is_not_recorded():
    """Parameters that want gradients would keep the graph of every run."""
    net = torch.nn.Linear(3, 3, dtype=torch.float64)
    seen = []

    def denoiser(x, sigma):
        out = MODEL(x, sigma) + 0 * net(x)
        seen.append(out.requires_grad)
        return out

    calibrate(denoiser, NOISE, 1, options=QUICK)
    assert not any(seen)


def test_a_start_from_a_neighbouring_scale(made, tmp_path):
    """It is taken as it is, counts in what a work folder is kept under, and is passed over where the gate has kept another."""
    whole = calibrate(MODEL, NOISE, 2, options=replace(QUICK, settings=Settings(iterations=0)), starts=made, work=tmp_path)
    for mine, theirs in zip(made[0].solver.rows, whole.solver.rows, strict=True):
        assert (mine.a, *mine.values) == (theirs.a, *theirs.values)
    others = [Table(replace(table.solver, name="ddim on karras")) for table in made]
    plain = calibrate(MODEL, NOISE, 2, options=QUICK, starts=others)
    assert repr(plain.solver) == repr(made[0].solver)
    assert plain.report["key"] == made[0].report["key"] != whole.report["key"]


@pytest.mark.parametrize(
    ("noise", "nfe", "message"),
    [
        (NOISE[:7], 2, "trajectories=7: a calibration needs 8 trajectories or more"),
        (NOISE[:, :1], 6, "48 trajectories of 1 coordinates for about 42 numbers .* need 336 trajectories or more"),
        (NOISE, 0, "need whole numbers of evaluations, from 1"),
        (NOISE.int(), 2, "noise must be"),
    ],
)
def test_bad_input_is_named(noise, nfe, message):
    with pytest.raises(InputError, match=message):
        calibrate(MODEL, noise, nfe)


def test_levels_that_are_none_are_named():
    with pytest.raises(InputError, match="need 0 < sigma_min < sigma_max"):
        calibrate(MODEL, NOISE, 2, sigma_min=0.0)


def test_a_network_that_is_not_finite_somewhere_is_refused():
    broken = lambda x, sigma: MODEL(x, sigma) / (float(sigma) > 1.0)  # noqa: E731
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        calibrate(broken, NOISE, 2, options=QUICK)


def test_a_network_without_a_digest_can_be_named():
    table = calibrate(lambda x, sigma: x / (1 + sigma**2), NOISE, 1, options=QUICK, network="mine")
    assert table.solver.purpose.network == "mine"
    with pytest.raises(InputError, match="calibrated for network mine"):
        sample(table.solver, MODEL, NOISE, table.sigmas)


def test_a_shipped_network_is_calibrated_with_few_images():
    """Sixteen trajectories, eight of them fitted, already beat the universal table on new noise."""
    model = models.load("digits")
    noise = steindiff.initial_noise(range(900, 916), model.event_shape)
    table = calibrate(model.denoiser, noise, 2, options=Options(steps=16, settings=Settings(iterations=2, along=0.2)))
    new = steindiff.initial_noise(range(24), model.event_shape)
    exact = trajectories(model.denoiser, new, count=16)
    mine = exact.rmse(sample(table.solver, model.denoiser, new, table.sigmas).x)
    assert mine < exact.rmse(sample("universal", model.denoiser, new, nfe=2).x)
