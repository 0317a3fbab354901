"""What every multistep solver inherits: an update of one pass a term, in new memory, that can be batched and differentiated."""

from dataclasses import dataclass

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from problems import mixture, noisy_state
from steindiff import solvers
from steindiff.errors import InputError
from steindiff.solvers import DDIM, DPMpp2M, DPMpp2S, DPMpp3M, DPMpp3S, Grid, Heun, Multistep, NoiseMultistep, Row

GRID = Grid.of(torch.tensor([10.0, 6.0, 3.0, 1.5, 0.7, 0.3, 0.1], dtype=torch.float64))
NAMES = [name for name in solvers.names() if isinstance(solvers.make(name), Multistep)]
every_method = pytest.mark.parametrize("name", NAMES)


def _at_full_order(name, batch=5):
    """A solver, a state and a history at step 3, where nothing lowers the order."""
    solver = solvers.make(name)
    past = tuple(noisy_state(1.0, batch, seed=j) for j in range(1, solver.order))
    return solver, noisy_state(1.5, batch), past


class _Operations(TorchDispatchMode):
    """Names the operations whose output has at least `size` elements, and counts the new memory they fill."""

    def __init__(self, size, known):
        super().__init__()
        self.size, self.names, self.known = size, [], {z.untyped_storage().data_ptr() for z in known}
        self.alive = list(known)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.size:
            self.names.append(func.overloadpacket.__name__)
            self.alive.append(out)  # no address is used twice
        return out

    @property
    def allocated(self):
        return len({z.untyped_storage().data_ptr() for z in self.alive} - self.known)


@every_method
def test_a_step_passes_once_over_the_data_for_each_term(name):
    """Order 1, which is DDIM: one pass. Order k: k + 1, of which one makes the residual in noise prediction."""
    solver, x, past = _at_full_order(name, batch=100)  # larger than what the weights take
    denoised = mixture(x, GRID.nodes[3])
    with torch.no_grad(), _Operations(x.numel(), (x, denoised, *past)) as seen:
        step = solver.step(lambda z, s: denoised, x, GRID.interval(3), past)
    noise = isinstance(solver, NoiseMultistep) and solver.order > 1
    expected = ["lerp"] if solver.order == 1 else ["sub", "add"] if noise else ["mul", "add_"]
    assert seen.names == [*expected, *["add_"] * (solver.order - 1)]
    assert seen.allocated == (2 if noise else 1), "new memory is for what is returned, and nothing else"
    assert len(step.state) == solver.order - 1


@every_method
def test_a_step_changes_neither_the_state_nor_the_history(name):
    solver, x, past = _at_full_order(name)
    denoised = mixture(x, GRID.nodes[3])
    kept = [z.clone() for z in (x, denoised, *past)]
    first, second = (solver.step(lambda z, s: denoised, x, GRID.interval(3), past) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert all(torch.equal(a, b) for a, b in zip(first.state, second.state, strict=True))
    assert all(torch.equal(a, b) for a, b in zip((x, denoised, *past), kept, strict=True))
    addresses = {z.data_ptr() for z in (x, denoised, *past, *first.state, *second.state)}
    assert first.x.data_ptr() not in addresses
    assert second.x.data_ptr() not in addresses


@every_method
def test_a_step_that_is_differentiated_has_the_bits_of_one_that_is_not(name):
    """With a graph, with a tangent, under torch.func.jvp: the value is the plain one, and the derivatives agree."""
    solver, x, past = _at_full_order(name)

    def move(z):
        return solver.step(mixture, z, GRID.interval(3), past).x

    v = noisy_state(1.0, seed=9)
    with torch.no_grad():
        plain = move(x)
        functional, tangent = torch.func.jvp(move, (x,), (v,))
    leaf = x.clone().requires_grad_()
    graph = move(leaf)
    with forward_ad.dual_level():
        dual, dual_tangent = forward_ad.unpack_dual(move(forward_ad.make_dual(x, v)))
    w = noisy_state(1.0, seed=10)
    for value in (functional, graph.detach(), dual):
        assert torch.equal(value, plain)
    reverse = (torch.autograd.grad(graph, leaf, w)[0] * v).sum()
    for forward in (tangent, dual_tangent):
        torch.testing.assert_close((forward * w).sum(), reverse, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "name, batched",
    [(n, part) for n in NAMES for part in ("state", "denoised", "history") if part != "history" or solvers.make(n).order > 1],
)
def test_a_step_under_vmap(name, batched):
    """Whatever of the state, the denoised value and the history is batched, the rows are those of single steps."""
    solver, x, past = _at_full_order(name)
    shifts = torch.tensor([0.0, 0.5, -1.0], dtype=x.dtype)

    def move(shift):
        state = x + shift if batched == "state" else x
        denoised = x / 2 + shift if batched == "denoised" else x / 2
        history = tuple(z + shift for z in past) if batched == "history" else past
        return solver.step(lambda z, s: denoised, state, GRID.interval(3), history).x

    rows = torch.func.vmap(move)(shifts)
    torch.testing.assert_close(rows, torch.stack([move(s) for s in shifts]), rtol=1e-13, atol=1e-13)


@every_method
def test_the_first_order_step_is_the_step_where_the_order_is_one(name):
    """T₁ is made by the arithmetic of the step, so that a correction which compares the two sees no rounding."""
    solver, x, _ = _at_full_order(name)
    step = solver.step(mixture, x, GRID.interval(0), ())
    assert torch.equal(solver.first_order(x, step.denoised, GRID.interval(0)), step.x)


@pytest.mark.parametrize("name", [name for name in NAMES if solvers.make(name).order > 1])
def test_a_state_without_its_history_is_refused(name):
    solver, x, _ = _at_full_order(name)
    with pytest.raises(InputError, match=r"step 3 needs \d earlier values and the state holds 0"):
        solver.step(mixture, x, GRID.interval(3), ())


@pytest.mark.parametrize("make", [DDIM, DPMpp2M, DPMpp3M, DPMpp2S, DPMpp3S, Heun])
def test_a_method_of_one_order_takes_no_order(make):
    with pytest.raises(TypeError, match="order"):
        make(order=5)
    assert make().order == make.order


def test_weights_of_the_published_methods():
    """By hand on a grid uniform in λ, where h₁ = h: 2M is r x + (1−r)(3/2 D₀ − 1/2 D₁)."""
    grid = Grid.of(torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64))
    for method in (DPMpp2M(lower_order_final=False), DPMpp3M(lower_order_final=False)):
        assert method.weights(grid, 0) == Row(0.5, (0.5,))
        a, values = method.weights(grid, 1)
        assert (a, *values) == pytest.approx((0.5, 0.75, -0.25), rel=1e-14)
    for exact in (True, False):
        a, values = DPMpp3M(lower_order_final=False, exact=exact).weights(grid, 2)
        assert len(values) == 3
        assert a + sum(values) == pytest.approx(1.0, rel=1e-13)


@dataclass(frozen=True)
class _Midpoint(Multistep):
    """A method is its order and its weights: DDIM with the average of the last two data predictions."""

    order = 2

    def weights(self, grid, index):
        r = grid.levels[index + 1] / grid.levels[index]
        return Row(r, (1 - r,)) if index == 0 else Row(r, ((1 - r) / 2, (1 - r) / 2))


def test_a_new_method_is_its_weights():
    x, solver = noisy_state(10.0), _Midpoint()
    first = solver.step(mixture, x, GRID.interval(0), solver.init(mixture, x, GRID))
    second = solver.step(mixture, first.x, GRID.interval(1), first.state)
    expected = 0.5 * first.x + 0.25 * (mixture(first.x, GRID.nodes[1]) + mixture(x, GRID.nodes[0]))
    torch.testing.assert_close(second.x, expected, rtol=1e-13, atol=1e-13)
    assert solver.nfe(GRID.sigmas) == 6


def test_for_nfe_of_every_solver():
    """The steps and the solver that `for_nfe` gives spend the budget, on a grid ending above 0."""
    for name in solvers.names():
        for nfe in range(1, 9):
            solver, steps = solvers.make(name).for_nfe(nfe)
            assert solver.nfe(torch.linspace(10.0, 1.0, steps + 1, dtype=torch.float64)) == nfe, name
        with pytest.raises(InputError, match="nfe=0"):
            solvers.make(name).for_nfe(0)


def test_specs_reach_every_option():
    assert solvers.make("dpmpp_3m(exact=True)") == DPMpp3M(exact=True)
    assert solvers.make("unipc_2(variant=bh1, corrector=False)") == solvers.UniPC(2, "bh1", corrector=False)
    assert solvers.make(Heun(euler_at_end=True)) == Heun(euler_at_end=True)
    with pytest.raises(InputError, match="ddim"):
        solvers.make("ddim(order=5)")
