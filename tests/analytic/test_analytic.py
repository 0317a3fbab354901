"""Exact models against integration, automatic differentiation, Monte Carlo (4 standard errors) and each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import hessian, jacrev, jvp, vjp, vmap

from steindiff.analytic import DiagonalMixture, ExactModel, FactorMixture, Flow, Gaussian, GaussianMixture
from steindiff.analytic import integrate as integrate_module
from steindiff.analytic import mixture as mixture_module
from steindiff.errors import InputError

# torch compiles its forward-mode rules with its own deprecated torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def dense(k: int = 3, event: tuple[int, ...] = (4,), seed: int = 1) -> GaussianMixture:
    d = math.prod(event)
    root = randn(k, d, d, seed=seed) * torch.logspace(-0.3, -1.5, d, dtype=F64)
    weights = torch.arange(1.0, k + 1, dtype=F64) / (k * (k + 1) / 2)
    return GaussianMixture(weights, randn(k, *event, seed=seed + 1), root @ root.mT)


def factor(k: int = 3, event: tuple[int, ...] = (2, 3), rank: int = 2, seed: int = 5) -> FactorMixture:
    d = math.prod(event)
    weights = torch.arange(1.0, k + 1, dtype=F64) / (k * (k + 1) / 2)
    diagonal = 0.05 * randn(k, d, seed=seed + 2).exp()
    return FactorMixture(weights, randn(k, *event, seed=seed), randn(k, d, rank, seed=seed + 1), diagonal)


def as_dense(model: FactorMixture) -> GaussianMixture:
    covariances = model.loadings @ model.loadings.mT + torch.diag_embed(model.diagonal)
    return GaussianMixture(model.weights, model.means, (covariances + covariances.mT) / 2)


def gaussian(d: int = 4) -> Gaussian:
    root = randn(d, d, seed=9) * torch.logspace(0, -2, d, dtype=F64)
    return Gaussian(randn(d, seed=10), root @ root.mT)


def diagonal(k: int = 3, event: tuple[int, ...] = (2, 3), seed: int = 7) -> DiagonalMixture:
    weights = torch.arange(1.0, k + 1, dtype=F64) / (k * (k + 1) / 2)
    return DiagonalMixture(weights, randn(k, *event, seed=seed), 0.2 * randn(k, math.prod(event), seed=seed + 1).exp())


MODELS: dict[str, ExactModel] = {
    "dense": dense(),
    "event": dense(2, (2, 2), 3),
    "factor": factor(),
    "diagonal": diagonal(),
    "gaussian": gaussian(),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def noised(model: ExactModel, n: int, sigma: float, seed: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = model.sample(n, generator)
    return clean, clean + sigma * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)


def within(values: Tensor, expected: Tensor | float, errors: float = 4.0) -> None:
    """The mean over the first axis is within `errors` standard errors of `expected`."""
    se = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - expected).abs() <= errors * se + 1e-12).all()


# --- the closed forms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 0.4, 3.0])
@pytest.mark.parametrize("kind", ["dense", "factor"])
def test_one_dimension_against_integration(kind: str, sigma: float) -> None:
    weights, means = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([[-1.0], [0.8]], dtype=F64)
    variances = torch.tensor([0.1, 0.3], dtype=F64)
    if kind == "dense":
        model: ExactModel = GaussianMixture(weights, means, variances[:, None, None])
    else:
        loadings = (variances / 2).sqrt()[:, None, None]
        model = FactorMixture(weights, means, loadings, variances[:, None] / 2)
    z = torch.linspace(-8, 8, 40001, dtype=F64)  # the trapezoidal rule is exact to rounding for such integrands
    prior = (weights * (-((z[:, None] - means.T) ** 2) / (2 * variances)).exp() / (2 * math.pi * variances).sqrt()).sum(1)
    x = torch.tensor([-2.0, -0.3, 0.1, 1.5], dtype=F64)
    joint = prior * (-((x[:, None] - z) ** 2) / (2 * sigma**2)).exp() / math.sqrt(2 * math.pi) / sigma
    evidence = torch.trapezoid(joint, z)
    mean = torch.trapezoid(joint * z, z) / evidence
    variance = torch.trapezoid(joint * (z - mean[:, None]) ** 2, z) / evidence
    torch.testing.assert_close(model.denoise(x[:, None], sigma)[:, 0], mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.posterior_trace(x[:, None], sigma), variance, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(model.log_density(x[:, None], sigma), evidence.log(), rtol=1e-9, atol=1e-9)


@each_model
@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_tweedie_and_score(model: ExactModel, sigma: float) -> None:
    _, x = noised(model, 6, sigma)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(model.score(x, sigma), gradient, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.denoise(x, sigma), x + sigma**2 * gradient, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(model.denoise(x, sigma), x + sigma**2 * model.score(x, sigma), rtol=1e-8, atol=1e-9)


@each_model
@pytest.mark.parametrize("sigma", [0.01, 0.5, 5.0])
def test_divergence_is_the_jacobian_trace(model: ExactModel, sigma: float) -> None:
    _, x = noised(model, 4, sigma)
    jacobian = vmap(jacrev(lambda y: model.denoise(y[None], sigma)[0].flatten()))(x)
    trace = jacobian.reshape(4, model.dim, model.dim).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(model.divergence(x, sigma), trace, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(model.posterior_trace(x, sigma), sigma**2 * trace, rtol=1e-8, atol=1e-9)


def test_posterior_trace_is_positive_between_modes() -> None:
    model = GaussianMixture(torch.full((2,), 0.5), torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1, 1))
    for sigma in (0.3, 1.0):  # Cov[±1 | x = 0] = 1, so ∇·D = 1/σ² exceeds d
        assert model.posterior_trace(torch.zeros(1, 1), sigma).item() == pytest.approx(1.0)
        assert model.divergence(torch.zeros(1, 1), sigma).item() == pytest.approx(1 / sigma**2)


@each_model
def test_posterior_trace_is_the_denoising_error(model: ExactModel) -> None:
    for sigma in (0.1, 1.0):
        clean, x = noised(model, 40_000, sigma)
        error = (clean - model.denoise(x, sigma)).flatten(1)
        within(error.square().sum(1) - model.posterior_trace(x, sigma), 0.0)
        within(error, 0.0)  # E[x* − D] = 0
        within((error * x.flatten(1)).sum(1), 0.0)  # and is orthogonal to functions of x


@each_model
def test_moments_of_samples(model: ExactModel) -> None:
    sigma = 0.7
    clean, x = noised(model, 40_000, sigma)
    assert clean.shape == (40_000, *model.event_shape)
    within(clean, model.mean)
    within(clean.flatten(1).square().sum(1), model.second_moment())
    within(x.flatten(1).square().sum(1), model.second_moment() + sigma**2 * model.dim)
    # Stein's identity, E⟨v(x), x − x*⟩ = σ² E ∇·v, with v = D
    d = model.denoise(x, sigma)
    within((d * (x - clean)).flatten(1).sum(1) - sigma**2 * model.divergence(x, sigma), 0.0)


@each_model
def test_the_standard_deviation_of_a_coordinate(model: ExactModel) -> None:
    clean = model.sample(40_000, torch.Generator().manual_seed(3)).flatten(1)
    within((clean - model.mean.flatten()).square().mean(1), model.sigma_data**2)


def test_an_offset_changes_no_standard_deviation() -> None:
    model = diagonal(3, (8,)).to(torch.float32)
    moved = DiagonalMixture(model.weights, model.means + 1024, model.variances)
    assert moved.sigma_data == pytest.approx(model.sigma_data, rel=1e-4)


def test_samples_are_reproducible_and_have_the_covariance() -> None:
    model = factor(1, (4,), 2)
    one, two = (model.sample(20_000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert model.sample(2).shape == (2, 4)
    e = one - model.mean
    within(e[:, :, None] * e[:, None, :], as_dense(model).covariances[0])


def test_log_density_at_zero_is_the_law() -> None:
    model = gaussian()
    x = randn(5, 4)
    law = torch.distributions.MultivariateNormal(model.mean, model.covariance)
    torch.testing.assert_close(model.log_density(x, 0.0), law.log_prob(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
@pytest.mark.parametrize("kind", ["factor", "diagonal", "points"])
def test_factor_and_diagonal_equal_dense(kind: str, sigma: float) -> None:
    if kind == "factor":
        low: ExactModel = factor(4, (3, 4), 3)
        full = as_dense(low)
    else:
        wide = diagonal(4, (3, 4))
        low = wide if kind == "diagonal" else DiagonalMixture(wide.weights, wide.means, 0 * wide.variances)
        full = GaussianMixture(low.weights, low.means, torch.diag_embed(low.variances))
    _, x = noised(low, 16, sigma)
    for method in ("denoise", "score", "divergence", "posterior_trace", "responsibilities", "log_density"):
        a, b = getattr(low, method)(x, sigma), getattr(full, method)(x, sigma)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))
    torch.testing.assert_close(low.second_moment(), full.second_moment())
    torch.testing.assert_close(low.mean, full.mean)


def test_responsibilities() -> None:
    model = dense()
    _, x = noised(model, 8, 0.5)
    p = model.responsibilities(x, 0.5)
    assert p.shape == (8, 3)
    torch.testing.assert_close(p.sum(1), torch.ones(8, dtype=F64))
    torch.testing.assert_close(model.responsibilities(1e3 * x / x.norm(), 1e6)[0], model.weights, rtol=1e-2, atol=0)


def test_zero_noise() -> None:
    for model in (*MODELS.values(), GaussianMixture(torch.ones(1, dtype=F64), randn(1, 2), torch.zeros(1, 2, 2, dtype=F64))):
        x = randn(3, *model.event_shape)
        assert torch.equal(model(x, 0.0), x)
        assert torch.equal(model.denoise(x, torch.tensor([0.0, 1.0, 0.0], dtype=F64))[::2], x[::2])
        assert torch.equal(model.divergence(x, 0.0), torch.full((3,), float(model.dim), dtype=F64))
        assert torch.equal(model.posterior_trace(x, 0.0), torch.zeros(3, dtype=F64))


# --- numbers -------------------------------------------------------------------------------------------------------

PRECISION = {"denoise": 3e-5, "score": 1e-3, "divergence": 1e-5, "log_density": 1e-5, "responsibilities": 2e-4}


@pytest.mark.parametrize("sigma", [0.002, 0.02, 0.3, 3.0, 80.0])
@pytest.mark.parametrize("kind", ["dense", "factor", "diagonal", "large", "large diagonal"])
def test_float32_against_float64(kind: str, sigma: float) -> None:
    """Errors relative to the RMS value; the score's (x − D)/σ² inherits x's own rounding over the residual, 1e-3 at 0.002."""
    models = {
        "dense": dense(4, (12,)),
        "factor": factor(4, (3, 8), 5),
        "diagonal": diagonal(4, (24,)),
        "large": factor(4, (600,), 20),
        "large diagonal": diagonal(4, (600,)),
    }
    single = models[kind].to(torch.float32)
    double = single.to(F64)
    _, x = noised(single, 32, sigma)
    for method, limit in PRECISION.items():
        a, b = getattr(single, method)(x, sigma), getattr(double, method)(x.double(), sigma)
        assert a.dtype == torch.float32
        error = (a - b).square().mean().sqrt() / b.square().mean().sqrt()
        assert error < limit, (method, float(error))


def test_common_offset_costs_no_digits() -> None:
    low, flat = factor(3, (8,), 2).to(torch.float32), diagonal(3, (8,)).to(torch.float32)
    for model, moved in (
        (low, FactorMixture(low.weights, low.means + 64, low.loadings, low.diagonal)),
        (flat, DiagonalMixture(flat.weights, flat.means + 64, flat.variances)),
    ):
        _, x = noised(model, 16, 0.5)
        x = (x + 64) - 64  # what float32 keeps of x at that offset
        torch.testing.assert_close(moved(x + 64, 0.5) - 64, model(x, 0.5), rtol=0, atol=3e-5)


@each_model
def test_chunks_and_permutations(model: ExactModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _, x = noised(model, 11, 0.5)
    sigmas = torch.linspace(0.1, 2, 11, dtype=F64)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    methods = ("denoise", "score", "divergence", "log_density", "responsibilities")
    whole = [getattr(model, m)(x, s) for m in methods for s in (0.5, sigmas)]
    permuted = [getattr(model, m)(x[order], s) for m in methods for s in (0.5, sigmas[order])]
    monkeypatch.setattr(mixture_module, "BUDGET", 40)
    chunked = [getattr(model, m)(x, s) for m in methods for s in (0.5, sigmas)]
    for a, b, c in zip(whole, permuted, chunked, strict=True):
        torch.testing.assert_close(a[order], b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)


@each_model
def test_sigma_per_sample_is_the_scalar_call(model: ExactModel) -> None:
    sigmas = torch.tensor([0.002, 0.5, 80.0, 0.5, 0.01], dtype=F64)
    _, x = noised(model, 5, 1.0)
    for method in ("denoise", "score", "divergence", "posterior_trace", "log_density", "responsibilities"):
        f = getattr(model, method)
        together = f(x, sigmas)
        alone = torch.cat([f(x[i : i + 1], float(s)) for i, s in enumerate(sigmas)])
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(f(x, sigmas[1]), f(x, 0.5), rtol=0, atol=0)


@each_model
def test_empty_batch(model: ExactModel) -> None:
    x = torch.empty(0, *model.event_shape, dtype=F64)
    assert model(x, 1.0).shape == x.shape
    assert model.divergence(x, torch.empty(0, dtype=F64)).shape == (0,)
    assert model.flow(x, 80.0, 0.1).shape == x.shape


@each_model
@pytest.mark.parametrize("sigma", [0.02, 0.5, 5.0])
def test_derivatives_agree(model: ExactModel, sigma: float) -> None:
    _, x = noised(model, 3, sigma)
    v, w = randn(*x.shape, seed=31), randn(*x.shape, seed=32)

    def f(y: Tensor) -> Tensor:
        return model(y, sigma)

    forward = jvp(f, (x,), (v,))[1]
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent
    leaf = x.clone().requires_grad_()
    (reverse,) = torch.autograd.grad(f(leaf), leaf, w)
    h = 1e-5 * sigma
    difference = (f(x + h * v) - f(x - h * v)) / (2 * h)
    torch.testing.assert_close(forward, dual)
    torch.testing.assert_close(forward, difference, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(reverse, vjp(f, x)[1](w)[0])
    torch.testing.assert_close((forward * w).sum(), (v * reverse).sum(), rtol=1e-9, atol=1e-9)
    per_sample = torch.full((3,), sigma, dtype=F64)
    torch.testing.assert_close(jvp(lambda y: model(y, per_sample), (x,), (v,))[1], forward, rtol=1e-9, atol=1e-9)


def test_posterior_covariance_is_the_second_derivative() -> None:
    """Cov[x* | x] = σ² (I + σ² ∇² log p): second derivatives of the density, and div D through it."""
    model, sigma = dense(), 0.6
    _, x = noised(model, 1, sigma)
    curvature = hessian(lambda y: model.log_density(y[None], sigma)[0])(x[0])
    trace = sigma**2 * (model.dim + sigma**2 * curvature.trace())
    torch.testing.assert_close(model.posterior_trace(x, sigma)[0], trace, rtol=1e-8, atol=1e-9)


# --- the flow ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "stop"), [(80.0, 0.002), (0.01, 3.0), (2.0, 0.0), (0.0, 2.0)])
def test_gaussian_flow_is_the_mixtures(start: float, stop: float) -> None:
    root = randn(4, 4, seed=9) * torch.logspace(0, -1, 4, dtype=F64)
    exact = Gaussian(randn(4, seed=10), root @ root.mT)
    twin = GaussianMixture(torch.full((2,), 0.5, dtype=F64), exact.mean.expand(2, 4), exact.covariance.expand(2, 4, 4))
    _, x = noised(exact, 8, start)
    result = twin.flow_with_error(x, start, stop, tol=1e-6)
    error = (result.x - exact.flow(x, start, stop)).square().mean().sqrt()
    assert error <= result.error <= 2e-6


@each_model
def test_flow_there_and_back(model: ExactModel) -> None:
    _, x = noised(model, 6, 3.0)
    back = model.flow(model.flow(x, 3.0, 0.2, tol=1e-9), 0.2, 3.0, tol=1e-7)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.flow(x, 3.0, 3.0), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "factor"])
def test_flow_carries_the_law(kind: str) -> None:
    model = {"dense": dense(), "factor": factor()}[kind]
    _, x = noised(model, 4000, 10.0)
    y = model.flow(x, 10.0, 0.1, tol=1e-4)
    reference, _ = noised(model, 4000, 0.1, seed=99)
    within(y, model.mean)
    within(y.flatten(1).square().sum(1), model.second_moment() + 0.1**2 * model.dim)
    p, q = model.responsibilities(y, 0.1), model.responsibilities(reference, 0.1)
    within(p, model.weights)
    within(q, model.weights)


def test_flow_follows_the_change_of_density() -> None:
    """d log p(y)/d log σ along the flow is −∇·(y − D) = −(d − ∇·D)."""
    model = dense()
    _, x = noised(model, 4, 2.0)
    levels = torch.linspace(math.log(2.0), math.log(0.5), 33, dtype=F64)
    states = [x]
    for a, b in zip(levels[:-1].exp().tolist(), levels[1:].exp().tolist(), strict=True):
        states.append(model.flow(states[-1], a, b, tol=1e-10))
    rates = torch.stack([model.divergence(y, float(s)) - model.dim for y, s in zip(states, levels.exp(), strict=True)])
    h = float(levels[1] - levels[0])
    simpson = h / 3 * (rates[0] + rates[-1] + 4 * rates[1:-1:2].sum(0) + 2 * rates[2:-1:2].sum(0))
    torch.testing.assert_close(model.log_density(states[-1], 0.5), model.log_density(x, 2.0) + simpson, rtol=0, atol=1e-4)


def test_integrator_has_order_six() -> None:
    model = dense()
    _, x = noised(model, 8, 5.0)
    velocity = model._velocity()
    y, a, b = x - model.mean, math.log(5.0), math.log(0.3)
    reference = integrate_module.runge_kutta(velocity, y, a, b, 512)
    errors = [float((integrate_module.runge_kutta(velocity, y, a, b, n) - reference).norm()) for n in (32, 64)]
    assert 5.5 < math.log2(errors[0] / errors[1]) < 7.5
    assert [sum(row) for row in integrate_module.STAGES] == pytest.approx(integrate_module.NODES)


def test_the_integrator_towards_the_data_has_order_five() -> None:
    model = dense()
    _, x = noised(model, 8, 5.0)
    velocity, evaluated = model._velocity(), list[float]()

    def counted(y: Tensor, sigma: float) -> Tensor:
        evaluated.append(sigma)
        return velocity(y, sigma)

    y, a, b = x - model.mean, math.log(5.0), math.log(0.3)
    reference = integrate_module.runge_kutta(velocity, y, a, b, 512)
    errors = [float((integrate_module.adams(counted, y, a, b, n) - reference).norm()) for n in (64, 128)]
    assert 4.5 < math.log2(errors[0] / errors[1]) < 6.5
    assert len(evaluated) == sum(3 * 7 + 1 + n - 3 for n in (64, 128))


@pytest.mark.parametrize("h", [-0.33, -0.01, 0.5])
def test_adams_weights_integrate_polynomials(h: float) -> None:
    """∫₀ʰ eʰ⁻ˢ (s/h)³ ds by the trapezoidal rule on a fine grid."""
    nodes = (*integrate_module.EARLIER, 1.0)
    s = torch.linspace(0, h, 100_001, dtype=F64)
    expected = torch.trapezoid((h - s).exp() * (s / h) ** 3, s)
    found = sum(w * c**3 for w, c in zip(integrate_module.adams_weights(h, nodes), nodes, strict=True))
    assert found == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_an_adams_run_of_few_steps_is_a_run_too(steps: int) -> None:
    """Up to three steps it is Butcher's method, and the fourth is the first that extrapolates."""
    model = dense()
    _, x = noised(model, 8, 1.0)
    velocity, y, a, b = model._velocity(), x - model.mean, 0.0, -0.05 * steps
    exact = integrate_module.runge_kutta(velocity, y, a, b, 64)
    found = integrate_module.adams(velocity, y, a, b, steps)
    assert float((found - exact).abs().max()) < 1e-6
    assert torch.equal(found, integrate_module.runge_kutta(velocity, y, a, b, steps)) == (steps < 4)


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_flow_error_is_honest(tol: float) -> None:
    """Against a tight reference: the estimate is above the true error up to a factor two, and under tol."""
    model = dense(4, (6,), 11)
    _, x = noised(model, 32, 80.0)
    reference = model.flow(x, 80.0, 0.002, tol=1e-9)
    result = model.flow_with_error(x, 80.0, 0.002, tol)
    true = (result.x - reference).square().mean().sqrt()
    assert isinstance(result, Flow)
    assert true <= 2 * result.error
    assert result.error <= tol
    assert result.errors.shape == (32,)
    assert result.steps in (64, 128, 256, 512, 1024)


def test_flow_is_the_samples_own() -> None:
    model = dense(4, (6,), 11)
    _, x = noised(model, 8, 20.0)
    together = model.flow(x, 20.0, 0.01, tol=1e-5)
    alone = torch.cat([model.flow(row[None], 20.0, 0.01, tol=1e-5) for row in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)


def test_flow_is_differentiable() -> None:
    model = dense()
    _, x = noised(model, 3, 2.0)
    v, w = randn(3, 4, seed=1), randn(3, 4, seed=2)

    def f(y: Tensor) -> Tensor:
        return model.flow(y, 2.0, 0.5, tol=1e-8)

    forward, reverse = jvp(f, (x,), (v,))[1], vjp(f, x)[1](w)[0]
    torch.testing.assert_close((forward * w).sum(), (v * reverse).sum())
    torch.testing.assert_close(forward, (f(x + 1e-4 * v) - f(x - 1e-4 * v)) / 2e-4, rtol=1e-4, atol=1e-5)


def test_flow_states_what_it_could_not_reach() -> None:
    model = dense().to(torch.float32)
    _, x = noised(model, 4, 80.0)
    stalled = model.flow_with_error(x, 80.0, 0.002, tol=1e-9)
    assert 1e-9 < stalled.error < 1e-4
    assert stalled.steps < 2048  # the rounding floor is recognised long before max_steps
    with pytest.raises(InputError, match=r"flow reached an RMS error of .*raise tol"):
        model.flow(x, 80.0, 0.002, tol=1e-9)
    limited = dense().to(F64).flow_with_error(x.double(), 80.0, 0.002, tol=1e-12, max_steps=80)
    assert limited.steps == 64
    assert limited.error > 1e-12
    with pytest.raises(InputError, match="max_steps = 5: an error estimate from here needs at least 64"):
        model.flow_with_error(x, 80.0, 0.002, max_steps=5)


# --- what is refused -----------------------------------------------------------------------------------------------

W2, M2, C2 = torch.full((2,), 0.5), torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3)
L2, D2 = torch.zeros(2, 3, 1), torch.ones(2, 3)
SKEW = C2 + torch.triu(torch.ones(3, 3), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((W2.long(), M2, C2), "weights has dtype torch.int64: need float32 or float64"),
        ((W2.half(), M2, C2), "weights has dtype torch.float16"),
        (([0.5, 0.5], M2, C2), "weights is a list, not a tensor"),
        ((W2, M2.double(), C2), "means is torch.float64 on cpu but weights is torch.float32"),
        ((W2, M2 / 0, C2), "means has non-finite entries: 6 of 6"),
        ((torch.tensor([0.0, 1.0]), M2, C2), "least weight is 0: weights must be positive"),
        ((torch.tensor([0.5, 0.6]), M2, C2), "weights sum to 1.1: need 1"),
        ((W2[None], M2, C2), r"weights have shape \(1, 2\): need \(K,\)"),
        ((W2, M2[0], C2), r"means have shape \(3,\): need \(K, \*event\)"),
        ((W2, M2[:1], C2), r"means has shape \(1, 3\): need \(K, \*event\) = \(2, 3\)"),
        ((W2, M2, C2[:, :2, :2]), r"covariances has shape \(2, 2, 2\): need \(K, d, d\) = \(2, 3, 3\)"),
        ((W2, M2, SKEW), "covariance differs from its transpose by 1, limit"),
        ((W2, M2, C2 - 2 * C2[0]), "a covariance has the eigenvalue -1: need positive semidefinite"),
    ],
)
def test_mixture_refuses(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GaussianMixture(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((W2, M2, L2[0], D2), r"loadings has shape \(3, 1\): need \(K, d, r\), r >= 1"),
        ((W2, M2, L2[..., :0], D2), r"loadings has shape \(2, 3, 0\)"),
        ((W2, M2, L2, D2[:, :2]), r"diagonal has shape \(2, 2\): need \(K, d\) = \(2, 3\)"),
        ((W2, M2, L2, 0 * D2), "least diagonal variance is 0: need > 0"),
        ((W2, M2, L2, D2.int()), "diagonal has dtype torch.int32"),
    ],
)
def test_factor_mixture_refuses(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FactorMixture(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((W2, M2, D2[:, :2]), r"variances has shape \(2, 2\): need \(K, d\) = \(2, 3\)"),
        ((W2, M2, D2[0]), r"variances has shape \(3,\): need \(K, d\)"),
        ((W2, M2, -D2), "least variance is -1: need ≥ 0; clamp it"),
        ((W2, M2, D2 * math.nan), "variances has non-finite entries: 6 of 6"),
        ((W2, M2, D2.int()), "variances has dtype torch.int32"),
        ((W2, M2[:1], D2), r"means has shape \(1, 3\)"),
    ],
)
def test_diagonal_mixture_refuses(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiagonalMixture(*arguments)


def test_gaussian_refuses() -> None:
    with pytest.raises(InputError, match=r"covariance has shape \(2, 2\): need \(d, d\) = \(3, 3\)"):
        Gaussian(torch.zeros(3), torch.eye(2))


@pytest.mark.parametrize(
    ("x", "sigma", "message"),
    [
        (torch.zeros(2, 4), 1.0, r"x has shape \(2, 4\): need \(B, 3\)"),
        (torch.zeros(3), 1.0, r"x has shape \(3,\): need \(B, 3\)"),
        (torch.zeros(2, 3, dtype=torch.int64), 1.0, "x has dtype torch.int64: need floating point"),
        (torch.zeros(2, 3, dtype=F64), 1.0, r"x is torch.float64 but the model is torch.float32: pass model.to\(x.dtype\)"),
        (torch.zeros(2, 3, device="meta"), 1.0, "x is on meta but the model is on cpu"),
        ([[0.0] * 3], 1.0, "x is a list, not a tensor"),
        (torch.zeros(2, 3), -1.0, "sigma = -1.0: need a finite sigma >= 0"),
        (torch.zeros(2, 3), math.nan, "sigma = nan"),
        (torch.zeros(2, 3), torch.tensor([1.0, -2.0]), "sigma has the value -2.0: need finite sigma >= 0"),
        (torch.zeros(2, 3), torch.ones(3), r"sigma has shape \(3,\) for a batch of 2: need \(\) or \(2,\)"),
        (torch.zeros(2, 3), torch.ones(2, 1), r"sigma has shape \(2, 1\)"),
    ],
)
@pytest.mark.parametrize("method", ["denoise", "score", "divergence", "posterior_trace", "responsibilities", "log_density"])
def test_calls_refuse(method: str, x: Tensor, sigma: float | Tensor, message: str) -> None:
    for model in (GaussianMixture(W2, M2, C2), FactorMixture(W2, M2, L2, D2), DiagonalMixture(W2, M2, D2)):
        with pytest.raises(InputError, match=message):
            getattr(model, method)(x, sigma)


def test_other_calls_refuse() -> None:
    model = GaussianMixture(W2, M2, 0 * C2)
    x = torch.zeros(1, 3)
    for method in (model.log_density, model.score, model.responsibilities):
        with pytest.raises(InputError, match="sigma = 0 but a covariance is singular"):
            method(x, 0.0)
    with pytest.raises(InputError, match="sigma = 0 but a covariance is singular"):
        model.flow(x, 0.0, 1.0)
    for law in (model, Gaussian(torch.zeros(3), torch.eye(3))):
        with pytest.raises(InputError, match=r"sigma_to = -1\.0"):
            law.flow(x, 1.0, -1.0)
        with pytest.raises(InputError, match="tol = 0: need tol > 0"):
            law.flow(x, 1.0, 0.5, tol=0)
        with pytest.raises(InputError, match="n=0: need a whole number from 1"):
            law.sample(0)
        with pytest.raises(InputError, match=r"float32 or float64, not torch\.float16"):
            law.to(torch.float16)


@settings(max_examples=25, deadline=None)
@given(
    k=st.integers(1, 3),
    event=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    rank=st.integers(1, 3),
    batch=st.integers(1, 4),
    wrong=st.integers(-1, 3),
)
def test_shapes(k: int, event: tuple[int, ...], rank: int, batch: int, wrong: int) -> None:
    """Every consistent set of shapes works; changing one parameter's leading size is refused."""
    d = math.prod(event)
    parts = [torch.full((k,), 1 / k), torch.zeros(k, *event), torch.zeros(k, d, rank), torch.ones(k, d)]
    if wrong >= 0:
        parts[wrong] = torch.cat([parts[wrong], parts[wrong][:1]])
        with pytest.raises(InputError, match=r"shape|sum to"):
            FactorMixture(*parts)
        return
    model = FactorMixture(*parts)
    x = torch.ones(batch, *event)
    assert (model.event_shape, model.dim, model.dtype) == (event, d, torch.float32)
    assert model.denoise(x, 1.0).shape == model.score(x, 1.0).shape == x.shape
    assert model.divergence(x, 1.0).shape == model.log_density(x, torch.ones(batch)).shape == (batch,)
    torch.testing.assert_close(model(x, 1.0), x / 2)


def test_moving_between_dtypes() -> None:
    model = factor()
    single = model.to(torch.float32)
    assert single.dtype == single.mean.dtype == single.loadings.dtype == torch.float32
    assert model.dtype == F64
    assert model.to().dtype == F64
    assert model.to(device="cpu").device == torch.device("cpu")
    torch.testing.assert_close(single.to(F64).means, model.means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dense().to(torch.float32).covariances, dense().covariances.float(), rtol=1e-5, atol=1e-6)
