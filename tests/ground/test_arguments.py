"""Wrong arguments of the public functions: one clear InputError each, before anything is evaluated."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import steindiff as sd
from steindiff import analytic, diagnostics, metrics
from steindiff.divergence import Hutchinson
from steindiff.errors import InputError
from steindiff.push import Fed
from steindiff.solvers import Row, Tabulated

X, GRID = 8 * torch.ones(2, 3), torch.tensor([8.0, 2.0, 0.5])


def gaussian(x, sigma):
    return x / (1 + sigma.to(x) ** 2)


STATES = {
    "none": (None, "x is NoneType"),
    "list": ([1.0], "x is list"),
    "meta": (X.to("meta"), "meta"),
    "sparse": (X.to_sparse(), "sparse"),
    "complex": (X.to(torch.complex64), "complex64"),
    "integer": (X.long(), "int64"),
    "boolean": (X.bool(), "bool"),
    "half": (X.half(), "float16"),
    "vector": (X[0], "need a batch"),
    "empty": (X[:0], "need a batch"),
    "nan": (X * math.nan, "NaN"),
    "infinite": (X * math.inf, "infinite"),
}
LEVELS = {
    "list": ([8.0, 2.0], "sigmas of shape list"),
    "meta": (GRID.to("meta"), "meta"),
    "sparse": (GRID.to_sparse(), "sparse"),
    "complex": (GRID.to(torch.complex64), "complex64"),
    "integer": (GRID.long(), "int64"),
    "nan": (torch.tensor([8.0, math.nan, 0.5]), "is not finite"),
    "infinite": (torch.tensor([math.inf, 2.0]), "is not finite"),
    "rising": (GRID.flip(0), "strictly decreasing"),
    "one": (GRID[:1], "need a 1-D tensor"),
}


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("how", [{"sigmas": GRID}, {"nfe": 3}], ids=["grid", "nfe"])
def test_states(kind, how):
    x, message = STATES[kind]
    with pytest.raises(InputError, match=message):
        sd.sample("ddim", gaussian, x, **how)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_state_and_nested_levels(layout):
    with pytest.warns(UserWarning, match="nested") if layout is torch.strided else torch.no_grad():
        nested = torch.nested.nested_tensor([torch.ones(3), torch.ones(3)], layout=layout)
    with pytest.raises(InputError, match="nested"):
        sd.sample("ddim", gaussian, nested, GRID)
    with pytest.raises(InputError, match="sigmas of shape"):
        sd.sample("ddim", gaussian, X, nested)


@pytest.mark.parametrize("kind", LEVELS)
def test_levels(kind):
    sigmas, message = LEVELS[kind]
    with pytest.raises(InputError, match=message):
        sd.sample("ddim", gaussian, X, sigmas)
    with pytest.raises(InputError, match=message):
        sd.grids.validate(sigmas)


@pytest.mark.parametrize("denoiser", [None, 3, "model", X])
@pytest.mark.parametrize("run", [sd.sample, sd.steps])
def test_no_denoiser(run, denoiser):
    with pytest.raises(InputError, match=r"the denoiser is \w+: give a function"):
        run("ddim", denoiser, X, GRID)


@pytest.mark.parametrize(
    "out, message",
    [
        (lambda x: None, "returned NoneType"),
        (lambda x: (x,), r"returned tuple.*out\.sample"),
        (lambda x: {"sample": x}, "returned dict"),
        (lambda x: x[:, :1], r"returned \(2, 1\)"),
        (lambda x: x.double(), "returned .* torch.float64"),
        (lambda x: x.to("meta"), "not meta"),
    ],
)
def test_outputs_of_another_kind(out, message):
    with pytest.raises(InputError, match=message):
        sd.sample("ddim", lambda x, sigma: out(x), X, GRID)


@pytest.mark.parametrize("solver", [None, 3, X])
def test_no_solver(solver):
    with pytest.raises(InputError, match="is no solver"):
        sd.sample(solver, gaussian, X, GRID)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"sigma_max": 1e39}, r"the largest level that torch.float32 holds"),
        ({"sigma_max": 1e5, "dtype": torch.float16}, r"the largest level that torch.float16 holds"),
        ({"sigma_max": math.nan}, "sigma_max"),
        ({"dtype": torch.int64}, "dtype"),
        ({"dtype": torch.complex64}, "dtype"),
        ({"seeds": 3}, "need a list of seeds"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [2**70]}, "seed"),
        ({"seeds": [-1]}, "seed"),
        ({"seeds": [0.5]}, "seed"),
        ({"event_shape": 3}, "need the sizes"),
        ({"event_shape": (2.5,)}, "sizes"),
    ],
)
def test_noise(how, message):
    with pytest.raises(InputError, match=message):
        sd.initial_noise(**{"seeds": [0], "event_shape": (2,), **how})


@pytest.mark.parametrize("n", [0, -1, 2.5, True, None, "3", 10**30])
def test_numbers_of_steps(n):
    with pytest.raises(InputError, match=r"n=|steps"):
        sd.grids.karras(n)


@pytest.mark.parametrize("weight", [1j, math.nan, math.inf, None, "1"])
def test_weights_of_a_table(weight):
    with pytest.raises(InputError, match="the weights of step 0"):
        Tabulated((2.0, 1.0), (Row(weight, (0.5,)),), (1.0,))
    with pytest.raises(InputError, match="the weights of step 0"):
        Tabulated((2.0, 1.0), (Row(0.5, (weight,)),), (1.0,))


def test_whole_numbers_are_weights():
    ends = [sd.sample(Tabulated((2.0, 1.0), (Row(*row),), (1.0,)), gaussian, X / 4, torch.tensor([2.0, 1.0])).x for row in ROWS]
    assert torch.equal(*ends)


ROWS = ((1, (2,)), (1.0, (2.0,)))


@pytest.mark.parametrize("batched", [False, True])
def test_forward_derivatives_from_eight_threads(batched):
    solver = sd.Corrected("heun", "clamped", divergence=Hutchinson(2, method="jvp", batched=batched), frame="ve")

    def run(seed):
        return sd.sample(solver, gaussian, sd.initial_noise([seed, seed + 1], (3,), 8.0), GRID).x

    seeds = range(16)
    alone = [run(seed) for seed in seeds]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, seeds))
    assert all(map(torch.equal, alone, together))


NO_NUMBERS = (None, "a", X, X.to("meta"), X.to_sparse(), 1j)
OTHERS = {
    "levels of a grid": lambda bad: sd.grids.karras(3, bad),
    "a setting": lambda bad: sd.solvers.Setting(bad),
    "no setting": lambda bad: sd.sample("ddim", gaussian, X, nfe=3, setting="a" if bad is None else bad),
    "evaluations": lambda bad: sd.sample("ddim", gaussian, X, nfe=bad),
    "probes": Hutchinson,
    "probes beside a loop": lambda bad: sd.SteinDiff("full", bad),
    "a state beside a loop": lambda bad: sd.SteinDiff("tweedie").apply(bad, None, 1.0, 8.0) if bad is not X else _refused(),
    "gammas": lambda bad: sd.corrections.FixedGamma((bad,)),
    "an estimator": lambda bad: sd.Corrected("ddim", "clamped", divergence="a" if bad is None else bad),
    "an observer": lambda bad: sd.sample("ddim", gaussian, X, GRID, on_step=(bad,)),
    "a probed network": lambda bad: sd.divergence.choose(bad, X, GRID[0]),
    "a fed state": lambda bad: Fed.start(sd.solvers.make("ddim"), bad, GRID) if bad is not X else _refused(),
    "a fed answer": lambda bad: Fed.start(sd.solvers.make("ddim"), X, GRID).told(bad) if bad is not X else _refused(),
    "generators": lambda bad: sd.generators((bad,)),
}


def _refused():
    raise InputError("this one would be right")


@pytest.mark.parametrize("bad", NO_NUMBERS, ids=["none", "text", "tensor", "meta", "sparse", "complex"])
@pytest.mark.parametrize("what", OTHERS)
def test_other_arguments(what, bad):
    with pytest.raises(InputError):
        OTHERS[what](bad)


SAMPLES, OTHER = torch.linspace(-1, 1, 132).reshape(44, 3), torch.linspace(-2, 1, 150).reshape(50, 3)
IMAGES = torch.linspace(-1, 1, 44 * 48).reshape(44, 3, 4, 4)
LAW = analytic.DiagonalMixture(torch.ones(1), torch.zeros(1, 3), torch.ones(1, 3))
LEVEL = torch.tensor(1.0)
DDIM = sd.solvers.make("ddim")

NO_TENSORS = {"none": None, "list": [1.0, 2.0], "text": "a", "number": torch.tensor(1.0), "vector": torch.ones(44)}
NOT_DENSE = {
    "empty": SAMPLES[:0],
    "meta": SAMPLES.to("meta"),
    "sparse": SAMPLES.to_sparse(),
    "complex": SAMPLES.to(torch.complex64),
}
NOT_FINITE = {"nan": SAMPLES * math.nan, "infinite": SAMPLES * math.inf}
WRONG = {**NO_TENSORS, **NOT_DENSE}

OF_SAMPLES = {
    "energy, x": lambda bad: metrics.energy_distance(bad, OTHER),
    "energy, y": lambda bad: metrics.energy_distance(SAMPLES, bad),
    "energy difference": lambda bad: metrics.energy_difference(SAMPLES, bad, OTHER),
    "frechet, x": lambda bad: metrics.frechet_distance(bad, OTHER),
    "frechet, y": lambda bad: metrics.frechet_distance(SAMPLES, bad),
    "sliced, x": lambda bad: metrics.sliced_wasserstein(bad, OTHER),
    "sliced, y": lambda bad: metrics.sliced_wasserstein(SAMPLES, bad),
    "endpoint, x": lambda bad: metrics.endpoint_rmse(bad, SAMPLES),
    "endpoint, y": lambda bad: metrics.endpoint_rmse(SAMPLES, bad),
    "axes": lambda bad: metrics.principal_features(bad, 2),
    "moments": metrics.SampleMoments.of,
    "second moment": sd.corrections.second_moment,
}
OF_ANY_SAMPLES = {
    "neighbours, x": lambda bad: metrics.precision_recall(bad, OTHER),
    "neighbours, y": lambda bad: metrics.precision_recall(SAMPLES, bad),
    "jackknife": lambda bad: metrics.jackknife(lambda x, y: 0.0, bad, OTHER),
    "jackknife difference": lambda bad: metrics.jackknife_difference(lambda x, y: 0.0, SAMPLES, bad, OTHER),
    "spectrum, x": lambda bad: metrics.spectrum_error(bad, IMAGES),
    "spectrum, y": lambda bad: metrics.spectrum_error(IMAGES, bad),
    "components": lambda bad: metrics.component_weights(bad, LAW, 0.1),
    "inception score": metrics.inception_score,
    "features": metrics.load_features(),
    "reference, mean": lambda bad: metrics.Reference(bad, torch.eye(3)),
    "reference, covariance": lambda bad: metrics.Reference(torch.zeros(3), bad),
    "axes of x": lambda bad: metrics.principal_features(SAMPLES, 2)(bad) if bad is not NOT_DENSE["empty"] else _refused(),
}
OF_STATES = {
    "linearize": lambda bad: diagnostics.linearize(torch.square, bad),
    "lipschitz": lambda bad: diagnostics.lipschitz(torch.square, bad),
    "random directions": lambda bad: diagnostics.random_directions(torch.square, bad),
    "lipschitz of a denoiser": lambda bad: diagnostics.local_denoiser_lipschitz(gaussian, bad, LEVEL),
    "noise mismatch": lambda bad: diagnostics.noise_mismatch(gaussian, bad, LEVEL),
    "steps": lambda bad: [*diagnostics.step_maps(DDIM, gaussian, bad, GRID)],
    "reports": lambda bad: [*diagnostics.along_trajectory(DDIM, gaussian, bad, GRID)],
    "reference flow": lambda bad: diagnostics.reference_flow(gaussian, bad, GRID),
    "amplification": lambda bad: diagnostics.discrepancy_amplification(torch.square, bad, SAMPLES),
    "amplification, reference": lambda bad: diagnostics.discrepancy_amplification(torch.square, SAMPLES, bad),
    "flow": lambda bad: LAW.flow(bad, 1.0, 0.5) if bad is not NOT_DENSE["empty"] else _refused(),
    "denoise": lambda bad: LAW(bad, 1.0) if bad is not NOT_DENSE["empty"] else _refused(),
    "parameters": lambda bad: analytic.DiagonalMixture(torch.ones(1), bad, torch.ones(1, 3)),
}


@pytest.mark.parametrize("bad", WRONG)
@pytest.mark.parametrize("what", {**OF_SAMPLES, **OF_ANY_SAMPLES, **OF_STATES})
def test_samples_and_states_of_another_kind(what, bad):
    with pytest.raises(InputError):
        {**OF_SAMPLES, **OF_ANY_SAMPLES, **OF_STATES}[what](WRONG[bad])


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("what", OF_SAMPLES)
def test_samples_that_are_not_finite(what, bad):
    with pytest.raises(InputError, match=r"of \d+ samples hold NaN|samples hold NaN"):
        OF_SAMPLES[what](NOT_FINITE[bad])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.energy_distance(SAMPLES, OTHER[:, :2]), "need equal dimension"),
        (lambda: metrics.frechet_distance(SAMPLES, OTHER[:, :2]), "need equal dimension"),
        (lambda: metrics.sliced_wasserstein(SAMPLES, OTHER[:, :2]), "need the same dimension"),
        (lambda: metrics.precision_recall(SAMPLES, OTHER[:, :2]), "need the same"),
        (lambda: metrics.principal_features(SAMPLES, 2)(SAMPLES[:, :2]), "need samples of 3 numbers"),
        (lambda: metrics.energy_distance(SAMPLES[:1], OTHER), "at least 2 samples"),
        (lambda: metrics.component_weights(SAMPLES, None), "the law is NoneType"),
        (lambda: sd.denoisers.Labelled(lambda x, sigma, y: x, torch.arange(3))(X, LEVEL), "one for each"),
    ],
)
def test_samples_that_do_not_fit(call, message):
    with pytest.raises(InputError, match=message):
        call()


NO_NUMBER = {"none": None, "text": "a", "nan": math.nan, "infinite": math.inf, "complex": 1j, "list": [1.0], "tensor": SAMPLES}
OF_NUMBERS = {
    "scale": lambda bad: sd.denoisers.Guided(gaussian, gaussian, bad),
    "b": lambda bad: sd.denoisers.EpsilonScaled(gaussian, bad),
    "shift": lambda bad: sd.denoisers.TimeShifted(gaussian, bad),
    "window": lambda bad: sd.denoisers.TimeSelected(gaussian, bad),
    "cutoff": lambda bad: sd.denoisers.TimeSelected(gaussian, 40, bad),
    "data variance": lambda bad: sd.denoisers.TimeSelected(gaussian, data_variance=bad),
    "forwards": lambda bad: sd.denoisers.declare(gaussian, schedule=sd.schedules.VE(), forwards=bad),
    "level": lambda bad: LAW.score(SAMPLES, bad),
    "end of a flow": lambda bad: LAW.flow(SAMPLES, 1.0, bad),
    "most steps": lambda bad: LAW.flow_with_error(SAMPLES, 1.0, 0.5, max_steps=bad),
    "draws": LAW.sample,
    "axes": lambda bad: metrics.principal_features(SAMPLES, bad),
    "directions": lambda bad: metrics.sliced_wasserstein(SAMPLES, OTHER, count=bad),
    "power": lambda bad: metrics.sliced_wasserstein(SAMPLES, OTHER, power=bad),
    "groups": lambda bad: metrics.frechet_distance(SAMPLES, OTHER, groups=bad),
    "neighbours": lambda bad: metrics.precision_recall(SAMPLES, OTHER, neighbours=bad),
    "splits": lambda bad: metrics.inception_score(torch.full((40, 2), 0.5), bad),
    "noise left": lambda bad: metrics.component_weights(SAMPLES, LAW, bad),
    "iterations": lambda bad: diagnostics.lipschitz(torch.square, SAMPLES, max_iterations=bad),
    "random directions": lambda bad: diagnostics.random_directions(torch.square, SAMPLES, bad),
    "level of a step": lambda bad: diagnostics.certificate_threshold(bad, 1.0),
    "longest step": lambda bad: diagnostics.reference_flow(gaussian, X, GRID, max_step=-1.0 if bad is math.inf else bad),
    "told level": lambda bad: diagnostics.noise_mismatch(gaussian, SAMPLES, bad),
}


@pytest.mark.parametrize("bad", NO_NUMBER)
@pytest.mark.parametrize("what", OF_NUMBERS)
def test_numbers_of_another_kind(what, bad):
    with pytest.raises(InputError):
        OF_NUMBERS[what](NO_NUMBER[bad])


OF_FUNCTIONS = {
    "guided": lambda bad: sd.denoisers.Guided(bad, gaussian, 2.0),
    "guided, without": lambda bad: sd.denoisers.Guided(gaussian, bad, 2.0),
    "labelled": lambda bad: sd.denoisers.Labelled(bad, torch.tensor(1)),
    "labels": lambda bad: sd.denoisers.Labelled(gaussian, bad),
    "scaled": sd.denoisers.EpsilonScaled,
    "shifted": lambda bad: sd.denoisers.TimeShifted(bad, 0.1),
    "selected": sd.denoisers.TimeSelected,
    "counter": sd.denoisers.Counter,
    "pure": sd.denoisers.Pure,
    "declared": lambda bad: sd.denoisers.declare(bad, schedule=sd.schedules.VE()),
    "declared schedule": lambda bad: sd.denoisers.declare(gaussian, schedule=bad),
    "network": lambda bad: sd.denoisers.FromEps(bad, sd.schedules.VE()),
    "schedule": lambda bad: sd.denoisers.FromFlow(gaussian, bad),
    "dtype": lambda bad: sd.denoisers.FromV(gaussian, sd.schedules.VE(), bad) if bad is not None else _refused(),
    "EDM's schedule": lambda bad: sd.denoisers.FromEDM(gaussian, bad),
    "map": lambda bad: diagnostics.linearize(bad, X),
    "lipschitz": lambda bad: diagnostics.local_denoiser_lipschitz(bad, X, LEVEL),
    "mismatch": lambda bad: diagnostics.noise_mismatch(bad, X, LEVEL),
    "steps": lambda bad: [*diagnostics.step_maps(DDIM, bad, X, GRID)],
    "steps of a solver": lambda bad: [*diagnostics.step_maps(bad, gaussian, X, GRID)],
    "flow": lambda bad: diagnostics.reference_flow(bad, X, GRID),
    "trace": diagnostics.summarize,
}


@pytest.mark.parametrize("bad", ["none", "text", "list", "nan", "tensor"])
@pytest.mark.parametrize("what", OF_FUNCTIONS)
def test_functions_of_another_kind(what, bad):
    with pytest.raises(InputError):
        OF_FUNCTIONS[what](NO_NUMBER[bad])
