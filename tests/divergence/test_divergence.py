"""Trace estimators: unbiased, honest about their error, consistent with each other, detached, seeded, and choosy."""

import itertools
import math
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from steindiff import solvers
from steindiff.analytic import GaussianMixture
from steindiff.corrections import CleanTarget, Corrected
from steindiff.divergence import Choice, Estimate, Exact, Hutchinson, HutchPlusPlus, choose, choosing, dot
from steindiff.divergence.products import Options, linearise
from steindiff.errors import InputError, SteindiffError
from steindiff.noise import mix
from steindiff.sampling import sample
from steindiff.solvers.base import Grid

torch.set_num_threads(1)
D64 = torch.float64
SIGMA = torch.tensor(0.8, dtype=D64)


class Mixture:
    """Isotropic Gaussians N(μ_k, s_k²), weights p_k: exact D and exact tr ∂D/∂x, written independently of the package."""

    def __init__(self, d=6, k=3, seed=0, dtype=D64):
        g = torch.Generator().manual_seed(seed)
        self.mu = torch.randn(k, d, generator=g, dtype=D64).to(dtype)
        self.s2 = (0.05 + 0.3 * torch.rand(k, generator=g, dtype=D64)).to(dtype)
        self.log_p = torch.softmax(torch.randn(k, generator=g, dtype=D64), 0).log().to(dtype)

    def _parts(self, x, sigma):
        v = self.s2 + sigma.to(x.dtype) ** 2
        e = x[:, None] - self.mu
        p = torch.softmax(self.log_p - x.shape[1] / 2 * v.log() - e.square().sum(-1) / (2 * v), 1)
        gain = self.s2 / v
        return v, e, p, gain, self.mu + gain[:, None] * e

    def __call__(self, x, sigma):
        _, _, p, _, m = self._parts(x, sigma)
        return (p[..., None] * m).sum(1)

    def divergence(self, x, sigma):
        """tr ∂D/∂x = Σ p_k d s_k²/v_k + Σ p_k ⟨g_k − ḡ, m_k⟩, g_k = −(x − μ_k)/v_k."""
        v, e, p, gain, m = self._parts(x, sigma)
        g = -e / v[:, None]
        mean = (p[..., None] * g).sum(1, keepdim=True)
        return x.shape[1] * p @ gain + (p * ((g - mean) * m).sum(-1)).sum(1)

    def draw(self, n, sigma, seed):
        g = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.log_p.exp(), n, replacement=True, generator=g)
        noise = torch.randn(2, n, self.mu.shape[1], generator=g, dtype=self.mu.dtype)
        return self.mu[k] + self.s2[k, None].sqrt() * noise[0] + sigma * noise[1]


MIXTURE = Mixture()
A = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=D64)  # far from symmetric


def twisted(x):
    """g(x) = sin(Ax) + x₀ x: Jacobian diag(cos Ax) A + x₀ I + x e₀ᵀ, not symmetric."""
    return torch.sin(x @ A.T) + x[:, :1] * x, "aux"


def twisted_trace(x):
    return torch.cos(x @ A.T) @ A.diagonal() + (x.shape[1] + 1) * x[:, 0]


def through_mixture(x):
    return MIXTURE(x, SIGMA), None


LAW = GaussianMixture(
    torch.tensor([0.3, 0.7], dtype=D64),
    torch.randn(2, 6, generator=torch.Generator().manual_seed(4), dtype=D64),
    torch.stack([A @ A.T / 20, torch.diag(torch.linspace(0.01, 0.5, 6, dtype=D64))]),
)
MAPS = {
    "full covariances": (lambda x: (LAW(x, SIGMA), None), lambda x: LAW.divergence(x, SIGMA)),
    "mixture": (through_mixture, lambda x: MIXTURE.divergence(x, SIGMA)),
    "non-symmetric": (twisted, twisted_trace),
}


@pytest.fixture(scope="module")
def x():
    return MIXTURE.draw(5, SIGMA, seed=2)


@pytest.mark.parametrize("name", MAPS)
def test_exact_is_the_closed_form(name, x):
    g, trace = MAPS[name]
    estimate, _ = Exact()(g, x, 0)
    assert estimate.values.shape == (1, len(x))
    torch.testing.assert_close(estimate.values[0], trace(x), rtol=1e-12, atol=1e-12)
    assert (estimate.primals, estimate.jvps, estimate.vjps) == (1, 0, 6)
    torch.testing.assert_close(Exact()(g, x[:1], 0)[0].mean, trace(x[:1])[0], rtol=1e-12, atol=1e-12)


def test_exact_on_images():
    x = torch.randn(2, 3, 2, 2, dtype=D64, generator=torch.Generator().manual_seed(0))
    estimate, _ = Exact()(lambda z: (z**3, None), x, 0)
    torch.testing.assert_close(estimate.values[0], 3 * x.square().flatten(1).sum(1))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_mean_is_within_four_standard_errors_of_the_exact_trace(name, kind, k, x):
    g, trace = MAPS[name]
    many = x[:1].expand(4000, -1)  # one point, 4000 independent draws
    estimate, _ = Hutchinson(k, kind, "jvp")(g, many, 3)
    assert estimate.values.shape == (k, 4000)
    draws = estimate.values.flatten()
    se = draws.std() / math.sqrt(draws.numel())
    assert se > 0
    assert abs(estimate.mean - trace(x)[0]) < 4 * se
    torch.testing.assert_close(estimate.se, estimate.values.mean(0).std() / math.sqrt(4000))


def test_the_variance_of_a_probe_is_what_theory_says(x):
    # Rademacher: Σ_{i≠j} (S_ij)² · 2 with S the symmetric part; Gaussian: 2‖S‖²
    J = torch.autograd.functional.jacobian(lambda z: twisted(z[None])[0][0], x[0])
    S = (J + J.T) / 2
    off = 2 * (S.square().sum() - S.diagonal().square().sum())
    many = x[:1].expand(40_000, -1)
    for kind, variance in (("rademacher", off), ("gaussian", 2 * S.square().sum())):
        got = Hutchinson(1, kind, "jvp")(twisted, many, 0)[0].values.var()
        assert abs(got / variance - 1) < 0.06  # sampling error of a variance: about √(2…8)/200


@pytest.mark.parametrize("batch, k", [(32, 1), (32, 3), (1, 12)])
def test_the_standard_error_is_honest(batch, k):
    """Spread of repeated estimates against the reported error: over batches, or over probes for a batch of one."""
    means, errors = [], []
    for i in range(200):
        points = MIXTURE.draw(batch, SIGMA, seed=1000 + i) if batch > 1 else MIXTURE.draw(1, SIGMA, seed=7)
        estimate, _ = Hutchinson(k, "rademacher", "vjp", seed=i)(through_mixture, points, 0)
        means.append(estimate.mean)
        errors.append(estimate.se)
    spread, reported = torch.stack(means).std(), torch.stack(errors).square().mean().sqrt()
    assert 0.8 < spread / reported < 1.25  # 200 repeats: the spread is known to about 5 %


def test_a_single_draw_has_no_standard_error(x):
    assert math.isnan(float(Hutchinson(1, method="vjp")(twisted, x[:1], 0)[0].se))


@pytest.mark.parametrize("method", ["vjp", "jvp", "fd"])
def test_rademacher_is_exact_for_a_diagonal_jacobian(method, x):
    estimate, _ = Hutchinson(2, "rademacher", method)(lambda z: (torch.tanh(z), None), x, 0)
    exact = (1 - torch.tanh(x) ** 2).sum(1)
    torch.testing.assert_close(estimate.values, exact.expand(2, -1), rtol=0, atol=1e-12 if method != "fd" else 1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_methods_agree_probe_by_probe(name, x):
    g, _ = MAPS[name]
    values = {m: Hutchinson(3, "gaussian", m, fd_step=1e-4, seed=5)(g, x, 2)[0].values for m in ("vjp", "jvp", "fd")}
    torch.testing.assert_close(values["jvp"], values["vjp"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values["fd"], values["vjp"], rtol=1e-6, atol=1e-6)
    assert values["vjp"].std(0).min() > 1e-6  # the probes do differ


def test_probes_are_the_ones_the_seed_promises(x):
    """vᵀJv with v drawn as documented, J in full: pins the pairing of probe, sample and Jacobian side."""
    seen = []
    estimate, _ = Hutchinson(2, "gaussian", "fd", seed=9)(lambda z: (seen.append(z) or z, None), x, 4)
    base, *shifted = seen
    assert torch.equal(base, x)
    J = torch.autograd.functional.jacobian(lambda z: twisted(z)[0].sum(0), x).permute(1, 0, 2)
    expected = []
    for plus, minus in (shifted[:2], shifted[2:]):
        h = 1e-3 * x.square().mean(1, keepdim=True).sqrt()
        v = (plus - minus) / (2 * h)
        expected.append(torch.einsum("bi,bij,bj->b", v, J, v))
    actual = Hutchinson(2, "gaussian", "vjp", seed=9)(twisted, x, 4)[0].values
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert estimate.primals == 5


@pytest.mark.parametrize("k", [1, 3])
def test_counts_are_what_was_done(k, x):
    calls = []

    def g(z):
        calls.append(1)
        return z * z, None

    for method, (primals, jvps, vjps) in {"vjp": (1, 0, k), "jvp": (k, k, 0), "fd": (1 + 2 * k, 0, 0)}.items():
        calls.clear()
        estimate, _ = Hutchinson(k, method=method)(g, x, 0)
        assert (estimate.primals, estimate.jvps, estimate.vjps) == (primals, jvps, vjps)
        assert len(calls) == primals


@pytest.mark.parametrize("method", ["vjp", "jvp", "fd"])
def test_fd_error_scales_with_the_square_of_its_step_and_others_ignore_it(method, x):
    def at(step):
        return Hutchinson(1, "rademacher", method, fd_step=step, seed=1)(twisted, x, 0)[0].values

    exact = at(1e-4) if method != "fd" else Hutchinson(1, "rademacher", "vjp", seed=1)(twisted, x, 0)[0].values
    coarse, fine = (at(s) - exact for s in (2e-2, 1e-2))
    if method == "fd":
        torch.testing.assert_close(coarse / fine, torch.full_like(fine, 4.0), rtol=0.02, atol=0)
    else:
        assert torch.equal(coarse, torch.zeros_like(coarse))


def test_fd_steps_follow_the_scale_of_each_sample(x):
    """fd is equivariant under g ↦ c g(·/c): a per-sample relative step."""
    scale = torch.tensor([1e-3, 1.0, 10.0, 1e3, 1e6], dtype=D64)[:, None]
    fd = Hutchinson(1, method="fd")
    scaled, _ = fd(lambda z: (scale * torch.sin(z / scale), None), scale * x, 0)
    plain, _ = fd(lambda z: (torch.sin(z), None), x, 0)
    torch.testing.assert_close(scaled.values, plain.values, rtol=1e-9, atol=1e-9)


def test_fd_at_the_origin_has_a_step_too():
    estimate, _ = Hutchinson(1, method="fd")(lambda z: (torch.sin(z), None), torch.zeros(2, 3), 0)
    torch.testing.assert_close(estimate.values, torch.full((1, 2), 3.0), rtol=1e-4, atol=0)


# ---------------------------------------------------------------- sharing, detachment, seeds


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from tensors(part)
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from tensors(part)
    elif hasattr(tree, "__dataclass_fields__"):
        for name in tree.__dataclass_fields__:
            yield from tensors(getattr(tree, name))


def second_step(name):
    """A solver's map at its second step (so that there is history), with the state it starts from."""
    solver = solvers.make(name)
    grid = Grid.of(torch.tensor([5.0, 2.0, 0.8, 0.3], dtype=D64))
    start = MIXTURE.draw(3, 5.0, seed=0)
    first = solver.step(MIXTURE, start, grid.interval(0), solver.init(MIXTURE, start, grid))
    return lambda z: (lambda s: (s.x, s))(solver.step(MIXTURE, z, grid.interval(1), first.state)), first.x


@pytest.mark.parametrize("name", solvers.names())
@pytest.mark.parametrize("method", ["vjp", "jvp", "fd"])
def test_the_primal_is_shared_and_detached(name, method):
    g, x = second_step(name)
    plain = g(x)[1]
    with torch.enable_grad():  # a caller's own gradient mode must not leak in
        estimate, step = Hutchinson(2, method=method)(g, x, 0)
    kept, expected = list(tensors(step)), list(tensors(plain))
    assert len(kept) == len(expected) >= 2
    for a, b in zip(kept, expected, strict=True):
        if method == "jvp":
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(a, b)
    with forward_ad.dual_level():
        for t in [*kept, estimate.values]:
            assert t.grad_fn is None
            assert not t.requires_grad
            assert forward_ad.unpack_dual(t).tangent is None
    assert not x.requires_grad


@pytest.mark.parametrize("method", ["vjp", "jvp", "fd"])
def test_by_products_in_lists_and_dicts_are_detached_too(method, x):
    weight = torch.ones(6, dtype=D64, requires_grad=True)
    _, aux = Hutchinson(1, method=method)(lambda z: (weight * z, [{"a": weight * z, "b": (z, 3, None)}]), x, 0)
    assert torch.equal(aux[0]["a"], x)
    assert not any(t.requires_grad for t in tensors(aux))


def test_the_same_seed_and_index_repeat_and_others_do_not(x):
    def at(seed, index):
        return Hutchinson(1, "gaussian", "jvp", seed=seed)(twisted, x, index)[0].values

    assert torch.equal(at(3, 4), at(3, 4))
    assert torch.equal(at(3, 4), Hutchinson(1, "gaussian", "jvp").seeded(3)(twisted, x, 4)[0].values)
    for other in ((3, 5), (4, 4), (4, 3)):
        assert not torch.isclose(at(3, 4), at(*other)).any()


def test_more_probes_begin_with_the_fewer(x):
    few, many = (Hutchinson(k, "gaussian", "jvp")(twisted, x, 0)[0].values for k in (2, 5))
    assert torch.equal(few, many[:2])


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_an_images_probes_do_not_depend_on_its_batch_mates(kind, x):
    seeds = (11, 12, 13, 14, 15)

    def at(rows):
        estimator = Hutchinson(3, kind, "jvp").seeded(tuple(seeds[i] for i in rows))
        return estimator(twisted, x[list(rows)], 2)[0].values

    full = at(range(5))
    for rows in ((2,), (4, 0), (3, 2, 1, 0, 4)):
        torch.testing.assert_close(at(rows), full[:, list(rows)], rtol=1e-12, atol=1e-12)
    shared = Hutchinson(3, kind, "jvp", seed=11)
    assert not torch.allclose(shared(twisted, x, 2)[0].values[:, 1:], full[:, 1:])


def test_probes_use_the_whole_seed(x):
    low, high = (Hutchinson(1, "gaussian", "jvp", seed=s)(twisted, x, 0)[0].values for s in (1, 1 + 2**32))
    assert not torch.isclose(low, high).any()
    assert mix(1, 0) != mix(1 + 2**32, 0)


def test_a_wrong_number_of_seeds_is_refused(x):
    with pytest.raises(InputError, match="3 probe seeds for a batch of 5"):
        Hutchinson(method="vjp", seed=(1, 2, 3))(twisted, x, 0)


@pytest.mark.parametrize("bad", [{"probes": 0}, {"fd_step": 0.0}, {"fd_step": math.nan}, {"kind": "cauchy"}, {"method": "x"}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(InputError, match=r"need|choose"):
        Hutchinson(**bad)


def test_estimate_statistics_by_hand():
    e = Estimate(torch.tensor([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]]), 1, 0, 2)
    assert float(e.mean) == 4
    assert float(e.se) == pytest.approx(math.sqrt(7) / math.sqrt(3))  # sample means 2, 3, 7: variance 7
    one = Estimate(torch.tensor([[1.0], [3.0]]), 1, 0, 2)
    assert float(one.se) == pytest.approx(1.0)  # draws 1, 3: deviation √2 over √2


def test_auto_must_be_resolved(x):
    with pytest.raises(InputError, match="resolve"):
        Hutchinson()(twisted, x, 0)


# ---------------------------------------------------------------- choosing a method


def smooth(x, sigma):
    """A Gaussian's denoiser with something non-linear on top."""
    return x / (1 + sigma.to(x) ** 2) + 0.1 * torch.tanh(x / 2)


class OldStyle(torch.autograd.Function):
    """EDM's attention in miniature: backward, no forward mode, not functorch-ready."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - torch.tanh(x) ** 2)


class NoBackward(torch.autograd.Function):
    """Forward mode only; raises without a message in backward."""

    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx, t):
        return t * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


class Neither(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        raise TypeError("no backward here\nsecond line")


def attention(x, sigma):
    q = x.reshape(x.shape[0], 1, -1, 2)
    return x / 2 + 0.3 * F.scaled_dot_product_attention(q, q, q).reshape(x.shape)


def skip(inner):
    """The usual preconditioning: a skip connection hides that `inner` cut the graph."""
    return lambda x, sigma: x / (1 + sigma.to(x) ** 2) + 0.5 * inner(x)


def in_inference_mode(x):
    with torch.inference_mode():
        return torch.tanh(x)


NETWORKS = {
    "smooth": (smooth, "vjp"),
    "old-style Function": (skip(OldStyle.apply), "vjp"),
    "no backward": (skip(NoBackward.apply), "jvp"),
    "neither": (skip(Neither.apply), "fd"),
    "no_grad inside": (skip(torch.no_grad()(torch.tanh)), "jvp"),
    "no_grad around": (torch.no_grad()(smooth), "jvp"),
    "detached": (skip(lambda x: torch.tanh(x.detach())), "fd"),
    "inference mode inside": (skip(in_inference_mode), "fd"),
    "numpy": (skip(lambda x: torch.from_numpy(x.numpy()).tanh()), "fd"),
    "numpy behind detach": (skip(lambda x: torch.from_numpy(x.detach().numpy()).tanh()), "fd"),
    "attention": (attention, "vjp"),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, D64])
def test_auto_takes_the_first_method_that_gives_the_right_number(name, dtype):
    network, expected = NETWORKS[name]
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=D64).to(dtype)
    sigma = torch.tensor(1.0, dtype=D64)
    resolved = Hutchinson(2).resolve(network, x, sigma)
    assert resolved.method == resolved.choice.method == expected
    costs, notes = resolved.choice.costs, resolved.choice.notes
    assert set(costs) == set(notes) == {"vjp", "jvp", "fd"}
    assert all((cost is None) == ("works" not in notes[m]) for m, cost in costs.items())
    assert all(cost is None or cost >= 0 for cost in costs.values())
    assert not any("\n" in note for note in notes.values())
    values = resolved(lambda z: (network(z, sigma), None), x, 0)[0].values
    reference = Hutchinson(2, method="fd")(lambda z: (network(z, sigma), None), x, 0)[0].values
    torch.testing.assert_close(values, reference, rtol=1e-2, atol=1e-2)


def test_flash_attention_has_no_forward_mode_and_auto_does_not_need_it():
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    choice = choose(attention, x, torch.tensor(1.0))
    assert choice.method == "vjp"
    if choice.costs["jvp"] is None:  # torch without a forward rule for the fused kernel
        with pytest.raises(SteindiffError, match=r"no derivative.*jvp.*method='auto'"):
            Hutchinson(method="jvp").resolve(attention, x, torch.tensor(1.0))


@pytest.mark.parametrize("method", ["vjp", "jvp"])
def test_an_unusable_method_is_refused_with_its_reason(method):
    x = torch.randn(2, 4)
    with pytest.raises(SteindiffError, match=rf"no derivative of this network by {method}.*auto"):
        Hutchinson(method=method).resolve(skip(Neither.apply), x, torch.tensor(1.0))


def test_a_silently_missing_derivative_is_refused_with_its_likely_cause():
    with pytest.raises(SteindiffError, match=r"where finite differences give.*no_grad"):
        Hutchinson(method="vjp").resolve(skip(torch.no_grad()(torch.tanh)), torch.randn(2, 4), torch.tensor(1.0))


def test_exact_is_refused_where_vjp_does_not_work():
    with pytest.raises(SteindiffError, match="by vjp"):
        Exact().resolve(skip(Neither.apply), torch.randn(2, 4), torch.tensor(1.0))


def test_nothing_works():
    def hostile(x, sigma):
        hostile.calls += 1
        if hostile.calls > 4:  # survives the difference quotients, then dies
            raise RuntimeError("worn out")
        return x

    hostile.calls = 0
    with pytest.raises(SteindiffError, match=r"no derivative .*worn out.*FixedGamma"):
        choose(hostile, torch.randn(2, 4), torch.tensor(1.0))


def test_a_coarse_network_is_not_refused():
    """bfloat16 inside: difference quotients are noise or zero there, and must not condemn a right VJP."""
    layer = torch.nn.Linear(64, 64).to(torch.bfloat16)

    def network(x, sigma):
        return 0.01 * layer((x / sigma.to(x)).bfloat16()).float()

    for sigma in (1e-3, 1.0, 80.0):
        s = torch.tensor(sigma)
        assert Hutchinson().resolve(network, sigma * torch.randn(4, 64), s).method == "vjp"


def test_a_network_too_coarse_for_difference_quotients_is_not_refused():
    x, sigma = torch.full((2, 4), 100.0), torch.tensor(0.01)
    assert torch.equal((x + 0.01).bfloat16(), x.bfloat16())  # the quotients are exactly zero
    assert choose(lambda y, s: (y.bfloat16() / 2).float(), x, sigma).method == "vjp"


@pytest.mark.parametrize("sigma", [80.0, 1.0, 0.002])
@pytest.mark.parametrize("dtype", [torch.float32, D64])
def test_a_right_derivative_is_never_refused(sigma, dtype):
    model = Mixture(d=32, k=4, dtype=dtype)
    s = torch.tensor(sigma, dtype=D64)
    for x in (model.draw(8, sigma, seed=0), sigma * torch.randn(8, 32, dtype=dtype), torch.zeros(8, 32, dtype=dtype)):
        choice = choose(model, x, s)
        assert choice.method == "vjp"
        assert choice.costs["jvp"] is not None


@pytest.mark.parametrize(("scale", "doubts"), [(1 / 0.6, 0.125), (1 / 48, 4.2)])
def test_a_right_derivative_may_be_off_by_several_times_what_the_quotients_are_apart(scale, doubts):
    """D = s sin(x/s) per axis at 0, whose quotient over h is sinc(h/s); h is 0.05 and 0.15. A smooth one is off by 1/8."""
    x, sigma = torch.zeros(2, 4, dtype=D64), torch.tensor(1.0, dtype=D64)
    value, (near, far) = 1, (math.sin(h / scale) / (h / scale) for h in (0.05, 0.15))
    assert (value - near) / abs(near - far) == pytest.approx(doubts, rel=0.02)
    assert choose(lambda y, s: scale * torch.sin(y / scale), x, sigma).method == "vjp"


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_missing_part_is_noticed_though_the_quotients_are_apart(scale):
    """They differ by 0.3 % and 5 % of themselves. (From 7.5 % on, s < 0.2, none is noticed.)"""

    def cut(y, s):
        with torch.no_grad():
            moved = scale * torch.sin(y / scale)
        return 1e-3 * y + moved

    with pytest.raises(SteindiffError, match="where finite differences give"):
        choose(cut, torch.zeros(2, 4, dtype=D64), torch.tensor(1.0, dtype=D64), methods=("vjp",))


@pytest.mark.parametrize("estimator, method", [(Hutchinson(), "fd"), (Hutchinson(method="fd"), "fd")])
def test_inference_mode_falls_back_to_finite_differences(estimator, method, x):
    with torch.inference_mode():
        resolved = estimator.resolve(MIXTURE, x, SIGMA)
        estimate, _ = resolved(through_mixture, x, 0)
    assert resolved.method == method
    reference, _ = Hutchinson(method="vjp")(through_mixture, x, 0)
    torch.testing.assert_close(estimate.values.clone(), reference.values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["vjp", "jvp"])
def test_inference_mode_refuses_derivatives_clearly(method, x):
    with torch.inference_mode(), pytest.raises(SteindiffError, match="inference"):
        Hutchinson(method=method)(through_mixture, x, 0)


@pytest.mark.parametrize("method", ["vjp", "jvp", "fd"])
def test_a_state_made_in_inference_mode_can_be_differentiated_outside_it(method, x):
    with torch.inference_mode():
        made = x * 1
    expected = Hutchinson(method=method)(through_mixture, x, 0)[0].values
    torch.testing.assert_close(Hutchinson(method=method)(through_mixture, made, 0)[0].values, expected)


# ---------------------------------------------------------------- cost


def test_the_measured_cost_is_the_cost_whatever_else_runs(monkeypatch):
    """A forward of 10 ms and a backward of 30 ms, so that a VJP costs three forwards; every seventh piece is 1 s longer."""
    now, pieces = [0.0], itertools.count(1)

    def work(seconds):
        now[0] += seconds + (next(pieces) % 7 == 0)

    monkeypatch.setattr(choosing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            work(0.01)
            return x / 2

        @staticmethod
        def backward(ctx, grad):
            work(0.03)
            return grad / 2

    choice = choose(lambda x, sigma: Slow.apply(x), torch.randn(2, 4), torch.tensor(1.0))
    assert choice.method == "vjp"
    assert choice.costs["vjp"] == pytest.approx(3)
    assert choice.costs["fd"] == pytest.approx(2)  # two more forwards
    assert choosing.excess(lambda: work(0.01), lambda: work(0.02), torch.zeros(1), 5) == 0  # nothing costs less than nothing


def test_the_choice_is_recorded_and_reusing_it_probes_nothing():
    layer = torch.nn.Linear(64, 64, dtype=D64)
    calls = []

    def network(x, sigma):
        calls.append(1)
        return torch.tanh(layer(x)) / (1 + sigma)

    grid = torch.tensor([5.0, 2.0, 0.5], dtype=D64)
    x = 5 * torch.randn(16, 64, generator=torch.Generator().manual_seed(0), dtype=D64)
    first = sample(Corrected(solvers.make("ddim"), CleanTarget(gamma_max=1.0)), network, x, grid)
    probing = len(calls) - first.stats.nfe
    assert probing > 0
    choice = first.stats.choice
    assert choice.method == "vjp"
    assert choice.costs["vjp"] > 0
    assert first.stats.forward_equivalents == pytest.approx(2 + 2 * choice.costs["vjp"])
    calls.clear()
    reused = Hutchinson(choice=choice)
    again = sample(Corrected(solvers.make("ddim"), CleanTarget(gamma_max=1.0), divergence=reused), network, x, grid)
    assert len(calls) == again.stats.nfe == 2
    assert again.stats.choice is choice or again.stats.choice == choice
    assert torch.equal(again.x, first.x)


def test_a_choice_that_excludes_the_asked_method_is_refused(x):
    choice = Choice("vjp", {"vjp": 1.0, "jvp": None}, {})
    for method in ("jvp", "fd"):
        with pytest.raises(SteindiffError, match=f"method='{method}' is not among"):
            Hutchinson(method=method, choice=choice).resolve(MIXTURE, x, SIGMA)
    assert Hutchinson(method="vjp", choice=choice).resolve(MIXTURE, x, SIGMA).method == "vjp"


# ---------------------------------------------------------------- Hutch++, forward differences, one pass, sub-batches


def linear(matrix):
    return lambda z: (z @ matrix.T, None)


def spectrum(decay, d=24, seed=0, symmetric=True):
    g = torch.Generator().manual_seed(seed)
    q, p = (torch.linalg.qr(torch.randn(d, d, generator=g, dtype=D64))[0] for _ in range(2))
    return q @ torch.diag(torch.as_tensor(decay, dtype=D64)) @ (q if symmetric else p).T


ESTIMATORS = {
    "hutch++ 3": HutchPlusPlus(3, method="vjp"),
    "hutch++ 5 gaussian": HutchPlusPlus(5, "gaussian", "vjp"),
    "hutch++ 8 jvp": HutchPlusPlus(8, method="jvp"),
    "hutch++ 6 batched": HutchPlusPlus(6, method="jvp", batched=True),
    "vjp batched": Hutchinson(3, method="vjp", batched=True),
    "jvp batched": Hutchinson(3, "gaussian", "jvp", batched=True),
    "central differences": Hutchinson(2, method="fd", fd_step=1e-4),
    "forward differences": Hutchinson(2, method="fd", fd_step=1e-7, antithetic=False),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_every_estimator_is_unbiased(name, estimator, x):
    g, trace = MAPS[name]
    estimate, _ = estimator(g, x[:1].expand(4000, -1), 3)
    per_point = estimate.values.mean(0)
    assert abs(estimate.mean - trace(x)[0]) < 4 * per_point.std() / math.sqrt(4000)
    torch.testing.assert_close(estimate.se, per_point.std() / math.sqrt(4000))


@pytest.mark.parametrize("rank, k", [(1, 3), (2, 6), (2, 8), (4, 12)])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_hutch_plus_plus_is_exact_for_low_rank(rank, k, kind, symmetric):
    J = spectrum([3.0, -2.0, 1.0, 0.5][:rank] + [0.0] * (24 - rank), symmetric=symmetric)
    x = torch.randn(4, 24, dtype=D64, generator=torch.Generator().manual_seed(0))
    for method in ("vjp", "jvp"):
        values = HutchPlusPlus(k, kind, method)(linear(J), x, 0)[0].values
        torch.testing.assert_close(values, J.trace().expand_as(values), rtol=1e-10, atol=1e-10)
    assert Hutchinson(k, kind, "vjp")(linear(J), x, 0)[0].values.std() > 1e-2


def test_hutch_plus_plus_with_a_sketch_of_everything_is_exact_and_leaves_the_rest_out(x):
    estimate, _ = HutchPlusPlus(30, method="vjp")(twisted, x, 0)
    assert estimate.vjps == 12
    torch.testing.assert_close(estimate.values, twisted_trace(x)[None], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(estimate.se, estimate.values[0].std() / math.sqrt(5))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutch_plus_plus_pays_where_the_spectrum_decays_and_not_where_it_is_flat(kind):
    x = torch.zeros(3000, 24, dtype=D64)

    def variance(J, estimator):
        return estimator(linear(J), x, 0)[0].values.mean(0).var()

    for k, limit in ((6, 0.5), (12, 0.05)):
        fast, flat = spectrum(0.4 ** torch.arange(24.0)), spectrum(torch.ones(24).cumsum(0).cos())
        ratio = [variance(J, HutchPlusPlus(k, kind, "vjp")) / variance(J, Hutchinson(k, kind, "vjp")) for J in (fast, flat)]
        assert ratio[0] < limit
        assert ratio[1] > 1.2


def test_the_variance_of_the_residual_is_what_theory_says():
    """Conditionally on Q: 2‖S‖² for Gaussian probes, S the symmetric part of (1−QQᵀ)J(1−QQᵀ); averaged over Q."""
    J = spectrum(0.7 ** torch.arange(24.0), symmetric=False)
    x, seeds = torch.zeros(20_000, 24, dtype=D64), range(400)
    got = HutchPlusPlus(3, "gaussian", "jvp")(linear(J), x, 0)[0].values.var()
    g = torch.Generator().manual_seed(0)
    expected = []
    for _ in seeds:
        q = torch.linalg.qr(J @ torch.randn(24, 1, generator=g, dtype=D64))[0]
        P = torch.eye(24, dtype=D64) - q @ q.T
        S = P @ (J + J.T) @ P / 2
        expected.append(2 * S.square().sum())
    assert abs(got / torch.stack(expected).mean() - 1) < 0.1


@pytest.mark.parametrize("k", [3, 5, 6, 16])
def test_hutch_plus_plus_takes_k_products(k):
    x = torch.zeros(2, 24)
    for method, counts in {"vjp": (1, 0, k), "jvp": (k, k, 0), "fd": (1 + 2 * k, 0, 0)}.items():
        estimate, _ = HutchPlusPlus(k, method=method)(linear(torch.eye(24)), x, 0)
        assert (estimate.primals, estimate.jvps, estimate.vjps) == counts
        assert estimate.values.shape == (k - 2 * (k // 3), 2)


def halves(a, b):
    """⟨a, P_b b⟩ for the first and the second half of the coordinates."""
    return (a * b).reshape(len(a), 2, -1).sum(-1)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_partial_traces_are_unbiased_and_add_up(estimator, x):
    J = torch.autograd.functional.jacobian(lambda z: twisted(z[None])[0][0], x[0])
    exact = J.diagonal().reshape(2, 3).sum(1)
    estimate, _ = estimator(twisted, x[:1].expand(4000, -1), 1, contract=halves)
    se = estimate.values.mean(0).std(0) / math.sqrt(4000)
    assert (abs(estimate.mean - exact) < 4 * se).all()
    whole, _ = estimator(twisted, x[:1].expand(4000, -1), 1)
    torch.testing.assert_close(estimate.values.sum(-1), whole.values, rtol=1e-5, atol=1e-5)


def test_forward_differences_cost_half_and_err_in_first_order(x):
    exact = Hutchinson(2, method="vjp")(twisted, x, 0)[0].values
    error = []
    for step in (2e-3, 1e-3):
        estimate, _ = Hutchinson(2, method="fd", fd_step=step, antithetic=False)(twisted, x, 0)
        assert estimate.primals == 3
        error.append(estimate.values - exact)
    torch.testing.assert_close(error[0] / error[1], torch.full_like(exact, 2.0), rtol=0.1, atol=0)


def test_a_sign_changes_nothing_in_an_exact_product(x):
    """Antithetic pairs are for difference quotients."""
    for method in ("vjp", "jvp"):
        products = linearise(method, twisted, x, Options())
        v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=D64)
        torch.testing.assert_close(dot(v, products.one(v)), dot(-v, products.one(-v)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [Hutchinson, HutchPlusPlus])
@pytest.mark.parametrize("method", ["vjp", "jvp"])
@pytest.mark.parametrize("name", [*MAPS, "heun", "unipc_3", "dpmpp_2m", "dpmpp_3s"])
def test_batched_equals_the_loop(kind, method, name, x):
    g = MAPS[name][0] if name in MAPS else second_step(name)[0]
    x = x if name in MAPS else second_step(name)[1]
    looped, by_product = kind(8, "gaussian", method)(g, x, 0)
    batched, same = kind(8, "gaussian", method, batched=True)(g, x, 0)
    torch.testing.assert_close(batched.values, looped.values, rtol=1e-10, atol=1e-10)
    assert (batched.jvps, batched.vjps) == (looped.jvps, looped.vjps)
    assert batched.primals == (1 if method == "vjp" or kind is Hutchinson else 3)
    for a, b in zip(tensors(same), tensors(by_product), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert a.grad_fn is None
        assert (a + 1).shape == b.shape  # alive outside vmap


@pytest.mark.parametrize("batched", [True, "auto"])
@pytest.mark.parametrize("method", ["vjp", "jvp"])
def test_batched_is_measured_recorded_and_reused(batched, method, x):
    calls = []

    def network(y, sigma):
        calls.append(1)
        return smooth(y, sigma)

    resolved = Hutchinson(4, method=method, batched=batched).resolve(network, x, SIGMA)
    key = f"{method}_batched"
    assert resolved.choice.costs[key] >= 0
    assert "at once" in resolved.choice.notes[key]
    assert resolved.batched is resolved.choice.batched
    assert batched == "auto" or resolved.batched
    used = key if resolved.batched else method
    assert resolved.choice.cost(method) == resolved.choice.costs[used]
    calls.clear()
    again = Hutchinson(4, method=method, batched=batched, choice=resolved.choice).resolve(network, x, SIGMA)
    assert again == resolved
    assert not calls
    looped = Hutchinson(4, method=method, choice=resolved.choice).resolve(network, x, SIGMA)
    assert looped.choice.cost(method) == resolved.choice.costs[method]
    assert not Hutchinson(1, method=method, batched=batched).resolve(network, x, SIGMA).batched


class LoopOnly(torch.autograd.Function):
    """A derivative outside torch: fine one by one, impossible under vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(grad.numpy() * (1 - np.tanh(x.detach().numpy()) ** 2))


def test_what_cannot_be_vmapped_falls_back_with_a_note_or_is_refused():
    x, network = torch.randn(4, 6), skip(LoopOnly.apply)
    resolved = Hutchinson(3, batched="auto").resolve(network, x, torch.tensor(1.0))
    assert (resolved.method, resolved.batched) == ("vjp", False)
    assert resolved.choice.costs["vjp_batched"] is None
    assert "Error" in resolved.choice.notes["vjp_batched"]
    resolved(lambda z: (network(z, torch.tensor(1.0)), None), x, 0)
    with pytest.raises(SteindiffError, match=r"batched=True does not work by vjp.*batched='auto'"):
        Hutchinson(3, batched=True).resolve(network, x, torch.tensor(1.0))
    only_fd = skip(Neither.apply)
    assert Hutchinson(3, batched="auto").resolve(only_fd, x, torch.tensor(1.0)).batched is False
    with pytest.raises(SteindiffError, match="no batched pass"):
        Hutchinson(3, batched=True).resolve(only_fd, x, torch.tensor(1.0))


def test_batched_is_found_cheaper_where_it_is():
    """A pass that takes 10 ms however many probes it carries."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x / 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            time.sleep(0.01)
            return grad / 2

    def network(x, sigma):
        time.sleep(0.002)
        return Slow.apply(x)

    resolved = Hutchinson(8, batched="auto").resolve(network, torch.randn(2, 4), torch.tensor(1.0))
    assert resolved.batched
    assert resolved.choice.cost("vjp") < resolved.choice.costs["vjp"] / 3


def test_inference_mode_refuses_a_batched_jvp_clearly(x):
    with torch.inference_mode(), pytest.raises(SteindiffError, match="inference"):
        Hutchinson(2, method="jvp", batched=True)(through_mixture, x, 0)


FREE = Choice("vjp", {"vjp": 2.5, "jvp": 1.5, "fd": 2.0, "vjp_batched": 0.5, "jvp_batched": 0.25}, {}, batched=True)
GRID = torch.tensor([10.0, 4.0, 1.5, 0.5, 0.1], dtype=D64)


def one_step(name):
    """A step with history as `through` wants it, its state, and the divergence of z − T(z) by Exact."""
    solver, grid = solvers.make(name), Grid.of(GRID)
    first = solver.step(MIXTURE, MIXTURE.draw(6, 10.0, seed=0), grid.interval(0), solver.init(MIXTURE, MIXTURE.mu, grid))

    def g(network, z):
        step = solver.step(network, z, grid.interval(1), first.state)
        return z - step.x, step

    return g, first.x


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "dpmpp_3m", "unipc_2", "heun", "dpmpp_3s", "deis_3", "ipndm_3"])
@pytest.mark.parametrize("method", ["vjp", "jvp", "fd"])
@pytest.mark.parametrize("m", [1, 2, 5])
def test_a_sub_batch_is_the_first_rows_of_the_batch(name, method, m):
    """Same numbers for its images, the same step for all, and no evaluation that is not needed."""
    g, x = one_step(name)
    seen, k, seeds = [], 3, (1, 2, 3, 4, 5, 6)

    def network(y, sigma):
        seen.append(len(y))
        return MIXTURE(y, sigma)

    whole, step = Hutchinson(k, method=method, seed=seeds).through(g, MIXTURE, x, 1)
    seen.clear()
    part, same = Hutchinson(k, method=method, seed=seeds, samples=m).through(g, network, x, 1)
    torch.testing.assert_close(part.values, whole.values[:, :m], rtol=1e-9, atol=1e-9)
    for a, b in zip(tensors(same), tensors(step), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        assert a.grad_fn is None
    assert part.share == m / 6
    assert (part.primals, part.jvps, part.vjps) == (whole.primals, whole.jvps, whole.vjps)
    stages = {"heun": 2, "dpmpp_3s": 3}.get(name, 1)
    later = {"vjp": 0, "jvp": k - 1, "fd": 2 * k}[method]
    assert sorted(seen) == sorted(stages * [m, 6 - m] + stages * later * [m])
    direct, _ = Hutchinson(k, method=method, seed=seeds, samples=m)(lambda z: g(MIXTURE, z), x, 1)
    torch.testing.assert_close(direct.values, part.values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", [*ESTIMATORS.values()], ids=ESTIMATORS)
def test_a_sub_batch_is_unbiased(estimator):
    x = MIXTURE.draw(1, SIGMA, seed=2).expand(6000, -1)
    estimate, _ = replace(estimator, samples=4000).through(lambda D, z: (D(z, SIGMA), None), MIXTURE, x, 0)
    assert estimate.values.shape[1] == 4000
    assert abs(estimate.mean - MIXTURE.divergence(x[:1], SIGMA)[0]) < 4 * estimate.se


def test_a_sub_batch_of_everything_is_the_batch(x):
    for m in (5, 6, 100):
        part, _ = Hutchinson(2, method="vjp", samples=m)(twisted, x, 0)
        assert torch.equal(part.values, Hutchinson(2, method="vjp")(twisted, x, 0)[0].values)
        assert part.share == 1


@pytest.mark.parametrize("sigma", [SIGMA, torch.full((5,), 0.8, dtype=D64)])
def test_a_noise_level_per_image_is_split_too(sigma, x):
    shape = []

    def network(y, s):
        shape.append((len(y), tuple(s.shape)))
        return MIXTURE(y, SIGMA)

    Hutchinson(2, method="jvp", samples=2).through(lambda D, z: (D(z, sigma), None), network, x, 0)
    assert all(s in ((), (n,)) for n, s in shape)
    assert len({len(s) for _, s in shape}) == 1


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc_2", "heun"])
@pytest.mark.parametrize("method", ["vjp", "jvp", "fd"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", [Hutchinson, HutchPlusPlus])
def test_the_bill_of_a_sub_batch_is_exact(name, method, batched, kind):
    if batched and method == "fd":
        pytest.skip("no batched pass")
    images, k, m, B = [], 3, 2, 5

    def network(y, sigma):
        images.append(len(y))
        return MIXTURE(y, sigma)

    estimator = kind(k, method=method, choice=FREE, samples=m, batched=batched)
    rule = CleanTarget(gamma_max=1.0, history="frozen")
    run = sample(Corrected(solvers.make(name), rule, divergence=estimator), network, MIXTURE.draw(B, 10.0, 0), GRID)
    plain = solvers.make(name).nfe(GRID)
    one_pass = batched and kind is Hutchinson  # Hutch++'s blocks are of one probe here
    passes = {"vjp": 1, "jvp": 1 if one_pass else k, "fd": 1 + 2 * k}[method]
    products = {"vjp": k, "jvp": k, "fd": 0}[method] * plain
    assert run.stats.nfe == sum(images) / B == pytest.approx(plain * (1 + (passes - 1) * m / B))
    assert isinstance(run.stats.nfe, int) == (sum(images) % B == 0)
    assert run.stats.jvps + run.stats.vjps == products
    each = FREE.costs.get(f"{method}_batched" if one_pass else method)
    assert run.stats.forward_equivalents == pytest.approx(run.stats.nfe + each * products * m / B)


def test_a_sub_batch_of_a_run_keeps_each_images_probes():
    """With a γ that depends on one image, that image's whole path is its own."""
    x = MIXTURE.draw(5, 10.0, 0)
    generators = [torch.Generator().manual_seed(i) for i in range(5)]
    solver = Corrected(
        solvers.make("ddim"), CleanTarget(gamma_max=1.0), divergence=Hutchinson(method="vjp", choice=FREE, samples=1)
    )
    moments = [r.moments["div"] for r in sample(solver, MIXTURE, x, GRID[:2], generator=generators).trace]
    generators = [torch.Generator().manual_seed(i) for i in range(1)]
    alone = [r.moments["div"] for r in sample(solver, MIXTURE, x[:1], GRID[:2], generator=generators).trace]
    assert moments == pytest.approx(alone)


@pytest.mark.parametrize(
    "bad, match",
    [
        ({"samples": 0}, "at least one image"),
        ({"batched": "yes"}, "choose 'auto' or False"),
        ({"batched": True, "method": "fd"}, "fd has no batched pass"),
    ],
)
@pytest.mark.parametrize("kind", [Hutchinson, HutchPlusPlus])
def test_bad_options_are_refused(bad, match, kind):
    with pytest.raises(InputError, match=match):
        kind(**bad)


@pytest.mark.parametrize("k", [1, 2])
def test_hutch_plus_plus_needs_three_probes(k):
    with pytest.raises(InputError, match=f"probes={k}: Hutch.* needs 3 or more"):
        HutchPlusPlus(k)


def test_a_sub_batch_wants_seeds_for_the_batch(x):
    with pytest.raises(InputError, match="2 probe seeds for a batch of 5"):
        Hutchinson(method="vjp", seed=(1, 2), samples=2)(twisted, x, 0)


def test_hutch_plus_plus_keeps_its_kind():
    assert HutchPlusPlus(4).seeded(3) == HutchPlusPlus(4, seed=3)
    assert isinstance(HutchPlusPlus(4).resolve(smooth, torch.randn(2, 4), torch.tensor(1.0)), HutchPlusPlus)


def test_a_network_whose_channels_lie_side_by_side_has_every_derivative():
    """As users lay their networks out for speed: torch differentiates such a group norm only backward, and one by one."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 3, padding=1)
    network = torch.nn.Sequential(*layers).double().requires_grad_(False).to(memory_format=torch.channels_last)
    images = torch.randn(3, 4, 5, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert not network[0](images).is_contiguous()
    probe, h = torch.randn_like(images), 1e-5
    quotient = (network(images + h * probe) - network(images - h * probe)) / (2 * h)
    for method, batched in itertools.product(("vjp", "jvp"), (False, True)):
        products = linearise(method, lambda z: (network(z), None), images, Options(batched=batched))
        ((v, product),) = products.pairs([probe])
        torch.testing.assert_close(dot(v, product), dot(probe, quotient), rtol=1e-6, atol=1e-8)


def test_a_first_gradient_imports_no_algebra():
    """torch imports sympy for a gradient with given outputs' gradients, which took seconds of a short run."""
    code = """if True:
        import sys, torch
        from steindiff.divergence import Hutchinson
        Hutchinson(2, method="vjp")(lambda z: (torch.tanh(z), None), torch.randn(3, 4), 0)
        sys.exit("sympy" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
