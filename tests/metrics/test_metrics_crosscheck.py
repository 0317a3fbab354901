"""The same numbers from other people's programs: torchmetrics (FID, inception score), prdc, and POT (sliced Wasserstein)."""

import numpy as np
import pytest
import torch
from torch import nn

from steindiff.metrics import energy_distance, frechet_distance, inception_score, precision_recall, sliced_wasserstein
from steindiff.metrics.fid.references import Reference, grouped_moments
from steindiff.metrics.moments import SampleMoments
from steindiff.metrics.sliced import directions

ot = pytest.importorskip("ot", reason="pip install POT")
compute_prdc = pytest.importorskip("prdc").compute_prdc
FrechetInceptionDistance = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance
InceptionScore = pytest.importorskip("torchmetrics.image.inception").InceptionScore


class Wide(nn.Module):
    """12 features, not independent, of images (n, 3, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(48, 12, generator=g) / 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.to(self.matrix.dtype).flatten(1) / 127.5 - 1) @ self.matrix + 0.3


def _images(seed: int, n: int, power: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (255 * torch.rand(n, 3, 4, 4, generator=g) ** power).to(torch.uint8)


def _points(seed: int, n: int, d: int, shift: float = 0.0) -> torch.Tensor:
    return shift + torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cumsum(1)


@torch.no_grad()
def test_fid_is_that_of_torchmetrics():
    network, real, fake = Wide().double(), _images(0, 400), _images(1, 300, power=1.2)
    theirs = FrechetInceptionDistance(feature=network, input_img_size=(3, 4, 4))
    theirs.set_dtype(torch.float64)
    for chunk in real.split(64):
        theirs.update(chunk, real=True)
    for chunk in fake.split(64):
        theirs.update(chunk, real=False)
    expected = float(theirs.compute())
    x, y = network(fake), network(real)
    reference = Reference.of(SampleMoments.of(y), "some extractor", "none")
    ours = reference.frechet(grouped_moments(x.split(50), 10), "some extractor", "none")
    assert expected > 0.1
    assert ours.value.value == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(x, y).value == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save", "ignore:std.*degrees of freedom")
@torch.no_grad()
def test_the_inception_score_is_that_of_torchmetrics():
    network, images, expected = Wide(), _images(2, 500), []
    for half in images.split(250):  # theirs shuffles before it splits, ours does not: so one split each
        theirs = InceptionScore(feature=nn.Sequential(network, _Times(6.0)), splits=1)
        theirs.update(half)
        expected.append(float(theirs.compute()[0]))
    ours = inception_score((6 * network(images)).double().softmax(1), splits=2)
    assert min(expected) > 1.5
    assert ours.value.value == pytest.approx(sum(expected) / 2, rel=1e-5)


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


@pytest.mark.parametrize("neighbours", [3, 5])
def test_precision_recall_and_coverage_are_those_of_prdc(neighbours):
    x, y = _points(0, 300, 6, shift=0.7), _points(1, 400, 6)
    theirs = compute_prdc(y.numpy(), x.numpy(), neighbours)
    ours = precision_recall(x, y, neighbours)
    assert 0.2 < theirs["coverage"] < 0.95
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(ours, name).value.value == pytest.approx(theirs[name], abs=1e-12), name


@pytest.mark.parametrize("n, m", [(200, 200), (150, 230)])
def test_the_sliced_distance_is_that_of_pot(n, m):
    x, y = _points(2, n, 5, shift=0.3), _points(3, m, 5)
    theirs = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions(5, 40).double().numpy().T)
    assert sliced_wasserstein(x, y, count=40).value == pytest.approx(float(theirs) ** 2, rel=1e-6)


def test_the_energy_distance_is_that_of_pots_distances():
    x, y = _points(4, 200, 5, shift=0.3).numpy(), _points(5, 300, 5).numpy()
    cross, of_x, of_y = (ot.dist(a, b, metric="euclidean") for a, b in ((x, y), (x, x), (y, y)))
    off = [np.sum(within) / (len(within) * (len(within) - 1)) for within in (of_x, of_y)]
    expected = 2 * cross.mean() - off[0] - off[1]
    assert energy_distance(torch.from_numpy(x), torch.from_numpy(y)).value == pytest.approx(expected, rel=1e-9)
