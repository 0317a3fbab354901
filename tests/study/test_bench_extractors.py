"""FID and inception score in a study, by a tiny network of the published signature, made here."""

import dataclasses
import math

import pytest
import scipy.linalg
import torch

from steindiff.analytic import Gaussian
from steindiff.errors import InputError, SteindiffError
from steindiff.io.files import sha256
from steindiff.metrics import JudgeFiles, Reference, SampleMoments, write_reference
from steindiff.report.study import write_report
from steindiff.study import testbed
from steindiff.study.grid import Config
from steindiff.study.measure import judges_of, references
from steindiff.study.run import run_study
from steindiff.study.testbed import make
from tiny_inception import Tiny, save

SMALL = Config(
    beds=("digits_mixture",),
    solvers=("dpmpp_2m",),
    grids=("karras",),
    nfe=(5,),
    corrections=("none", "clamped"),
    n=48,
    batch=24,
)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("inception") / "tiny.pt", Tiny())


def test_a_study_with_an_extractor_has_fid_and_inception_score(inception_file, tmp_path):
    judges = [JudgeFiles("inception", inception_file)]
    study = run_study(SMALL, tmp_path, judges=judges, progress=False)
    write_report(tmp_path, study, {})
    results = study.results.values()
    for r in results:
        assert {"fid", "inception_score"} <= set(r.values)
        assert all(math.isfinite(x) for x in (*r.values["fid"], *r.values["inception_score"]))
    plain, corrected = (next(r for r in results if r.cell.correction == c) for c in ("none", "clamped"))
    difference = corrected.values["fid"].value - plain.values["fid"].value
    assert corrected.changes["fid"].value == pytest.approx(difference, rel=1e-9)
    assert corrected.changes["fid"].se < math.hypot(plain.values["fid"].se, corrected.values["fid"].se)  # paired
    report = (tmp_path / "report.md").read_text()
    assert "inception score" in report
    assert sha256(inception_file)[:16] in report
    # Another extractor's numbers are other cells.
    assert len(list(tmp_path.glob("cells/*/*"))) == 2
    run_study(SMALL, tmp_path, progress=False)
    assert len(list(tmp_path.glob("cells/*/*"))) == 4


def _wrong(folder, inception_file):
    """What may be named, and what is wrong with it."""
    (folder / "none.pt").write_text("nothing")
    other, small = folder / "other.npz", folder / "small.npz"
    write_reference(other, Reference.of(SampleMoments.of(torch.randn(100, 12, dtype=torch.float64)), extractor_sha256="0" * 64))
    write_reference(small, Reference.of(SampleMoments.of(torch.randn(100, 5, dtype=torch.float64))))
    return (
        (JudgeFiles("inception", folder / "lost.pt"), "no such file"),
        (JudgeFiles("inception", folder / "none.pt"), "none.pt"),
        (JudgeFiles("inception", inception_file, folder / "lost.npz"), "no reference statistics"),
        (JudgeFiles("inception", inception_file, other), "make both with the same"),
        (JudgeFiles("inception", inception_file, small), "samples of 12 features, reference of 5"),
        (JudgeFiles("classifier", "cifar10"), "n = 48 images, d = 128 features"),
    )


def test_what_is_to_measure_is_opened_before_any_run(inception_file, tmp_path):
    """A study of a network whose every evaluation would fail: nothing is evaluated, and nothing kept."""
    bed = testbed.Testbed("mine", lambda x, sigma: 1 / 0, (1, 8, 8), "v1")
    config = dataclasses.replace(SMALL, beds=("mine",))
    for i, (files, message) in enumerate(_wrong(tmp_path, inception_file)):
        with pytest.raises(SteindiffError, match=message):
            run_study(config, tmp_path / str(i), beds=[bed], judges=[files], progress=False)
        assert not (tmp_path / str(i)).exists()


def test_the_fid_is_that_of_the_images(inception_file, tmp_path):
    """Against own reference statistics: scipy's root, and the distance of the target to itself."""
    bed = make("digits_mixture")
    refs = references(bed, range(48), tmp_path)
    (one,) = judges_of(bed, [JudgeFiles("inception", inception_file)], refs.target, 48)
    assert one.measure(refs.target)["fid"].value.value == pytest.approx(0, abs=1e-8)
    a, b = (SampleMoments.of(one.extractor(x)) for x in (refs.floor, refs.target))
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    expected = float((a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace()) - 2 * root.trace()
    assert one.measure(refs.floor)["fid"].value.value == pytest.approx(expected, rel=1e-6)


def test_extractors_and_references_that_do_not_fit_are_refused(inception_file, tmp_path):
    bed = make("digits_mixture")
    refs = references(bed, range(48), tmp_path)
    target = tmp_path / "other.npz"
    moments = SampleMoments.of(torch.randn(100, 12, dtype=torch.float64))
    write_reference(target, Reference.of(moments, extractor_sha256="0" * 64))
    with pytest.raises(InputError, match="make both with the same"):
        judges_of(bed, [JudgeFiles("inception", inception_file, target)], refs.target, 48)
    with pytest.raises(InputError, match="11 images in 20 groups"):
        judges_of(bed, [JudgeFiles("inception", inception_file)], refs.target, 11)
    with pytest.raises(InputError, match="without its extractor"):
        JudgeFiles("inception", "", target)
    two = dataclasses.replace(SMALL, beds=("digits", "digits_mixture"))
    with pytest.raises(InputError, match="2 testbeds"):
        run_study(two, tmp_path, judges=[JudgeFiles("inception", inception_file, target)], progress=False)
    law = Gaussian(torch.zeros(4), torch.eye(4))
    mine = testbed.Testbed("mine", law, (4,), "v1")
    assert judges_of(mine, [JudgeFiles("inception", inception_file)], refs.target, 48) == []
