"""Denoisers that write into what they are given, or return memory that is not their own: a run is the pure one's, bitwise."""

import numpy as np
import pytest
import torch

import steindiff as sd
from steindiff import owning, solvers
from steindiff.corrections import Corrected
from steindiff.denoisers import EpsilonScaled, Guided, Pure
from steindiff.divergence import Hutchinson
from steindiff.errors import InputError
from steindiff.owning import Lender
from steindiff.push import Fed

D64 = torch.float64
GRID = torch.tensor([8.0, 4.0, 1.5, 0.6, 0.2, 0.1], dtype=D64)


def pure(x, sigma):
    """Not linear, so that every evaluation matters, and every coordinate has its own."""
    scaled = x * 0.5
    return torch.tanh(scaled) / (1 + torch.as_tensor(sigma).to(x).log() ** 2)


def scales(x, sigma):
    scaled = x.mul_(0.5)
    return torch.tanh(scaled) / (1 + torch.as_tensor(sigma).to(x).log() ** 2)


def through_a_view(x, sigma):
    x.flatten(1)[:, ::2].mul_(0.5)
    x.flatten(1)[:, 1::2].mul_(0.5)
    return torch.tanh(x) / (1 + torch.as_tensor(sigma).to(x).log() ** 2)


def writes_the_level(x, sigma):
    return torch.tanh(x * 0.5) / (1 + sigma.log_().to(x) ** 2)


def returns_its_input(x, sigma):
    return x.copy_(pure(x, sigma))


def returns_a_view(x, sigma):
    x.copy_(pure(x, sigma))
    return x.reshape(len(x), -1).view(x.shape)


class _Buffers:
    """A network that returns its own memory, as a captured graph does: one buffer, or several in turns."""

    def __init__(self, count):
        self.count, self.calls, self.buffers = count, 0, {}

    def __call__(self, x, sigma):
        key = (x.shape, x.dtype, self.calls % self.count)
        self.calls += 1
        buffer = self.buffers.setdefault(key, torch.empty_like(x))
        return buffer.copy_(pure(x, sigma).detach())


class _Views(_Buffers):
    def __call__(self, x, sigma):
        return super().__call__(x, sigma)[: len(x)]


class _Foreign(_Buffers):
    """Memory that torch has not allocated."""

    def __call__(self, x, sigma):
        self.memory = self.buffers.setdefault(x.shape, np.empty(tuple(x.shape), x.numpy().dtype))
        self.memory[...] = pure(x, sigma).numpy()
        return torch.from_numpy(self.memory)


class _Adopted(_Buffers):
    """The first input becomes the static input."""

    def __call__(self, x, sigma):
        static = self.buffers.setdefault(x.shape, x)
        static.copy_(x)
        return pure(static, sigma)


class _Data:
    """Writes that torch's counters do not see."""

    def __call__(self, x, sigma):
        x.data.mul_(0.5)
        return torch.tanh(x) / (1 + torch.as_tensor(sigma).to(x).log() ** 2)


class _Numpy:
    def __call__(self, x, sigma):
        x.numpy()[...] *= 0.5
        return torch.tanh(x) / (1 + torch.as_tensor(sigma).to(x).log() ** 2)


def turns_gradients_on(x, sigma):
    with torch.enable_grad():
        return pure(x.requires_grad_(), sigma)


WRITERS = {
    "scales": lambda: scales,
    "through a view": lambda: through_a_view,
    "level": lambda: writes_the_level,
    "input": lambda: returns_its_input,
    "view of the input": lambda: returns_a_view,
    "gradients": lambda: turns_gradients_on,
}
BUFFERS = {
    "one buffer": lambda: _Buffers(1),
    "two in turns": lambda: _Buffers(2),
    "views": lambda: _Views(1),
    "foreign": lambda: _Foreign(1),
    "adopted": lambda: _Adopted(1),
    "data": _Data,
    "numpy": _Numpy,
}
IMPURE = {**WRITERS, **BUFFERS}
BY_STEPS = {
    **{name: lambda name=name: (solvers.make(name), GRID) for name in solvers.names()},
    "restart": lambda: (solvers.make("restart"), GRID),
    "pndm": lambda: (solvers.make("pndm"), GRID),
    "evodiff": lambda: (solvers.make("evodiff"), GRID),
    "unipc refresh": lambda: (solvers.make("unipc_3(stored=refresh)"), GRID),
    "universal": lambda: solvers.make("universal").plan(5, solvers.Setting(8.0, 0.05)),
    "free": lambda: solvers.make("free").plan(5, solvers.Setting(8.0, 0.05)),
    "dpm_v3": lambda: (solvers.DPMSolverV3(_statistics()), GRID),
}


def _statistics():
    return solvers.Statistics.constant(0.9, -0.1, 0.01, GRID.tolist(), (2, 3))


def start(batch=3, dtype=D64):
    return 8.0 * torch.randn(batch, 2, 3, generator=torch.Generator().manual_seed(1), dtype=D64).to(dtype)


def same(solver, grid, impure, expected, **how):
    """A run of an impure denoiser leaves what it was given, and sees and makes what the pure one does."""
    x, sigmas, seen = start(), grid.clone(), []
    run = sd.sample(solver, impure, x, sigmas, on_step=seen.append, **how)
    assert torch.equal(x, start())
    assert torch.equal(sigmas, grid)
    assert not run.x.requires_grad
    assert torch.equal(run.x, expected.x)
    assert repr(run.trace) == repr(expected.trace)  # NaN included
    states = [x, *(event.step.x for event in seen)]
    assert all(torch.equal(event.x_before, state) for event, state in zip(seen, states, strict=False))


@pytest.mark.parametrize("kind", IMPURE)
@pytest.mark.parametrize("name", BY_STEPS)
def test_every_solver_runs_as_with_the_pure_denoiser(name, kind):
    solver, grid = BY_STEPS[name]()
    same(solver, grid, IMPURE[kind](), sd.sample(solver, pure, start(), grid))


RULES = ("tweedie", "analytical", "energy(moment=(3.0,))", "self_consistent", "bot_nguyen", "chain(energy(moment=3.0), dcw)")


@pytest.mark.parametrize("kind", IMPURE)
@pytest.mark.parametrize("rule", RULES)
def test_corrections_without_a_derivative_do_too(rule, kind):
    solver = Corrected("dpmpp_3m", rule, frame="ve")
    same(solver, GRID, IMPURE[kind](), sd.sample(solver, pure, start(), GRID))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("method", ["vjp", "jvp", "batched", "fd"])
@pytest.mark.parametrize("rule", ["clamped", "energy"])
def test_derivatives_of_a_denoiser_that_writes_are_those_of_the_pure_one(rule, method, kind):
    if kind == "gradients" and method == "batched":
        pytest.skip("requires_grad_ is no operation of torch.func")
    batched = Hutchinson(2, method="jvp", batched=True)
    estimator = batched if method == "batched" else Hutchinson(2, method=method, samples=2)
    solver = Corrected("heun", rule, divergence=estimator, frame="ve")
    same(solver, GRID, IMPURE[kind](), sd.sample(solver, pure, start(), GRID))


@pytest.mark.parametrize("kind", ["one buffer", "two in turns", "views"])
def test_buffers_have_no_derivative_and_auto_finds_it_out(kind):
    by_differences = Corrected("dpmpp_2m", "clamped", divergence=Hutchinson(method="fd"), frame="ve")
    expected = sd.sample(by_differences, pure, start(), GRID)
    run = sd.sample(Corrected("dpmpp_2m", "clamped", frame="ve"), IMPURE[kind](), start(), GRID)
    assert run.stats.choice.method == "fd"
    assert torch.equal(run.x, expected.x)


@pytest.mark.parametrize("kind", IMPURE)
def test_inference_mode(kind):
    if kind == "gradients":
        pytest.skip("there are no gradients to turn on")
    with torch.inference_mode():
        expected, x = sd.sample("dpmpp_3m", pure, start(), GRID), start()
        assert torch.equal(sd.sample("dpmpp_3m", IMPURE[kind](), x, GRID).x, expected.x)
        assert torch.equal(x, start())


@pytest.mark.parametrize("kind", IMPURE)
@pytest.mark.parametrize("name", ["ddim", "dpmpp_3m", "unipc_3", "dpmpp_3s", "universal"])
def test_a_fed_run(name, kind):
    solver, grid = BY_STEPS[name]()
    x, sigmas, impure = start(), grid.clone(), IMPURE[kind]()
    run = Fed.start(solver, x, sigmas)
    while run.query is not None:
        with torch.no_grad():
            run = run.told(impure(*run.query))
    assert torch.equal(run.x, sd.sample(solver, pure, start(), grid).x)
    assert torch.equal(x, start())
    assert torch.equal(sigmas, grid)


@pytest.mark.parametrize("kind", IMPURE)
def test_wrappers_of_denoisers(kind):
    for wrapped in (lambda D: Guided(D, D, 2.0), lambda D: EpsilonScaled(D, 1.01), Pure, lambda D: Pure(D, copies=True)):
        expected = sd.sample("dpmpp_2m", wrapped(pure), start(), GRID).x
        assert torch.equal(sd.sample("dpmpp_2m", wrapped(IMPURE[kind]()), start(), GRID).x, expected)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
}


@pytest.mark.parametrize("found", [True, False], ids=["memcmp", "without"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_writes_past_the_counters_are_seen_in_every_layout(layout, found, monkeypatch):
    """By C's comparison of memory, and where there is no C library; a NaN is equal to itself."""
    if not found:
        monkeypatch.setattr(owning, "_memcmp", None)
    assert (owning._memcmp is not None) == found
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)))
    x[0, 0, 0, 0] = torch.nan

    def last_number(z, sigma):
        z.numpy()[-1, -1, -1, -1] += 1.0
        return z + 0.0

    for network, writes in ((last_number, True), (lambda z, sigma: z + 0.0, False)):
        lender, before = Lender(), x.clone()
        lender(network, x, GRID[0])
        assert lender._writes == {x.shape: writes}
        torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)


def test_guidance_of_two_buffers_that_are_one():
    """D_∅ + w (D_c − D_∅) would be D_c."""
    buffers = _Buffers(1)
    x = start()
    two = Guided(lambda x, s: buffers(x + 1, s), lambda x, s: buffers(x - 1, s), 3.0)(x, GRID[0])
    clean = Guided(lambda x, s: pure(x + 1, s), lambda x, s: pure(x - 1, s), 3.0)(x, GRID[0])
    assert torch.equal(two, clean)


def test_a_write_at_a_later_call_only_is_refused():
    def late(x, sigma):
        return scales(x, sigma) if sigma < 1 else pure(x, sigma)

    with pytest.raises(InputError, match=r"did not at its first call.*Pure\(denoiser, copies=True\)"):
        sd.sample("ddim", late, start(), GRID)
    assert torch.equal(sd.sample("ddim", Pure(late, copies=True), start(), GRID).x, sd.sample("ddim", pure, start(), GRID).x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_that_returns_its_buffer():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("out", torch.zeros(3, 2, 3, dtype=D64))

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            self.out.copy_(torch.tanh(x * 0.5) / (1 + sigma.to(x).log() ** 2))
            return self.out

    scripted = torch.jit.script(Module())
    assert torch.equal(sd.sample("deis_4", scripted, start(), GRID).x, sd.sample("deis_4", pure, start(), GRID).x)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("mode", ["full", "tweedie"])
def test_the_correction_beside_another_loop(mode, kind):
    """T(x) by a step that writes into x, as by one that does not."""
    ends = list[torch.Tensor]()
    for denoiser in (pure, IMPURE[kind]()):
        stein, x = sd.SteinDiff(mode, 2), start()
        for _ in range(3):
            parts = {"step": lambda z, D=denoiser: D(z, torch.tensor(4.0, dtype=D64)), "denoised": pure(x, GRID[1])}
            x = stein.apply(x, None, 1.0, 8.0, **parts).detach()
        ends.append(x)
    assert torch.equal(*ends)


# ---------------------------------------------------------------- what it costs


class _Counting(torch.overrides.TorchFunctionMode):
    """Counts copies of tensors of more than one number."""

    copies = 0
    KINDS = (torch.clone, torch.Tensor.clone, torch.Tensor.copy_)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        asked = function in self.KINDS or (function is torch.Tensor.to and (kwargs or {}).get("copy"))
        self.copies += bool(asked) and args[0].numel() > 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["ddim", "dpmpp_3m", "unipc_3", "universal"])
def test_a_pure_denoiser_costs_one_copy_a_run(name):
    """Those of the grid and of the first x."""
    solver, grid = BY_STEPS[name]()
    with _Counting() as counting:
        sd.sample(solver, pure, start(), grid)
    assert counting.copies == 2


HELD = torch.zeros(3, 2, 3, dtype=D64)
OUTPUTS = {
    "made": (lambda z: z * 2, 0),
    "made in parts": (lambda z: torch.cat([z[:1], z[1:]]), 0),
    "a view of what was made": (lambda z: (z * 2).flatten(1).chunk(2, 1)[0], 0),
    "by a module": (torch.nn.Linear(3, 3, dtype=D64), 0),
    "the input": (lambda z: z, 1),
    "a part of the input": (lambda z: z[:2], 1),
    "held": (lambda z: HELD, 1),
    "a part of what is held": (lambda z: HELD[1:], 1),
    "its data": (lambda z: HELD.data, 1),
    "NumPy": (lambda z: torch.from_numpy(np.zeros(3)), 1),
    "DLPack": (lambda z: torch.from_dlpack(HELD), 1),
    "a parameter": (lambda z: torch.nn.Parameter(z * 2), 1),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_is_copied_where_somebody_else_holds_its_memory(kind):
    function, copies = OUTPUTS[kind]
    lend, x = Lender(), start()
    with torch.no_grad():
        lend(function, x)
        with _Counting() as counting:
            out = lend(function, x)
    assert counting.copies == copies
    out.add_(1)
    assert torch.equal(x, start())
    assert not HELD.any()


def test_what_no_counter_and_no_value_shows_is_copied_at_every_call():
    """Tensors of inference mode count no writes, and on an accelerator, as on the meta device, no values are compared."""
    with torch.inference_mode():
        lend, x, own = Lender(), torch.ones(3, 2, device="meta"), []
        for _ in range(3):
            lend(lambda z: (own.append(z is x), z.mul_(2).clone())[1], x)
    assert own == [False] * 3


@pytest.mark.parametrize("n", [10, 20_000])
def test_arguments_without_memory_of_their_own_are_compared(n):
    """A level for each image may be one number, expanded, and a state a view that is not contiguous."""
    x, sigma = torch.linspace(1, 2, 2 * n).reshape(2, n).mT, torch.tensor(3.0).expand(n)
    held = x.clone()
    for network in (lambda x, sigma: x * 0.5 / sigma[:, None], lambda x, sigma: x.data.mul_(0.5) / sigma[:, None]):
        lend = Lender()
        assert all(torch.equal(lend(network, x, sigma), held * 0.5 / 3.0) for _ in range(2))
    assert torch.equal(x, held)
