"""Compiled networks in a run, and compiled runs: the same numbers, and no break in the graph."""

import shutil

import pytest
import torch

from steindiff import Corrected, grids, sample, solvers
from steindiff.denoisers import declare
from steindiff.errors import InputError
from steindiff.sampling import unrolled
from steindiff.schedules import VE
from steindiff.solvers import Calibrated

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when its compiler is imported
X = 80.0 * torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
TABLE = str(solvers.calibrated.SHIPPED / "digits.safetensors")


class Net(torch.nn.Module):
    """A layer and a level."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(6, 6)

    def forward(self, x, sigma):
        """D(x, sigma)."""
        return self.layer(x) / (1 + sigma.to(x.dtype) ** 2)


NET = Net()


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc_2", Corrected("dpmpp_2m", "tweedie")])
def test_a_compiled_network_is_the_network(solver):
    torch._dynamo.reset()
    compiled = declare(torch.compile(NET, backend="aot_eager"), schedule=VE())
    run = sample(solver, compiled, X, grids.karras(4))
    torch.testing.assert_close(run.x, sample(solver, declare(NET, schedule=VE()), X, grids.karras(4)).x)
    assert run.stats.nfe == 4


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.slow
def test_a_network_compiled_to_code_is_the_network():
    torch._dynamo.reset()
    run = sample("dpmpp_3m", torch.compile(NET), X, grids.karras(4))
    torch.testing.assert_close(run.x, sample("dpmpp_3m", NET, X, grids.karras(4)).x)


def planned(name):
    """A solver and its levels; tables have their own."""
    solver = Calibrated(TABLE, "network+event+guidance+conditioned") if name == "calibrated" else solvers.make(name)
    return solver.plan(4) if solver.plans else (solver, grids.karras(4))


WHOLE = ["ddim", "heun", "dpmpp_3s", "dpmpp_3m", "unipc_3", "deis_3", "ipndm_4", "universal", "calibrated"]


@pytest.mark.parametrize("name", [*WHOLE, "pndm(2)", "free"])
def test_an_unrolled_run_is_the_run(name):
    solver, sigmas = planned(name)
    with torch.no_grad():
        assert torch.equal(unrolled(solver, NET, X[:1], sigmas)(X), sample(solver, NET, X, sigmas).x)


@pytest.mark.parametrize("name", ["dpmpp_3m", "unipc_3", "deis_3", "universal"])
def test_a_run_compiles_as_one_graph(name):
    torch._dynamo.reset()
    solver, sigmas = planned(name)
    with torch.no_grad():
        compiled = torch.compile(unrolled(solver, NET, X, sigmas), backend="eager", fullgraph=True)
        assert torch.equal(compiled(X), sample(solver, NET, X, sigmas).x)


def test_a_correction_is_not_unrolled():
    with pytest.raises(InputError, match="need a solver without a correction"):
        unrolled(Corrected("ddim", "clamped"), NET, X, grids.karras(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", WHOLE)
def test_a_run_is_captured_as_a_cuda_graph(name):
    solver, sigmas = planned(name)
    network, x = Net().cuda(), X.cuda()
    run, graph = unrolled(solver, network, x, sigmas), torch.cuda.CUDAGraph()
    with torch.no_grad():
        for _ in range(3):
            run(x)
        with torch.cuda.graph(graph):
            end = run(x)
        x.mul_(0.5)
        graph.replay()
        torch.testing.assert_close(end, sample(solver, network, x, sigmas).x)
