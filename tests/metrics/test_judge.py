"""Judges of sets of images: against scipy and the definitions, whole and in chunks, paired, and what they refuse."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import Tensor

from steindiff.errors import InputError
from steindiff.io.images import to_uint8
from steindiff.metrics import Judge, Reference, SampleMoments, judge, load_features, write_reference
from steindiff.metrics.fid.extractors import Dinov2, Inception, inception, load_extractor
from tiny_inception import Tiny, save

CPU = torch.device("cpu")


def images(seed: int, n: int, channels: int = 3, side: int = 8, power: float = 1.0) -> Tensor:
    """In [−1, 1]."""
    u = torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))
    return u.pow(power) * 2 - 1


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("inception") / "tiny.pt", Tiny())


@pytest.fixture(scope="module")
def one(file):
    return judge("inception", file, None, groups=5, real=[images(0, 300)])


def test_fid_and_inception_score_against_their_definitions(one):
    x = images(1, 120, power=1.1)
    got = one.measure(x)
    assert tuple(got) == one.names == ("fid", "inception_score")
    f, r = one.extractor(x), one.extractor(images(0, 300))
    c, cr = torch.cov(f.T).numpy(), torch.cov(r.T).numpy()
    exact = float((f.mean(0) - r.mean(0)).square().sum()) + (c + cr - 2 * sqrtm(c @ cr).real).trace()
    assert got["fid"].statistic == pytest.approx(exact, rel=1e-6)
    without = torch.arange(120) % 5 != 0
    again = one.reference.frechet(SampleMoments.of(f[without])).statistic
    assert float(got["fid"].without_x[0]) == pytest.approx(again, rel=0.1)  # to first order
    p = one.extractor.probabilities(x).numpy()
    scores = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in np.split(p, 10)]
    # To rounding in single precision: the judge applies the last layer in double, the network does not.
    assert got["inception_score"].value.value == pytest.approx(np.mean(scores), rel=1e-6)
    assert got["inception_score"].value.se == pytest.approx(np.std(scores, ddof=1) / np.sqrt(10), rel=1e-3)


@pytest.mark.parametrize("n", [97, 5000])
def test_chunks_of_any_size_give_what_the_whole_gives(one, n):
    x = images(2, n, side=4)
    whole = one.measure(x)
    for sizes in ([n], [1, 30, n - 31], [7] * (n // 7) + [n % 7]):
        parts = one.stream(iter(x.split(sizes)))
        assert parts["fid"].statistic == pytest.approx(whole["fid"].statistic, rel=1e-9)
        torch.testing.assert_close(parts["fid"].without_x, whole["fid"].without_x, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(parts["inception_score"].scores, whole["inception_score"].scores, rtol=1e-9, atol=0)
        assert parts["fid"].sizes == (n, 300)


def test_bytes_floats_and_grey_images_are_judged_alike(one):
    x = images(3, 40, channels=1)
    expected = one.measure(x)["fid"].statistic
    pixels = torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2)
    for same in (pixels, x.expand(-1, 3, -1, -1), x.double()):
        assert one.measure(same)["fid"].statistic == expected


def test_paired_differences(one):
    x, y, independent = images(4, 400, power=1.3), images(4, 400, power=1.4), images(5, 400, power=1.3)
    twenty = dataclasses.replace(one, groups=20)
    here, there, other = (twenty.measure(z) for z in (x, y, independent))
    for name in one.names:
        difference = here[name].minus(there[name])
        assert difference.value == pytest.approx(here[name].value.value - there[name].value.value, rel=1e-9)
    paired = here["fid"].minus(there["fid"])
    assert paired.value < -4 * paired.se
    assert paired.se < 0.5 * other["fid"].minus(there["fid"]).se


class Counted(Tiny):
    """Says how many images it saw, and may divide its logits."""

    def __init__(self, temperature: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.seen, self.temperature = 0, temperature
        self.output.bias.data.add_(bias)

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        self.seen += len(img)
        if return_features:
            return super().forward(img, return_features=True)
        assert no_output_bias
        return F.linear(super().forward(img, return_features=True), self.output.weight / self.temperature).softmax(1)


@pytest.mark.parametrize(("temperature", "passes"), [(1.0, 1), (0.5, 2)])
def test_the_network_sees_an_image_once_unless_its_last_layer_says_otherwise(one, temperature, passes):
    torch.manual_seed(0)
    network = Counted(temperature, bias=3.0)
    extractor = Inception(network, "0" * 64, CPU, 16)
    counted = Judge(extractor, Reference.of(extractor.moments([images(0, 300)])), groups=5)
    x = images(1, 60)
    before = network.seen
    got = counted.stream([x])
    assert network.seen - before == passes * 60 + 4  # two images of noise, twice
    p = extractor.probabilities(x)
    q = p.view(10, 6, 5)
    expected = (q * (q / q.mean(1, keepdim=True)).log()).sum(2).mean(1).exp()
    torch.testing.assert_close(got["inception_score"].scores, expected, rtol=1e-6, atol=0)


def test_what_cannot_be_judged_is_refused_before_any_work(file, one):
    reference = one.reference
    cases = [
        (one, 9, "9 images in 5 groups: need at least 20"),
        (dataclasses.replace(one, groups=20), 39, "39 images in 20 groups: need at least 40"),
        (
            dataclasses.replace(one, reference=dataclasses.replace(reference, extractor_sha256="ab")),
            99,
            "extractor of the samples",
        ),
        (dataclasses.replace(one, reference=dataclasses.replace(reference, resize="bilinear")), 99, "resizing of the samples"),
        (dataclasses.replace(one, reference=Reference(torch.zeros(3), torch.eye(3))), 99, "samples of 12 features"),
    ]
    for judged, n, message in cases:
        with pytest.raises(InputError, match=message):
            judged.check(n)
        with pytest.raises(InputError, match=message):
            judged.measure(images(0, n))
    with pytest.raises(InputError, match="from 2"):
        dataclasses.replace(one, groups=1)
    for x, message in ((torch.zeros(40, 2, 8, 8), "1 or 3"), (torch.full((40, 3, 8, 8), float("nan")), "diverged")):
        with pytest.raises(InputError, match=message):
            one.measure(x)
    with pytest.raises(InputError, match="0 samples"):
        one.stream([])


def test_few_images_are_judged_only_when_asked_for():
    class Wide(torch.nn.Module):
        """192 features: the pixels."""

        def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
            x = img.flatten(1)[:, :192].float() / 255
            return x if return_features else x.softmax(1)

    extractor = Inception(Wide(), "0" * 64, CPU, 64)
    reference = Reference.of(extractor.moments([images(0, 400)]), extractor.sha256, extractor.resize)
    with pytest.raises(InputError, match=r"n = 60 images, d = 192 features of inception.*at least 193.*--few"):
        Judge(extractor, reference).check(60)
    with pytest.raises(InputError, match="covariance is singular"):
        Judge(extractor, reference).stream([images(1, 60)])
    assert Judge(extractor, reference, few=True).measure(images(1, 60))["fid"].statistic > 0


def test_the_digest_is_of_all_that_determines_a_number(one):
    r, e = one.reference, one.extractor
    read = dataclasses.replace(one, made_of=None)
    assert read.digest == dataclasses.replace(one, made_of=None).digest
    assert len(one.digest) == 16
    assert int(one.digest, 16) >= 0
    for made in (one, read):
        others = [
            dataclasses.replace(made, groups=6),
            dataclasses.replace(made, few=True),
            dataclasses.replace(made, extractor=dataclasses.replace(e, sha256="0" * 64)),
            dataclasses.replace(made, extractor=Dinov2(e.network, e.sha256, CPU, 64)),
        ]
        assert len({made.digest, *(other.digest for other in others)}) == 5
        assert dataclasses.replace(made, extractor=dataclasses.replace(e, batch=3)).digest == made.digest
    moved = [dataclasses.replace(r, mean=r.mean + 1e-9), dataclasses.replace(r, covariance=r.covariance * (1 + 1e-9))]
    assert len({read.digest, *(dataclasses.replace(read, reference=other).digest for other in moved)}) == 3
    assert {dataclasses.replace(one, reference=other).digest for other in moved} == {one.digest}
    assert dataclasses.replace(one, made_of="other images").digest != one.digest


def test_references_of_files_and_of_real_images(file, one, tmp_path):
    write_reference(tmp_path / "ref.npz", one.reference)
    read = judge("inception", file, tmp_path / "ref.npz", groups=5)
    assert read.digest != one.digest  # of statistics, not of images
    assert read.digest == judge("inception", file, tmp_path / "ref.npz", groups=5).digest
    assert read.reference.extractor_sha256 == inception(file).sha256
    streamed = judge("inception", file, None, groups=5, real=images(0, 300).split(70))
    assert streamed.digest == one.digest
    pixels = torch.from_numpy(to_uint8(images(0, 300))).permute(0, 3, 1, 2)
    assert judge("inception", file, None, groups=5, real=[pixels]).digest == one.digest
    assert judge("inception", file, None, groups=5, real=[pixels[:299]]).digest != one.digest
    torch.testing.assert_close(streamed.reference.covariance, one.reference.covariance, rtol=1e-9, atol=1e-12)
    x = images(1, 50)
    assert read.measure(x)["fid"].statistic == one.measure(x)["fid"].statistic
    np.savez(tmp_path / "edm.npz", mu=np.zeros(3), sigma=np.eye(3))
    both = {"reference": tmp_path / "ref.npz", "real": [x]}
    for call, message in (
        (lambda: judge("inception", file, **both), "exactly one"),
        (lambda: judge("inception", file, None), "exactly one"),
        (lambda: judge("inceptoin", file, None, real=[x]), "did you mean 'inception'"),
        (lambda: judge("inception", file, None, real=[]), "no images came"),
        (lambda: judge("inception", file, None, real=[x[:12]]), "covariance is singular"),
        (lambda: judge("inception", file, None, real=[x], device="warp"), "cannot be used"),
        (lambda: judge("inception", file, tmp_path / "none.npz"), "no reference statistics"),
        (lambda: judge("inception", file, tmp_path / "edm.npz"), "samples of 12 features, reference of 3"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_dinov2_has_one_number():
    def network(pixel_values: Tensor) -> SimpleNamespace:
        """Four means of the image in place of a token."""
        return SimpleNamespace(last_hidden_state=F.adaptive_avg_pool2d(pixel_values.mean(1), 2).flatten(1)[:, None])

    extractor = Dinov2(network, "0" * 64, CPU, 16)
    one = Judge(extractor, Reference.of(extractor.moments([images(0, 60)])), groups=4)
    got = one.measure(images(1, 30, power=1.5))
    assert tuple(got) == one.names == ("fd_dinov2",)
    assert got["fd_dinov2"].value.value > 4 * got["fd_dinov2"].value.se


def test_the_small_classifier_is_an_extractor_too():
    one = judge("classifier", "cifar10", None, groups=4, few=True, real=[images(0, 24, side=16)])
    assert one.names == ("fd_classifier",)
    x = images(1, 5, side=16)
    pixels = torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2)
    torch.testing.assert_close(one.extractor(x), load_features()(pixels / 127.5 - 1), rtol=1e-5, atol=1e-6)
    assert tuple(one.measure(images(2, 24, side=16))) == ("fd_classifier",)
    with pytest.raises(InputError, match=r"\(3, 20, 20\)"):
        one.measure(images(2, 24, side=20))
    with pytest.raises(InputError, match="unknown features"):
        load_extractor("classifier", "imagenet")


def test_a_floor_of_split_real_images_is_too_high_by_the_documented_factor():
    """E FD(n, m) is in proportion to 1/n + 1/m: n of N against the others give 1/(1 − (n/N)²) times n others against all N."""
    g = torch.Generator().manual_seed(0)
    n, whole = 40, 80
    floors, perfect = [], []
    for _ in range(1500):
        real, other = torch.randn(2, whole, 2, generator=g, dtype=torch.float64)
        floors.append(Reference.of(SampleMoments.of(real[n:])).frechet(SampleMoments.of(real[:n])).statistic)
        perfect.append(Reference.of(SampleMoments.of(real)).frechet(SampleMoments.of(other[:n])).statistic)
    assert sum(floors) / sum(perfect) == pytest.approx(1 / (1 - (n / whole) ** 2), rel=0.1)
