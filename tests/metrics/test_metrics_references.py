"""Reference statistics: files of EDM's kind, refusals, and Fréchet distances against scipy and the two-sample code."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from steindiff.errors import InputError
from steindiff.metrics import FrechetTarget, SampleMoments, frechet_distance
from steindiff.metrics.fid.references import Reference, grouped_moments, read_reference, write_reference


def _normal(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64)


def _same(a: Reference, b: Reference) -> None:
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.covariance, b.covariance)
    assert (a.n, a.extractor_sha256, a.resize) == (b.n, b.extractor_sha256, b.resize)


def test_files_are_read_back_and_by_numpy_alone(tmp_path):
    path = tmp_path / "new" / "ref.npz"
    ours = Reference.of(SampleMoments.of(_normal(0, 50, 4)), "ab" * 32, "bicubic antialiased 224")
    write_reference(path, ours)
    _same(read_reference(path), ours)
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"mu", "sigma", "n", "extractor_sha256", "resize", "file_sha256"}
        assert file["sigma"].dtype == np.float64
        np.testing.assert_array_equal(file["mu"], ours.mean.numpy())
    assert [p.name for p in path.parent.iterdir()] == ["ref.npz"]


def test_edms_files_have_two_entries(tmp_path):
    x = _normal(0, 50, 4).numpy()
    np.savez(tmp_path / "edm.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False).astype(np.float32))
    got = read_reference(tmp_path / "edm.npz")
    assert (got.n, got.extractor_sha256, got.resize) == (None, None, None)
    assert got.covariance.dtype == torch.float64
    write_reference(tmp_path / "again.npz", got)
    _same(read_reference(tmp_path / "again.npz"), got)
    got.check(4, "ab" * 32, "any")


def test_frechet_against_scipy_and_against_two_samples():
    x, y = _normal(0, 80, 5, shift=0.3, scale=1.3), _normal(1, 300, 5)
    reference = Reference.of(SampleMoments.of(y))
    cx, cy = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    exact = float((x.mean(0) - y.mean(0)).square().sum()) + (cx + cy - 2 * sqrtm(cx @ cy).real).trace()
    single = reference.frechet(SampleMoments.of(x))
    assert single.statistic == pytest.approx(exact, rel=1e-9)
    assert np.isnan(single.value.se)
    got = reference.frechet(grouped_moments(x.split(7), 10))
    assert got.statistic == pytest.approx(frechet_distance(x, y, groups=10).value, rel=1e-9)
    two = FrechetTarget(y, groups=10).replicates(x)
    torch.testing.assert_close(got.without_x, two.without_x, rtol=1e-8, atol=1e-8)
    assert got.value.se < two.value.se  # the reference is fixed
    assert got.sizes == (80, 300)


def test_standard_error_and_paired_difference():
    reference = Reference.of(SampleMoments.of(_normal(999, 2000, 3)))
    alone, paired = [], []
    for i in range(50):
        x = _normal(2 * i, 200, 3, shift=0.5)
        here, there = (reference.frechet(grouped_moments([z], 20)) for z in (x, 1.05 * x + 0.02 * _normal(2 * i + 1, 200, 3)))
        alone.append(here.value)
        paired.append(here.minus(there))
    for values in (alone, paired):
        spread = float(torch.tensor([v.value for v in values]).std())
        assert 0.75 < sum(v.se for v in values) / 50 / spread < 1.3
    assert sum(v.se for v in paired) < 0.5 * sum(v.se for v in alone)


def test_groups_are_dealt_in_turn_whatever_the_chunks():
    x = _normal(0, 37, 3)
    for sizes in ([37], [1] * 37, [10, 2, 25]):
        parts = grouped_moments(x.split(sizes), 4)
        for i, part in enumerate(parts):
            expected = SampleMoments.of(x[i::4])
            assert part.n == expected.n
            torch.testing.assert_close(part.mean, expected.mean)
            torch.testing.assert_close(part.scatter, expected.scatter)
    for chunks, groups, message in (([], 2, "0 samples"), ([x], 1, "at least 2"), ([x[:7]], 4, "of at least 2 samples")):
        with pytest.raises(InputError, match=message):
            grouped_moments(chunks, groups)


def test_too_few_samples_name_the_numbers_and_the_remedy():
    reference = Reference.of(SampleMoments.of(_normal(0, 50, 20)))
    few = SampleMoments.of(_normal(1, 20, 20))
    message = r"n = 20 samples of d = 20 features.*draw at least 21.*few=True"
    with pytest.raises(InputError, match=message):
        reference.frechet(few)
    with pytest.raises(InputError, match=message):
        Reference.of(few)
    assert reference.frechet(few, few=True).statistic > 0
    assert Reference.of(few, few=True).n == 20


def test_other_extractors_and_dimensions_are_refused():
    reference = Reference.of(SampleMoments.of(_normal(0, 50, 4)), "ab" * 32, "bicubic")
    moments = SampleMoments.of(_normal(1, 50, 4))
    assert reference.frechet(moments, "ab" * 32, "bicubic").statistic == reference.frechet(moments).statistic
    for call, message in (
        (lambda: reference.frechet(moments, "cd" * 32), "extractor of the samples cd"),
        (lambda: reference.frechet(moments, "ab" * 32, "bilinear"), "resizing of the samples bilinear"),
        (lambda: reference.frechet(SampleMoments.of(_normal(0, 50, 3))), "samples of 3 features, reference of 4"),
        (lambda: reference.frechet([]), "give at least one part"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def _eye(**changes: object) -> dict[str, object]:
    return {"mu": np.zeros(2), "sigma": np.eye(2), **changes}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"mu": np.zeros(2)}, "no entry 'sigma'"),
        (_eye(mu=np.zeros(3)), r"need \(d,\) and \(d, d\)"),
        (_eye(mu=np.zeros((1, 2))), r"need \(d,\) and \(d, d\)"),
        (_eye(sigma=np.array([[1.0, 0.5], [0.4, 1.0]])), "differs from its transpose by 0.1"),
        (_eye(mu=np.array([0.0, np.nan])), "NaN or infinity"),
        (_eye(mu=np.array(["a", "b"])), "not a readable .npz"),
        (_eye(mu=np.array([None, {}], dtype=object)), "not a readable .npz"),
        (_eye(n=np.asarray("many")), "n is 'many', need int"),
        (_eye(n=np.zeros(2)), "not a readable .npz"),
        (_eye(extractor_sha256=np.asarray(3)), "extractor_sha256 is 3, need str"),
    ],
)
def test_files_that_are_no_statistics_are_refused(tmp_path, entries, message):
    np.savez(tmp_path / "bad.npz", **entries)
    with pytest.raises(InputError, match=message):
        read_reference(tmp_path / "bad.npz")


def test_files_that_are_not_npz_are_refused(tmp_path):
    np.savez(tmp_path / "good.npz", **_eye())
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[:300])
    (tmp_path / "spoilt.npz").write_bytes(whole.replace(b"NUMPY", b"NOTHI"))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name, message in (
        ("half.npz", "not all of one"),
        ("text.npz", "not all of one"),
        ("empty.npz", "not all of one"),
        ("array.npy", "not all of one"),
        ("spoilt.npz", "not a readable"),
        ("none.npz", "no reference statistics at"),
    ):
        with pytest.raises(InputError, match=message):
            read_reference(tmp_path / name)
    with pytest.raises(InputError, match=r"are \.npz files"):
        write_reference(tmp_path / "ref.pkl", read_reference(tmp_path / "good.npz"))


def test_a_matrix_that_is_no_covariance_is_refused_at_use():
    reference = Reference(torch.zeros(2), torch.diag(torch.tensor([1.0, -0.1])))
    with pytest.raises(InputError, match=r"eigenvalue -0\.1"):
        reference.frechet(SampleMoments.of(_normal(0, 10, 2)))
