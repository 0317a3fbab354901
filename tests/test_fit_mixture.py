"""The EM fit of scripts/fit_cifar10_mixture.py: likelihood, recovery of a known density, refusals, atomic writing."""

import importlib.util
import io
import itertools
import json
import math
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.distributions import MultivariateNormal

from steindiff.errors import InputError, ModelFileError

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "fit_cifar10_mixture.py"
D, K, R = 12, 2, 2


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fit_cifar10_mixture", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def truth(script):
    g = torch.Generator().manual_seed(3)
    means = 1.5 * torch.randn(K, D, generator=g, dtype=torch.float64)
    loadings = torch.randn(K, D, R, generator=g, dtype=torch.float64)
    diagonal = 0.1 + 0.4 * torch.rand(K, D, generator=g, dtype=torch.float64)
    return script.Factors(torch.tensor([0.3, 0.7], dtype=torch.float64).log(), means, loadings, diagonal)


@pytest.fixture(scope="module")
def fitted(script, truth):
    x = script.sample(truth, 4000, seed=0)
    return script.fit(x, K, R, iterations=200, tolerance=1e-7, floor=1e-4, seed=0)


def dense_log_density(f, x):
    """Log p(x) with every covariance formed, by torch.distributions: shares no algebra with the script."""
    covariance = f.loadings @ f.loadings.mT + torch.diag_embed(f.diagonal)
    return torch.logsumexp(f.log_weights + MultivariateNormal(f.means, covariance).log_prob(x[:, None]), 1)


def test_log_joint_equals_the_dense_formula(script, truth):
    x = script.sample(truth, 3000, seed=1)  # more than one chunk
    torch.testing.assert_close(torch.logsumexp(script.log_joint(x, truth), 1), dense_log_density(truth, x))


def test_samples_have_the_moments_of_the_mixture(script, truth):
    n = 200_000
    x = script.sample(truth, n, seed=2)
    pi = truth.log_weights.exp()
    mean = pi @ truth.means
    variance = pi @ (truth.loadings.square().sum(2) + truth.diagonal + truth.means**2) - mean**2
    assert ((x.mean(0) - mean).abs() < 4.5 * (variance / n).sqrt()).all()
    torch.testing.assert_close(x.var(0), variance, rtol=0.03, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_em_never_lowers_the_likelihood(script, truth, dtype):
    x = script.sample(truth, 1000, seed=4).to(dtype)
    history = script.fit(x, K, R, iterations=40, tolerance=-1.0, seed=1).history
    assert len(history) == 41
    assert all(b >= a - 1e-6 * abs(a) for a, b in itertools.pairwise(history))
    assert history[-1] > history[0]


def test_the_floor_does_not_break_monotonicity(script, truth):
    x = script.sample(truth, 1000, seed=4)
    result = script.fit(x, K, R, iterations=40, tolerance=-1.0, floor=0.3, seed=1)
    assert (result.factors.diagonal == 0.3).any()
    assert all(b >= a - 1e-6 * abs(a) for a, b in itertools.pairwise(result.history))


def test_em_recovers_the_density(script, truth, fitted):
    """With p = 96 parameters and N = 4000 points theory expects a gap of p / 2N = 0.012 nats; 0.03 is allowed."""
    assert fitted.converged
    x = script.sample(truth, 20_000, seed=5)
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
    x = script.sample(f, 2000, seed=13)
    warm, cold = (script.initialise(x, 2, R, warm=n, seed=0, floor=1e-4) for n in (20, 0))
    assert script.mean_log_likelihood(x, warm) > script.mean_log_likelihood(x, cold) + 1
    best = script.mean_log_likelihood(x, f)
    assert script.mean_log_likelihood(x, warm) > best - 0.3


def test_same_seed_same_fit(script, truth):
    x = script.sample(truth, 500, seed=6).float()
    a, b = (script.fit(x, K, R, iterations=5, seed=7) for _ in range(2))
    assert a.history == b.history
    assert torch.equal(a.factors.loadings, b.factors.loadings)


def test_the_file_gives_the_density_back(script, truth, fitted, tmp_path):
    path = tmp_path / "m.safetensors"
    script.write(path, fitted.factors, {"floor": 1e-4}, (3, 2, 2))
    assert path.stat().st_mode & 0o777 == 0o644
    f, recipe = script.read(path)
    assert recipe == {"floor": 1e-4}
    x = script.sample(truth, 2000, seed=8)
    difference = script.mean_log_likelihood(x, f) - script.mean_log_likelihood(x, fitted.factors)
    assert abs(difference) < 1e-3  # float16 moves each parameter by at most 2⁻¹¹ of itself (log ψ: 2⁻¹¹ absolute here)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["steindiff"])
        shapes = {n: (tuple(file.get_tensor(n).shape), file.get_tensor(n).dtype) for n in file.keys()}  # noqa: SIM118
    assert (header["format"], header["kind"], header["event_shape"]) == (1, "factor_mixture", [3, 2, 2])
    assert shapes == {
        "weights": ((K,), torch.float32),
        "means": ((K, 3, 2, 2), torch.float16),
        "loadings": ((K, D, R), torch.float16),
        "log_diagonal": ((K, D), torch.float16),
    }


def test_writing_is_atomic(script, truth, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disc full")

    monkeypatch.setattr(script.os, "replace", fail)
    with pytest.raises(OSError, match="disc full"):
        script.write(path, truth, {}, (D,))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


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
        ([], "no such file"),
        (["--evaluate"], "no such model file"),
    ],
)
def test_bad_input_is_refused(script, tmp_path, capsys, options, message):
    out = tmp_path / "m.safetensors"
    assert script.main(["--data", str(tmp_path), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_bad_archives_are_refused(script, tmp_path, capsys):
    archive = tmp_path / "train.tar.xz"
    make_archive(archive, size=(16, 16))
    assert script.main(["--data", str(tmp_path), "--dry-run"]) == 2
    assert "32×32" in capsys.readouterr().err
    archive.write_bytes(archive.read_bytes()[:100])
    assert script.main(["--data", str(tmp_path), "--dry-run"]) == 2
    assert "not a readable .tar.xz" in capsys.readouterr().err
    with pytest.raises(ModelFileError, match="no such model file"):
        script.read(tmp_path / "absent.safetensors")


def test_small_run_end_to_end(script, tmp_path, capsys):
    for split in ("train", "test"):
        make_archive(tmp_path / f"{split}.tar.xz")
    out = tmp_path / "new" / "m.safetensors"
    options = ["--components", "1", "--rank", "2", "--iterations", "2", "--holdout", "3", "--out", str(out)]
    assert script.main(["--data", str(tmp_path), *options]) == 0
    assert "held-out log-likelihood" in capsys.readouterr().out
    f, recipe = script.read(out)
    assert f.loadings.shape == (1, 3072, 2)
    assert recipe["images"] == 9
    assert recipe["sha256"]["train.tar.xz"] == script.sha256(tmp_path / "train.tar.xz")
    assert script.main(["--data", str(tmp_path), *options, "--holdout", "12"]) == 2
    assert script.main(["--data", str(tmp_path), *options, "--rank", "50"]) == 2  # fewer images than the rank


def test_clusters_smaller_than_the_rank_are_refused(script):
    with pytest.raises(InputError, match="not more than --rank 2"):
        script.fit(torch.zeros(2, D), 1, R)


def test_images_are_read_in_the_order_of_their_names(script, tmp_path):
    make_archive(tmp_path / "a.tar.xz", n=3)  # written in descending order
    images = script.read_images(tmp_path / "a.tar.xz")
    assert images.shape == (3, 3, 32, 32)
    assert images.dtype == torch.uint8
    x = script.to_points(images)
    assert -1 <= x.min() < x.max() <= 1
    with tarfile.open(tmp_path / "a.tar.xz") as tar:
        assert tar.getnames()[0] > tar.getnames()[-1]
    first = script.decode(tmp_path / "a.tar.xz")["train/noise/0001.jpg"]
    assert torch.equal(images[0], torch.tensor(first).permute(2, 0, 1))


def test_bits_per_dim_of_the_uniform_density_is_log2_of_the_levels(script):
    """A uniform density on [-1, 1]^d has −log₂(2⁻¹ · 1/127.5) = log₂ 255 bits per value."""
    assert script.bits_per_dim(-D * math.log(2), D) == pytest.approx(math.log2(255))


def test_full_gaussian_equals_the_dense_formula(script, truth):
    x, y = script.sample(truth, 3000, seed=9), script.sample(truth, 500, seed=10)
    gaussian = script.full_gaussian(x, floor=1e-6)
    dense = MultivariateNormal(x.mean(0), torch.cov(x.mT, correction=0)).log_prob(y).mean()
    assert gaussian.mean_log_likelihood(y) == pytest.approx(float(dense), rel=1e-9)
    sample = gaussian.sample(50_000, seed=0)
    torch.testing.assert_close(torch.cov(sample.mT), torch.cov(x.mT), atol=0.15, rtol=0)


def test_distances_match_closed_forms(script):
    """Shifted copies of one sample have Fréchet distance |shift|²; equal laws have energy distance 0 in the mean."""
    g = torch.Generator().manual_seed(11)
    x = torch.randn(400, 5, generator=g, dtype=torch.float64)
    shift = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)
    assert script.frechet_distance(x, x + shift)[0] == pytest.approx(1.0, rel=1e-9)
    value, error = script.frechet_distance(x, x)
    assert abs(value) < 1e-9
    assert error < 1e-9
    y = torch.randn(400, 5, generator=g, dtype=torch.float64)
    value, error = script.energy_distance(x, y)
    assert abs(value) < 4 * error
    value, error = script.energy_distance(x, y + 2 * shift)
    assert value > 10 * error


def test_energy_distance_by_hand(script):
    """Half 0, half 1 against half 3, half 5: mean |x−y| = 7/2; over pairs of different index |x−x'| + |y−y'| is 3/2."""
    n = 400
    x, y = (torch.tensor(v).double().repeat(n // 2, 1) for v in ([[0.0], [1.0]], [[3.0], [5.0]]))
    assert script.energy_distance(x, y)[0] == pytest.approx(7 - 1.5 * n / (n - 1), rel=1e-12)
