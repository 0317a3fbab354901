"""`steindiff score` from files to numbers: against the metrics called directly, and every kind of bad input."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn

from commandline import run_command
from steindiff.cli import score
from steindiff.cli.app import app
from steindiff.errors import InputError
from steindiff.io.files import sha256
from steindiff.metrics import JudgeFiles, Reference, SampleMoments, Value, inception, read_reference
from steindiff.metrics.fid.extractors import load_extractor
from steindiff.metrics.fid.inception_score import inception_score
from steindiff.metrics.fid.references import grouped_moments
from steindiff.models.datasets import load_images
from steindiff.report.judge import notes
from steindiff.report.numbers import show
from steindiff.study.judge import judge_images
from steindiff.study.judging import Job, Line
from tiny_inception import Tiny, save

N = 60
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def pictures(seed, n, side=8, channels=3, dark=1.0):
    """(n, side, side, channels) uint8."""
    return (np.random.default_rng(seed).random((n, side, side, channels)) ** dark * 255).astype(np.uint8)


def run(monkeypatch, capsys, *args) -> tuple[int, str, str]:
    return run_command(monkeypatch, capsys, "score", *args)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An extractor, two runs of `steindiff sample` from the same seeds and one from others, and real images."""
    folder = tmp_path_factory.mktemp("score")
    torch.manual_seed(0)
    save(folder / "tiny.pt", Tiny())
    sample = typer.main.get_command(app)
    for name, nfe, seeds in (("a", 2, f"0-{N - 1}"), ("b", 3, f"0-{N - 1}"), ("others", 2, f"1-{N}")):
        args = ["sample", "--model", "digits", "--nfe", nfe, "--seeds", seeds, "--outdir", folder / name]
        sample(list(map(str, args)), standalone_mode=False)
    np.savez(folder / "real.npz", arr_0=pictures(0, 200))
    np.savez(folder / "held.npz", arr_0=pictures(1, N + 5))
    np.savez(folder / "large.npz", arr_0=pictures(0, 200, side=16))
    return folder


def features(folder, name):
    return inception(folder / "tiny.pt")(load_images(folder / name).pixels)


def test_numbers_are_those_of_the_metrics(place, tmp_path, monkeypatch, capsys):
    args = ["--images", place / "a", "--against", place / "b", "--real", place / "real.npz", "--inception", place / "tiny.pt"]
    code, out, err = run(monkeypatch, capsys, *args, "--outdir", tmp_path)
    assert code == 0, err
    found = json.loads((tmp_path / "score.json").read_text())
    (judged,) = found["judgements"]
    fid, score_ = judged["lines"]
    a, b, r = features(place, "a/samples.npz"), features(place, "b/samples.npz"), features(place, "real.npz")
    reference = Reference.of(SampleMoments.of(r))
    here, there = (reference.frechet(grouped_moments([x], 20)) for x in (a, b))
    for entry, value in (("value", here.value), ("against", there.value), ("difference", here.minus(there))):
        assert fid[entry] == pytest.approx(value._asdict(), rel=1e-6)
    p = inception(place / "tiny.pt").probabilities(load_images(place / "a" / "samples.npz").pixels)
    assert score_["value"]["value"] == pytest.approx(inception_score(p).value.value, rel=1e-6)
    real = r[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    floor = Reference.of(SampleMoments.of(real[N:])).frechet(grouped_moments([real[:N]], 20))
    assert fid["real"] == pytest.approx(floor.value._asdict(), rel=1e-6)
    assert "60 of " in judged["floor"]
    assert "1.1 times too high" in judged["floor"]
    assert found["paired"] is True
    assert judged["extractor"]["sha256"] == sha256(place / "tiny.pt")
    assert found["sets"]["images"]["n"] == N
    assert found["command"][:2] == ["steindiff", "score"]
    assert show(Value(**fid["value"])) in out
    assert f"{fid['verdict']}" in out
    assert "image/s" in err
    assert "The same seeds, as both run.json say" in out


def test_a_run_is_the_same_as_folder_and_as_npz(place, tmp_path):
    (tmp_path / "pngs").mkdir()
    for file in (place / "a").glob("0*.png"):
        (tmp_path / "pngs" / file.name).write_bytes(file.read_bytes())
    files = JudgeFiles("inception", str(place / "tiny.pt"))
    reports = [
        judge_images(Job((files,), images=str(images), real=str(place / "real.npz")))
        for images in (place / "a", place / "a" / "samples.npz", tmp_path / "pngs")
    ]
    assert len({report.judgements[0].lines for report in reports}) == 1
    assert len({report.sets["images"]["sha256"] for report in reports}) == 1


def test_a_reference_is_made_once_and_used_again(place, tmp_path, monkeypatch, capsys):
    ref = tmp_path / "ref.npz"
    making = ["--real", place / "real.npz", "--inception", place / "tiny.pt", "--write-reference", ref]
    code, out, err = run(monkeypatch, capsys, *making)
    assert (code, out) == (0, f"written: {ref}\n"), err
    assert read_reference(ref).n == 200
    note = json.loads((tmp_path / "ref.npz.json").read_text())
    assert note["real"]["shape"] == [3, 8, 8]
    assert note["reference_sha256"] == sha256(ref)
    files = JudgeFiles("inception", str(place / "tiny.pt"), ref)
    (used,) = judge_images(Job((files,), images=str(place / "a"))).judgements
    (made,) = judge_images(
        Job((JudgeFiles("inception", str(place / "tiny.pt")),), str(place / "a"), real=str(place / "real.npz"))
    ).judgements
    assert tuple(used.lines[0].value) == pytest.approx(tuple(made.lines[0].value), rel=1e-6)
    assert "give --held-out" in used.floor
    code, out, err = run(monkeypatch, capsys, *making)
    assert (code, "is there already" in err) == (2, True)
    with pytest.raises(InputError, match=r"16×16 pixels, reference .* of 8×8"):
        judge_images(Job((files,), images=str(place / "large.npz")))
    np.savez(ref, mu=np.zeros(12), sigma=np.eye(12))  # another file under the name: the note is not of it
    assert judge_images(Job((files,), images=str(place / "large.npz"))).judgements[0].lines[0].value.value > 0


def test_real_images_are_resized_on_request(place):
    files = JudgeFiles("inception", str(place / "tiny.pt"))
    report = judge_images(Job((files,), str(place / "a"), real=str(place / "large.npz"), resolution=8))
    expected = load_images(place / "large.npz", resolution=8)
    assert report.sets["real"]["sha256"] == expected.sha256
    assert report.sets["real"]["shape"] == [3, 8, 8]


def test_held_out_images_are_the_floor(place):
    job = Job(
        (JudgeFiles("inception", str(place / "tiny.pt")),),
        str(place / "a"),
        real=str(place / "real.npz"),
        held_out=str(place / "held.npz"),
    )
    (judged,) = judge_images(job).judgements
    reference = Reference.of(SampleMoments.of(features(place, "real.npz")))
    held = features(place, "held.npz")[torch.randperm(N + 5, generator=torch.Generator().manual_seed(0))[:N]]
    expected = reference.frechet(grouped_moments([held], 20)).value
    assert tuple(judged.lines[0].real) == pytest.approx(tuple(expected), rel=1e-6)
    assert judged.lines[0].value.value > judged.lines[0].real.value + 10 * judged.lines[0].real.se
    assert "a noise floor, if they are not in it" in judged.floor


def test_without_enough_real_images_there_is_no_floor(place):
    files = JudgeFiles("inception", str(place / "tiny.pt"))
    (judged,) = judge_images(Job((files,), str(place / "real.npz"), real=str(place / "real.npz"))).judgements
    assert judged.lines[0].real is None
    assert "200 real images are fewer than 2n" in judged.floor
    assert "score --n 100 of them" in judged.floor
    job = Job((files,), str(place / "real.npz"), real=str(place / "real.npz"), held_out=str(place / "held.npz"))
    assert "has 65 images, fewer than 200; --n 65 would give one" in judge_images(job).judgements[0].floor
    (judged,) = judge_images(Job((files,), str(place / "real.npz"), real=str(place / "real.npz"), n=100)).judgements
    assert judged.lines[0].real is not None


def test_the_small_classifier_needs_no_file(tmp_path, monkeypatch, capsys):
    for name, seed, dark in (("x", 0, 2.0), ("real", 1, 1.0)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(pictures(seed, 40, side=16, dark=dark)):
            Image.fromarray(image).save(tmp_path / name / f"{i:03d}.png")
    args = ["--images", tmp_path / "x", "--real", tmp_path / "real", "--features", "cifar10"]
    code, out, err = run(monkeypatch, capsys, *args)
    assert code == 2
    assert "n = 40 images, d = 128 features of classifier" in " ".join(err.split())
    code, out, err = run(monkeypatch, capsys, *args, "--few", "--groups", "4")
    assert code == 0, err
    assert "no FID" in out
    assert "biased upwards very much" in " ".join(out.split())


def test_dinov2_folders_of_transformers(place, tmp_path, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=56
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    args = ["--images", place / "a", "--dinov2", tmp_path / "dinov2", "--inception", place / "tiny.pt"]
    code, out, err = run(monkeypatch, capsys, *args, "--real", place / "real.npz", "--outdir", tmp_path / "out")
    assert code == 0, err
    assert "FD-DINOv2" in out
    judged = json.loads((tmp_path / "out" / "score.json").read_text())["judgements"]
    assert [j["extractor"]["name"] for j in judged] == ["inception", "dinov2"]
    assert [len(j["lines"]) for j in judged] == [2, 1]
    code, out, err = run(
        monkeypatch,
        capsys,
        "--real",
        place / "real.npz",
        "--dinov2",
        tmp_path / "dinov2",
        "--write-reference",
        tmp_path / "d.npz",
    )
    assert code == 0, err
    code, out, err = run(
        monkeypatch,
        capsys,
        "--images",
        place / "a",
        "--inception",
        place / "tiny.pt",
        "--inception-reference",
        tmp_path / "d.npz",
    )
    assert (code, "samples of 12 features, reference of 8" in " ".join(err.split())) == (2, True)


@pytest.mark.parametrize(
    ("change", "error", "verdict"),
    [(-1.0, 0.4, "better"), (1.0, 0.4, "worse"), (1.0, 0.6, "within noise"), (float("nan"), 0.1, "within noise")],
)
def test_verdicts(change, error, verdict):
    assert Line("fid", Value(1.0, 0.1), difference=Value(change, error)).verdict == verdict
    assert Line("inception_score", Value(1.0, 0.1), difference=Value(-change, error)).verdict == verdict
    assert Line("fid", Value(1.0, 0.1)).verdict == ""


def bad(text, message):
    return pytest.param(text, message, id=message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        bad("--images a --real real.npz", "no extractor: give --inception FILE"),
        bad("--real real.npz --inception tiny.pt", "nothing to score: give --images"),
        bad("--images a --inception tiny.pt", "no reference for inception"),
        bad("--images a --inception tiny.pt --inception-reference r.npz --real real.npz", "are not needed"),
        bad("--images a --real real.npz --inception tiny.pt --dinov2-reference r.npz", "give --dinov2 too"),
        bad("--real real.npz --inception tiny.pt --write-reference r.npz --held-out held.npz", "without --images"),
        bad("--real real.npz --inception tiny.pt --features cifar10 --write-reference r.npz", "give one extractor"),
        bad("--real real.npz --inception tiny.pt --write-reference r.pkl", "are .npz files"),
        bad("--images a --inception tiny.pt --inception-reference r.npz --resolution 8", "is that of real images"),
        bad("--images a --inception tiny.pt --inception-reference foreign.npz", "no entry 'mu'"),
        bad("--images a --inception tiny.pt --inception-reference other.npz", "extractor of the samples"),
        bad("--images a --inception tiny.pt --inception-reference resized.npz", "resizing of the samples"),
        bad("--images a --inception tiny.pt --inception-reference wide.npz", "samples of 12 features, reference of 13"),
        bad("--images other.npz --inception tiny.pt --real real.npz", "no entry arr_0"),
        bad("--images half.npz --inception tiny.pt --real real.npz", "it may be truncated"),
        bad("--images none.npz --inception tiny.pt --real real.npz", "no such folder or archive"),
        bad("--images a --inception none.pt --real real.npz", "nothing is downloaded here"),
        bad("--images a --inception real.npz --real real.npz", "is not TorchScript"),
        bad("--images a --inception tiny.pt --real large.npz", "compare equal sizes"),
        bad("--images a --inception tiny.pt --real real.npz --n 61", "a has 60 images, --n 61"),
        bad("--images a --inception tiny.pt --real real.npz --n 30", "30 images in 20 groups: need at least 40"),
        bad("--images a --inception tiny.pt --real few.npz", "12 real images in few.npz, 12 features"),
        bad("--images a --inception tiny.pt --real real.npz --against others", "are of different seeds"),
        bad("--images a --inception tiny.pt --real real.npz --against held.npz", "60 images against 65"),
        bad("--images a --inception tiny.pt --real real.npz --device warp", "cannot be used"),
        bad("--images a --inception tiny.pt --real real.npz --outdir file", "cannot make the folder"),
    ],
)
def test_bad_input_is_one_line_before_any_work(place, tmp_path, monkeypatch, capsys, args, message):
    for file in place.iterdir():
        (tmp_path / file.name).symlink_to(file)
    moments = {"mu": np.zeros(12), "sigma": np.eye(12)}
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3))
    np.savez(tmp_path / "other.npz", **moments, extractor_sha256=np.asarray("ab" * 32))
    np.savez(tmp_path / "resized.npz", **moments, resize=np.asarray("bilinear"))
    np.savez(tmp_path / "wide.npz", mu=np.zeros(13), sigma=np.eye(13))
    np.savez(tmp_path / "few.npz", arr_0=pictures(0, 12))
    (tmp_path / "half.npz").write_bytes((place / "real.npz").read_bytes()[:3000])
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *args.split())
    assert code == 2
    *bars, line = err.replace("\r", "\n").split("\n")[:-1]
    assert line.startswith("error: ")
    assert message in line
    assert all(bar.startswith("reading: ") or not bar.strip() for bar in bars)
    assert out == ""


def test_a_score_is_not_replaced_unasked(place, tmp_path, monkeypatch, capsys):
    args = ["--images", place / "a", "--real", place / "real.npz", "--inception", place / "tiny.pt", "--outdir", tmp_path]
    (tmp_path / "score.json").write_text("mine")
    for more in ((), ("--overwrite",)):
        code, _, err = run(monkeypatch, capsys, *args, *more)
        assert (code, (tmp_path / "score.json").read_text()) == (2, "mine")
        assert "1 file in the way that this run has not written, or not so: score.json" in " ".join(err.split())
    (tmp_path / "score.json").write_text('{"steindiff": "0.1"}')  # of an earlier run
    code, _, err = run(monkeypatch, capsys, *args)
    assert (code, "pass --overwrite" in " ".join(err.split())) == (2, True)
    assert run(monkeypatch, capsys, *args, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "score.json").read_text())["judgements"]


def test_sets_that_do_not_say_their_seeds_are_taken_at_their_word(place, tmp_path):
    np.savez(tmp_path / "b.npz", arr_0=pictures(5, N))
    job = Job(
        (JudgeFiles("inception", str(place / "tiny.pt")),), str(place / "a"), str(tmp_path / "b.npz"), str(place / "real.npz")
    )
    report = judge_images(job)
    assert report.paired is None
    assert any("Nothing says that the seeds are the same" in note for note in notes(report))
    fid = report.judgements[0].lines[0]
    assert fid.verdict == "worse"
    assert fid.difference.value == pytest.approx(fid.value.value - fid.against.value)


@pytest.mark.parametrize(("text", "count"), [(score.__doc__, 4), (DOCS.read_text(encoding="utf-8"), 6)], ids=["help", "docs"])
def test_the_examples_are_commands(text, count):
    commands = typer.main.get_command(app).commands
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    examples = [shlex.split(line)[1:] for line in lines if line.startswith("steindiff ")]
    assert sum(name == "score" for name, *_ in examples) == count
    for name, *args in examples:
        found = commands[name].make_context(name, args).params
        if name == "score":
            kinds = [kind for kind in ("inception", "dinov2", "features") if found[kind]]
            judges = tuple(JudgeFiles(kind, found[kind], found[f"{kind}_reference"]) for kind in kinds)
            named = ("images", "against", "real", "held_out", "write_reference", "n", "resolution")
            Job(judges, **{key: found[key] for key in named})


def test_every_image_is_seen_once(place, monkeypatch):
    """Also the real ones, which are floor and reference at once."""
    seen = []

    class Seeing(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.output = network, network.output

        def forward(self, img, **flags):
            seen.append(len(img))
            return self.network(img, **flags)

    def load(kind, path, device, batch):
        extractor = load_extractor(kind, path, device, batch)
        return dataclasses.replace(extractor, network=Seeing(extractor.network))

    monkeypatch.setattr("steindiff.metrics.fid.judge.load_extractor", load)
    judge_images(
        Job((JudgeFiles("inception", str(place / "tiny.pt")),), str(place / "a"), real=str(place / "real.npz"), batch=20)
    )
    assert seen.count(20) == (N + 200) // 20
    assert set(seen) == {2, 20}  # two images of noise, to see what the network gives
