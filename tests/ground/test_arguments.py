"""Wrong arguments of the public functions: one clear InputError each, before anything is evaluated."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import steindiff as sd
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
