"""The shipped tables are worth what is said of them: a damaged, swapped or badly fitted file fails here."""

import pytest
import torch

from steindiff import grids, initial_noise
from steindiff.analytic import GaussianMixture
from steindiff.sampling import sample
from steindiff.study import testbed
from steindiff.study.testbed import digits_mixture

D64 = torch.float64
PLAIN = ("ddim", "dpmpp_2m", "unipc_3", "deis_3", "ipndm_3", "ipndm_4")


def tabular():
    """Three Gaussians in thirteen coordinates of standard deviation 0.5 on average, as standardised measurements have."""
    g = torch.Generator().manual_seed(0)
    means, axes = 0.3 * torch.randn(3, 13, generator=g, dtype=D64), torch.randn(3, 13, 13, generator=g, dtype=D64)
    axes = torch.linalg.qr(axes).Q
    covariances = axes @ torch.diag(0.6 / torch.arange(1, 14, dtype=D64)) @ axes.mT
    return GaussianMixture(torch.tensor([0.33, 0.4, 0.27], dtype=D64), means, (covariances + covariances.mT) / 2)


@pytest.fixture(scope="module", params=[digits_mixture, tabular], ids=["digits_mixture", "tabular"])
def bed(request):
    """A law, 64 noises, and where its exact flow takes them."""
    law = request.param()
    x = initial_noise(range(5000, 5064), law.event_shape, dtype=D64)
    return law, x, law.flow(x, 80.0, 0.002, tol=1e-5)


def rmse(end, exact):
    return float((end - exact).square().mean().sqrt())


@pytest.mark.parametrize("n, factor", [(3, 1.4), (4, 1.4), (5, 1.4), (6, 1.4), (8, 1.0), (10, 1.0)])
def test_what_auto_takes_ends_nearer_the_exact_flow_than_the_best_plain_solver(bed, n, factor):
    law, x, exact = bed
    ours = sample("auto", law, x, nfe=n)
    assert ours.solver == f"universal table of {n} evaluations"
    plain = {name: rmse(sample(name, law, x, grids.karras(n)).x, exact) for name in PLAIN}
    assert min(plain.values()) / rmse(ours.x, exact) >= factor, (plain, rmse(ours.x, exact))


@pytest.mark.parametrize("scale, n, factor", [(2, 4, 2.0), (5, 6, 2.0), (8, 8, 2.0)])
def test_under_guidance_it_ends_nearer_too(scale, n, factor):
    bed, seeds = testbed.make(f"digits_guided_{scale}"), range(5000, 5048)
    denoiser, x = bed.denoiser_for(seeds), initial_noise(seeds, bed.event_shape)
    exact = sample("unipc_3", denoiser, x, grids.karras(128)).x
    ours = sample("auto", denoiser, x, nfe=n)
    assert ours.solver == f"universal table of {n} evaluations"
    plain = {name: rmse(sample(name, denoiser, x, grids.karras(n)).x, exact) for name in (*PLAIN, "ipndm_2")}
    assert min(plain.values()) / rmse(ours.x, exact) >= factor, (plain, rmse(ours.x, exact))
