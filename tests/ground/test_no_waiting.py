"""Nothing between the first and the last evaluation of a run makes the host wait for the device.

Two stand-ins notice what would wait for an accelerator. On the CPU, every operation that reads a number of a tensor is refused
while a run is under way. On the meta device, where there are no numbers to read, a whole run goes through, and every copy from
the host is refused but one that nobody waits for.
"""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from steindiff import Corrected, grids, owning, rules, sample, solvers
from steindiff.denoisers import FromEps, declare
from steindiff.divergence import Choice, Hutchinson
from steindiff.schedules import VE, DiscreteBetas
from steindiff.solvers import DPMSolverV3, Grid, Statistics, Tabulated

READS = {
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero", "equal", "allclose",
    "is_nonzero",
}  # fmt: skip
CHOICE = Choice("vjp", {"vjp": 1.0}, {})
VJP = Hutchinson(method="vjp", choice=CHOICE)
X = 80.0 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EVENT = tuple(X.shape[1:])
STATISTICS = Statistics.constant(0.5, -0.5, 0.1, tuple(grids.karras(8).tolist()), EVENT)


def denoiser(x, sigma):
    """Of a Gaussian; it computes on any device."""
    return x / (1 + sigma.to(x.dtype) ** 2)


def solver_of(name):
    """A solver by name, or one that a name alone does not make."""
    made = {
        "dpm_v3": lambda: DPMSolverV3(STATISTICS),
        "dpm_v3, corrector": lambda: DPMSolverV3(STATISTICS, corrector="on"),
        "universal": lambda: solvers.make("universal").plan(6)[0],
        "table with a mean": lambda: _with_mean(solvers.make("universal").plan(6)[0]),
        "free": lambda: solvers.make("free(dpmpp_3m)").plan(6)[0],
    }
    return made[name]() if name in made else solvers.make(name)


def _with_mean(table):
    return Tabulated(table.levels, table.rows, table.told, mean=torch.full(EVENT, 0.1))


def corrected(rule):
    """A multistep method under a rule; its moments are given where it says so."""
    known = {
        "energy, moments given": rules.Energy(moment=(192.0,)),
        "energy_bands, track": rules.make("energy_bands(deficit=track)"),
        "sparse": rules.make("sparse(clamped, above=1.0)"),
    }
    return Corrected("dpmpp_2m", known.get(rule, rule), divergence=VJP)


PLAIN = [
    *solvers.names(), "pndm", "pndm(2)", "evodiff", "restart", "dpm_v3", "dpm_v3, corrector", "universal", "table with a mean",
    "free", "deis_3(variable=log_sigma)", "unipc_2(stored=refresh)",
]  # fmt: skip
RULES = [
    "clamped", "literal", "tweedie", "analytical", "noise_consistent", "energy", "energy, moments given", "energy_bands",
    "energy_bands, track", "self_consistent", "bot_nguyen", "epsilon_scaling", "dcw", "sparse",
]  # fmt: skip
SOLVERS = {**{name: (solver_of, name) for name in PLAIN}, **{rule: (corrected, rule) for rule in RULES}}
every_solver = pytest.mark.parametrize("name", SOLVERS)


def made(name):
    make, what = SOLVERS[name]
    solver = make(what)
    sigmas = grids.karras(8) if solver.own_grid is None else solver.own_grid
    return solver, sigmas


class _Reads(TorchFunctionMode):
    """Refuses what reads a number of a tensor, while it is armed."""

    armed = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        assert not (self.armed and name in READS), f"{name} makes the host wait"
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """The same of operations inside torch."""

    armed = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        waits = name in {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"}
        assert not (self.armed and waits), f"{name} makes the host wait"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """A CPU alone compares, after its first call, what the network was given: there it has nothing to wait for."""
    monkeypatch.setattr(owning, "_same", lambda given, lent: True)


def refusing(solver, sigmas, x=X):
    """The state at the end of a run in which nothing is read between its first and its last evaluation."""
    last = solver.nfe(sigmas)
    reads, operations = _Reads(), _Operations()
    calls = 0

    def network(z, sigma):
        nonlocal calls
        calls += 1
        reads.armed = operations.armed = calls < last
        return denoiser(z, sigma)

    with reads, operations:
        end = sample(solver, declare(network, schedule=VE()), x, sigmas).x
        reads.armed = operations.armed = False
    assert calls >= last
    return end


@pytest.mark.usefixtures("as_on_an_accelerator")
@every_solver
def test_no_run_reads_a_number_before_its_last_evaluation(name):
    solver, sigmas = made(name)
    assert torch.equal(refusing(solver, sigmas), sample(solver, declare(denoiser, schedule=VE()), X, sigmas).x)


@pytest.mark.parametrize("read", ["bool(x.sum() > 0)", "float(x.sum())", "x.tolist()", "x.nonzero()", "x.equal(x)", "x.cpu()"])
@pytest.mark.usefixtures("as_on_an_accelerator")
def test_what_reads_a_number_is_noticed(read):
    class Reading(solvers.DDIM):
        def step(self, denoiser, x, interval, state):
            step = super().step(denoiser, x, interval, state)
            eval(read, {"x": step.x})
            return step

    with pytest.raises(AssertionError, match="makes the host wait"):
        refusing(Reading(), grids.karras(3))


class _Copies(TorchDispatchMode):
    """Refuses copies from the host to the meta device that would wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket.__name__ in ("_to_copy", "copy_") and isinstance(out, torch.Tensor) and out.is_meta:
            from_host = any(isinstance(z, torch.Tensor) and z.device.type == "cpu" for z in args)
            assert not from_host or kwargs.get("non_blocking"), "a copy from the host makes it wait"
        return out


def far_away(solver, sigmas, network):
    """A run on the meta device: `init` may copy, a step may not."""
    x, there = X.to("meta"), sigmas.to("meta")
    grid = Grid(there, tuple(sigmas.tolist()), there.unbind())
    with torch.no_grad():
        state = solver.init(network, x, grid)
        for i in range(grid.steps):
            with _Copies() if i else contextlib.nullcontext():
                step = solver.step(network, x, grid.interval(i), state)
            x, state = step.x, step.state
    assert x.shape == X.shape
    assert x.is_meta


@every_solver
def test_a_run_needs_nothing_of_a_far_device(name):
    far_away(*made(name), declare(denoiser, schedule=VE()))


def test_a_discrete_schedule_is_copied_to_a_device_once():
    """The tables of a network's betas: its adapter asks them at every evaluation."""
    network = FromEps(lambda x, t: x * t.reshape(-1, 1, 1, 1), DiscreteBetas.scaled_linear())
    far_away(solvers.make("dpmpp_2m"), grids.karras(6, 0.05, 10.0), network)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_solver
def test_no_run_waits_for_a_gpu(name):
    """What the stand-ins stand for: torch itself refuses to wait, from the first evaluation to the last."""
    solver, sigmas = made(name)
    last, calls = solver.nfe(sigmas), 0

    def network(z, sigma):
        nonlocal calls
        calls += 1
        torch.cuda.set_sync_debug_mode("error" if calls < last else "default")
        return denoiser(z, sigma)

    try:
        end = sample(solver, declare(network, schedule=VE()), X.cuda(), sigmas).x
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(end.isfinite().all())
