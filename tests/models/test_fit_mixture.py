"""The scripts of the CIFAR-10 mixture: EM's likelihood and recovery of a known density, the file, refusals, references."""

import io
import itertools
import math
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import factor_em, fit_cifar10_mixture
from torch.distributions import MultivariateNormal

from steindiff import models
from steindiff.analytic import FactorMixture
from steindiff.errors import InputError
from steindiff.io.files import sha256

D, K, R = 12, 2, 2


@pytest.fixture(scope="module")
def scripts():
    """EM, and the command that fits and evaluates."""
    return SimpleNamespace(em=factor_em, fit=fit_cifar10_mixture)


@pytest.fixture(scope="module")
def script(scripts):
    return scripts.em


def draw(f, n, seed):
    """Points (n, D) of the mixture, by the package."""
    law = FactorMixture(f.log_weights.exp(), f.means, f.loadings, f.diagonal)
    return law.sample(n, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def truth(script):
    g = torch.Generator().manual_seed(3)
    means = 1.5 * torch.randn(K, D, generator=g, dtype=torch.float64)
    loadings = torch.randn(K, D, R, generator=g, dtype=torch.float64)
    diagonal = 0.1 + 0.4 * torch.rand(K, D, generator=g, dtype=torch.float64)
    return script.Factors(torch.tensor([0.3, 0.7], dtype=torch.float64).log(), means, loadings, diagonal)


@pytest.fixture(scope="module")
def fitted(script, truth):
    x = draw(truth, 4000, 0)
    return script.fit(x, K, R, script.Settings(iterations=200, tolerance=1e-7, floor=1e-4, seed=0))


def dense_log_density(f, x):
    """Log p(x) with every covariance formed, by torch.distributions: shares no algebra with the script."""
    covariance = f.loadings @ f.loadings.mT + torch.diag_embed(f.diagonal)
    return torch.logsumexp(f.log_weights + MultivariateNormal(f.means, covariance).log_prob(x[:, None]), 1)


def test_log_joint_equals_the_dense_formula(script, truth):
    x = draw(truth, 3000, 1)  # more than one chunk
    torch.testing.assert_close(torch.logsumexp(script.log_joint(x, truth), 1), dense_log_density(truth, x))


def test_the_mixture_of_the_package_is_the_same_law(script, truth):
    x = draw(truth, 500, 2)
    law = script.mixture(truth, (3, 2, 2))
    torch.testing.assert_close(law.log_density(x.reshape(-1, 3, 2, 2), 0.0), dense_log_density(truth, x))
    single = script.Factors(truth.log_weights, truth.means.float(), truth.loadings.float(), truth.diagonal.float())
    assert script.mixture(single, (D,)).dtype == torch.float32  # EM keeps log π in float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_em_never_lowers_the_likelihood(script, truth, dtype):
    x = draw(truth, 1000, 4).to(dtype)
    history = script.fit(x, K, R, script.Settings(iterations=40, tolerance=-1.0, seed=1)).history
    assert len(history) == 41
    assert all(b >= a - 1e-6 * abs(a) for a, b in itertools.pairwise(history))
    assert history[-1] > history[0]


def test_the_floor_does_not_break_monotonicity(script, truth):
    x = draw(truth, 1000, 4)
    result = script.fit(x, K, R, script.Settings(iterations=40, tolerance=-1.0, floor=0.3, seed=1))
    assert (result.factors.diagonal == 0.3).any()
    assert all(b >= a - 1e-6 * abs(a) for a, b in itertools.pairwise(result.history))


def test_em_recovers_the_density(script, truth, fitted):
    """With p = 96 parameters and N = 4000 points theory expects a gap of p / 2N = 0.012 nats; 0.03 is allowed."""
    assert fitted.converged
    x = draw(truth, 20_000, 5)
    gap = (dense_log_density(truth, x) - dense_log_density(fitted.factors, x)).mean()
    assert -0.001 < gap < 0.03
    torch.testing.assert_close(
        fitted.factors.log_weights.exp().sort().values, torch.tensor([0.3, 0.7]).double(), atol=0.03, rtol=0
    )


def test_the_low_rank_start_finds_components_that_differ_in_texture_only(script, monkeypatch):
    """Equal means: k-means cuts each component in half, EM at rank 1 parts a flat from a textured component."""
    monkeypatch.setattr(script, "WARM_RANK", 1)
    g = torch.Generator().manual_seed(12)
    loadings = torch.randn(2, D, R, generator=g, dtype=torch.float64) * torch.tensor([0.3, 1.5]).double()[:, None, None]
    diagonal = torch.tensor([[0.02], [0.5]], dtype=torch.float64).expand(2, D).contiguous()
    f = script.Factors(torch.full((2,), 0.5, dtype=torch.float64).log(), torch.zeros(2, D).double(), loadings, diagonal)
    x = draw(f, 2000, 13)
    warm, cold = (script.initialise(x, 2, R, script.Settings(warm=n)) for n in (20, 0))
    assert script.mean_log_likelihood(x, warm) > script.mean_log_likelihood(x, cold) + 1
    best = script.mean_log_likelihood(x, f)
    assert script.mean_log_likelihood(x, warm) > best - 0.3


def test_same_seed_same_fit(script, truth):
    x = draw(truth, 500, 6).float()
    a, b = (script.fit(x, K, R, script.Settings(iterations=5, seed=7)) for _ in range(2))
    assert a.history == b.history
    assert torch.equal(a.factors.loadings, b.factors.loadings)


def test_the_file_gives_the_density_back(scripts, truth, fitted, tmp_path):
    path = tmp_path / "m.safetensors"
    scripts.fit.write(path, fitted.factors, {"floor": 1e-4}, (3, 2, 2))
    model = models.load(path, dtype=torch.float64)
    assert (model.name, model.event_shape, model.info["recipe"]) == ("m", (3, 2, 2), {"floor": 1e-4})
    x = draw(truth, 2000, 8)
    value = float(model.denoiser.log_density(x.reshape(-1, 3, 2, 2), 0.0).mean())
    # float16 moves each parameter by at most 2⁻¹¹ of itself (log ψ: 2⁻¹¹ absolute here)
    assert abs(value - scripts.em.mean_log_likelihood(x, fitted.factors)) < 1e-3
    info, tensors = models.read(path)
    assert (info["format"], info["kind"]) == (1, "factor_mixture")
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "weights": ((K,), torch.float32),
        "means": ((K, 3, 2, 2), torch.float16),
        "loadings": ((K, D, R), torch.float16),
        "log_diagonal": ((K, D), torch.float16),
    }


def make_archive(path, size=(32, 32), n=12):
    """A .tar.xz of n JPEG images of noise."""
    from PIL import Image

    g = torch.Generator().manual_seed(0)
    with tarfile.open(path, "w:xz") as tar:
        for i in range(n):
            pixels = torch.randint(0, 256, (*size, 3), generator=g, dtype=torch.uint8).numpy()
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "JPEG")
            member = tarfile.TarInfo(f"train/noise/{n - i:04d}.jpg")
            member.size = data.tell()
            data.seek(0)
            tar.addfile(member, data)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--components", "0"], "--components 0: must be at least 1"),
        (["--rank", "0"], "--rank 0: must be from 1 to 3071"),
        (["--iterations", "0"], "--iterations 0: must be at least 1"),
        (["--floor", "0"], "--floor 0.0: must be positive"),
        (["--seed", "-1"], "--seed -1: must be from 0 to"),
        (["--warm", "-1"], "--warm -1: must be at least 0"),
        (["--subset", "0"], "--subset 0: must be at least 1"),
        (["--components", "16", "--rank", "100"], "over 4,000,000"),
        (["--threads", "0"], "--threads 0: must be at least 1"),
        (["--out", "m.bin"], "--out m.bin: name a file that ends with .safetensors"),
        ([], "no such folder or archive"),
    ],
)
def test_bad_input_is_refused(scripts, tmp_path, capsys, options, message):
    out = tmp_path / "m.safetensors"
    assert scripts.fit.main(["--data", str(tmp_path), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_bad_input_to_the_evaluation_is_refused(scripts, truth, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    scripts.fit.write(path, truth, {"floor": 1e-4, "seed": 0}, (3, 2, 2))
    for options, message in (
        ([str(tmp_path / "absent.safetensors")], "no model file"),
        ([str(path)], "need factor_mixture on (3, 32, 32)"),
        (["digits"], "need factor_mixture on (3, 32, 32)"),
        (["cifar10_mixture", "--n", "39"], "--n 39: must be at least 40"),
        (["cifar10_mixture", "--n-frechet", "0"], "--n-frechet 0: must be at least 40"),
        (["cifar10_mixture"], "no such folder or archive"),
    ):
        assert scripts.fit.main(["--data", str(tmp_path), "--evaluate", *options]) == 2
        assert message in capsys.readouterr().err


def test_bad_archives_are_refused(scripts, tmp_path, capsys):
    archive = tmp_path / "train.tar.xz"
    make_archive(archive, size=(16, 16))
    assert scripts.fit.main(["--data", str(tmp_path), "--dry-run"]) == 2
    assert "(3, 16, 16): need (3, 32, 32)" in capsys.readouterr().err
    archive.write_bytes(archive.read_bytes()[:100])
    assert scripts.fit.main(["--data", str(tmp_path), "--dry-run"]) == 2
    assert "not a readable archive" in capsys.readouterr().err


def test_small_run_end_to_end(scripts, tmp_path, capsys):
    for split in ("train", "test"):
        make_archive(tmp_path / f"{split}.tar.xz")
    out = tmp_path / "new" / "m.safetensors"
    options = ["--components", "1", "--rank", "2", "--iterations", "2", "--holdout", "3", "--out", str(out)]
    assert scripts.fit.main(["--data", str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    assert "held-out log-likelihood" in printed
    assert "(3 samples)" in printed
    model = models.load(out)
    assert model.denoiser.loadings.shape == (1, 3072, 2)
    assert model.info["recipe"]["images"] == 9
    assert model.info["recipe"]["sha256"]["train.tar.xz"] == sha256(tmp_path / "train.tar.xz")
    assert scripts.fit.main(["--data", str(tmp_path), *options, "--holdout", "12"]) == 2
    assert scripts.fit.main(["--data", str(tmp_path), *options, "--rank", "50"]) == 2  # fewer images than the rank
    assert scripts.fit.main(["--data", str(tmp_path), "--evaluate", str(out)]) == 2
    assert "n ≤ both of 12 training and 12 test images" in capsys.readouterr().err


def test_clusters_smaller_than_the_rank_are_refused(script):
    with pytest.raises(InputError, match="not more than --rank 2"):
        script.fit(torch.zeros(2, D), 1, R, script.Settings())


def test_images_are_read_in_the_order_of_their_names_and_then_shuffled(scripts, tmp_path):
    make_archive(tmp_path / "a.tar.xz", n=3)  # written in descending order
    x = scripts.fit.read(tmp_path, "a", 0)
    assert x.shape == (3, 3072)
    assert -1 <= x.min() < x.max() <= 1
    with tarfile.open(tmp_path / "a.tar.xz") as tar:
        assert tar.getnames()[0] > tar.getnames()[-1]
        stream = tar.extractfile("train/noise/0001.jpg")
        assert stream is not None
        with Image.open(stream) as image:
            first = torch.tensor(np.asarray(image))
    place = int(torch.randperm(3, generator=torch.Generator().manual_seed(0)).argmin())
    assert torch.equal(((x[place] + 1) * 127.5).round().byte(), first.permute(2, 0, 1).flatten())


def test_bits_per_dim_of_the_uniform_density_is_log2_of_the_levels(scripts):
    """A uniform density on [-1, 1]^d has −log₂(2⁻¹ · 1/127.5) = log₂ 255 bits per value."""
    assert scripts.fit.bits_per_dim(-D * math.log(2), D) == pytest.approx(math.log2(255))


def test_full_gaussian_equals_the_dense_formula(scripts, truth):
    x, y = draw(truth, 3000, 9), draw(truth, 500, 10)
    gaussian = scripts.fit.full_gaussian(x, floor=1e-6, event_shape=(D,))
    dense = MultivariateNormal(x.mean(0), torch.cov(x.mT, correction=0)).log_prob(y)
    torch.testing.assert_close(gaussian.log_density(y, 0.0), dense, rtol=1e-9, atol=0)
    raised = scripts.fit.full_gaussian(x, floor=0.5, event_shape=(D,))
    assert float(torch.linalg.eigvalsh(raised.covariance)[0]) == pytest.approx(0.5, rel=1e-9)
