"""Converted checkpoints as models: loading, labels and guidance, noise ranges, and every command from end to end."""

import json

import pytest
import torch
from safetensors.torch import save_file

from commandline import run_command
from edm_files import SMALL, description, tensors, write
from edm_rule import points
from steindiff import models
from steindiff.denoisers import Guided, is_conditioned, noise_range_of
from steindiff.errors import InputError, ModelFileError
from steindiff.models.model import label_of
from steindiff.models.networks import EDMPrecond
from steindiff.run import Job, generate
from steindiff.schedules import VE, VPCosine, VPLinear
from steindiff.solvers import Setting
from steindiff.study import testbed
from steindiff.study.grid import Config
from steindiff.study.run import build, run_study

TINY = SMALL | {"channel_mult": [1], "attn_resolutions": []}
DROPPED = {"kwargs": TINY | {"label_dropout": 0.1}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of every kind, and one that knows a null class."""
    folder = tmp_path_factory.mktemp("converted")
    for kind in ("ddpmpp", "ncsnpp", "skip", "adm", "edm2"):
        write(folder / f"{kind}.safetensors", kind)
    write(folder / "null.safetensors", **DROPPED)
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *args: run_command(monkeypatch, capsys, *args)


@pytest.mark.parametrize(
    ("kind", "classes", "ends", "schedule"),
    [
        ("ddpmpp", 10, (0.0, float("inf")), VE()),
        ("ncsnpp", 0, (0.02, 100.0), VE()),
        ("skip", 0, (0.0009765625, 152.16697692871094), VPLinear()),
        ("adm", 10, (pytest.approx(0.00642, rel=1e-2), pytest.approx(20291, rel=1e-2)), VPCosine()),
        ("edm2", 10, (0.0, float("inf")), VE()),
    ],
)
def test_a_model_says_what_it_is(files, kind, classes, ends, schedule):
    model = models.load(files / f"{kind}.safetensors")
    assert (model.name, model.event_shape, model.classes, model.null_class) == (f"tiny-{kind}", (3, 8, 8), classes, False)
    assert (model.noise_range, model.sigma_data, model.denoiser.schedule) == (ends, 0.5, schedule)
    assert model.needs_class == (classes > 0)
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in model.denoiser.parameters())


@pytest.mark.parametrize("kind", ["adm", "edm2"])
def test_weights_stored_in_half_precision_run_in_float32_or_better(tmp_path, kind):
    write(tmp_path / "half.safetensors", kind, dtype=torch.float16)
    x, sigma, labels = points((3, 8, 8))
    single, double = (models.load(tmp_path / "half.safetensors", dtype).denoiser for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single(x.float(), sigma, labels).double(), double(x, sigma, labels), rtol=1e-4, atol=2e-4)


def test_the_number_format_of_the_source_decides_about_gains(tmp_path):
    """A file may be stored in another format than its pickle was."""
    x, sigma, labels = points((3, 8, 8))
    found = {}
    for source in ("float16", "float32"):
        write(tmp_path / f"{source}.safetensors", "edm2", source={"dtype": source})
        found[source] = models.load(tmp_path / f"{source}.safetensors", torch.float64).denoiser(x, sigma, labels)
    assert 1e-6 < float((found["float16"] - found["float32"]).abs().max()) < 2e-3


# --- labels and guidance ---------------------------------------------------------------------------------------------


def test_guidance_goes_from_the_row_of_zeros_to_the_class(files):
    model = models.load(files / "null.safetensors", torch.float64)
    x, sigma, labels = points((3, 8, 8))
    guided = model.guided(labels, 3.0)
    none = model.denoiser(x, sigma)
    torch.testing.assert_close(guided(x, sigma), none + 3 * (model.denoiser(x, sigma, labels) - none))
    assert is_conditioned(guided)
    assert torch.equal(guided(x, sigma)[3], none[3])  # the last label is the null class
    assert noise_range_of(guided) == (0.0, float("inf"))


def test_a_network_that_never_saw_the_row_of_zeros_is_not_guided_by_it(files):
    model = models.load(files / "ddpmpp.safetensors")
    with pytest.raises(InputError, match=r"tiny-ddpmpp has no null class.*guide by another network"):
        model.guided(torch.tensor(1), 2.0)
    x, sigma, labels = points((3, 8, 8))
    other = models.load(files / "null.safetensors")
    both = Guided(model.labelled(labels.clamp(max=9)), other.denoiser, 2.0)
    assert both(x.float(), sigma.float()).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("ddpmpp", torch.tensor([0, 10]), "least=0, most=10: tiny-ddpmpp has labels from 0 to 9"),
        ("null", torch.tensor(11), "labels from 0 to 10, of which 10 is no class"),
        ("ddpmpp", torch.tensor(-1), "least=-1"),
        ("ddpmpp", torch.tensor([0.0]), "labels are whole numbers"),
        ("ddpmpp", torch.zeros(2, 2, dtype=torch.long), "labels are whole numbers"),
        ("ncsnpp", torch.tensor(0), "it has no classes: leave labels out"),
    ],
)
def test_wrong_labels_are_refused_before_a_network_sees_them(files, kind, labels, message):
    with pytest.raises(InputError, match=message):
        models.load(files / f"{kind}.safetensors").labelled(labels)


def test_seeds_draw_the_classes(files):
    model = models.load(files / "ddpmpp.safetensors", torch.float64)
    x, sigma, _ = points((3, 8, 8))
    seeds = [7, 8, 9, 10]
    labels = torch.tensor([label_of(seed, 10) for seed in seeds])
    assert len({label_of(seed, 10) for seed in range(100)}) == 10
    assert torch.equal(model.of_seeds(seeds)(x, sigma), model.denoiser(x, sigma, labels))
    bed = testbed.make(str(files / "ddpmpp.safetensors"))
    assert (bed.classes, bed.label(7)) == (10, int(labels[0]))
    torch.testing.assert_close(bed.denoiser_for(seeds)(x.float(), sigma.float()), model.of_seeds(seeds)(x, sigma).float())


# --- noise ranges ----------------------------------------------------------------------------------------------------


def test_a_run_ends_where_the_network_was_trained(files):
    model = models.load(files / "ncsnpp.safetensors")
    setting = Setting.of(model.denoiser)
    assert (setting.sigma_max, setting.sigma_min) == (80.0, 0.02)
    job = Job(str(model.path), (0, 1), "dpmpp_2m", nfe=3)
    assert job.prepare(model.denoiser)[1][[0, -1]].tolist() == [80.0, 0.02]
    assert testbed.make(str(model.path)).setting.sigma_min == 0.02
    with pytest.raises(InputError, match=r"sigma_min=0.01: the network was made for noise levels from 0.02 to 100"):
        Job(str(model.path), (0, 1), nfe=3, sigma_min=0.01).prepare(model.denoiser)
    with pytest.raises(InputError, match=r"sigma_max=120.*from 0.02 to 100"):
        Job(str(model.path), (0, 1), nfe=3, sigma_max=120.0).prepare(model.denoiser)


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp", "skip", "adm", "edm2"])
def test_every_kind_is_sampled(files, tmp_path, command, kind):
    code, _, err = command(
        "sample", "--model", files / f"{kind}.safetensors", "--nfe", "3", "--seeds", "0-3", "--outdir", tmp_path
    )
    assert code == 0, err
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["sigmas"][0] == pytest.approx(80.0)
    assert about["model"]["info"]["kind"] == "edm_network"
    assert len(list(tmp_path.glob("00*.png"))) == 4


def test_classes_and_guidance_on_the_command_line(files, tmp_path, command):
    job = Job(str(files / "null.safetensors"), (0, 1), "ddim", nfe=2)
    images = {}
    for name, options in {
        "none": (), "class": ("--class", "3"), "guided": ("--class", "3", "--guidance", "2"), "random": ("--random-classes",),
        "both": ("--random-classes", "--guidance", "2"),
    }.items():  # fmt: skip
        code, _, err = command(
            "sample",
            "--model",
            job.model,
            "--solver",
            "ddim",
            "--nfe",
            "2",
            "--seeds",
            "0-1",
            "--outdir",
            tmp_path / name,
            *options,
        )
        assert code == 0, err
        images[name] = (tmp_path / name / "000001.png").read_bytes()
    assert len(set(images.values())) == 5
    for options, message in {
        ("--class", "10"): "classes 0 to 9",
        ("--class", "1", "--random-classes"): "and not both",
        ("--guidance", "2"): "let the seeds draw it by --random-classes",
    }.items():
        code, _, err = command("sample", "--model", job.model, "--nfe", "2", "--outdir", tmp_path / "no", *options)
        assert code != 0
        assert message in " ".join(err.split())


def test_an_image_of_a_drawn_class_does_not_depend_on_its_batch(files, tmp_path):
    whole = generate(Job(str(files / "ddpmpp.safetensors"), (0, 1, 2, 3), "ddim", nfe=2), tmp_path / "a")
    parts = generate(Job(str(files / "ddpmpp.safetensors"), (0, 1, 2, 3), "ddim", nfe=2, batch=2), tmp_path / "b")
    assert all((whole / f"00000{i}.png").read_bytes() == (parts / f"00000{i}.png").read_bytes() for i in range(4))
    assert json.loads((whole / "run.json").read_text())["job"]["class_index"] is None


def test_a_table_is_calibrated_and_found_again(files, tmp_path, command):
    model, out = files / "ncsnpp.safetensors", files / "tables" / "ncsnpp.safetensors"
    code, _, err = command("calibrate", "--model", model, "--nfe", "2", "--trajectories", "12", "--out", out)
    assert code == 0, err
    code, text, err = command("sample", "--model", model, "--nfe", "2", "--seeds", "0-1", "--outdir", tmp_path / "s")
    assert code == 0, err
    assert "table of 2 evaluations" in text
    assert json.loads((tmp_path / "s" / "run.json").read_text())["sigmas"][-1] == pytest.approx(0.02)


def test_a_study_runs_over_its_own_levels_and_classes(tmp_path):
    """What `steindiff bench --beds FILE` runs."""
    file = tmp_path / "tiny.safetensors"
    write(file, precond="VEPrecond", kwargs=TINY, sigma_min=0.02, sigma_max=100.0)
    config = Config(
        beds=(str(file),), solvers=("ddim",), grids=("karras",), nfe=(2,), corrections=("none",), metrics=("endpoint",), n=40
    )
    study = run_study(config, tmp_path / "bench", progress=False)
    ((cell, result),) = study.results.items()
    _, sigmas = build(cell, config, testbed.make(str(file)).setting)
    assert sigmas[[0, -1]].tolist() == [80.0, 0.02]
    assert result.values["endpoint"].value > 0
    (summary,) = study.beds.values()
    assert len(set(summary.labels)) == len(summary.labels) == 10  # the first image of each class is shown


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_does_not_hold_what_it_says_is_refused(tmp_path):
    about, kept = description("ddpmpp"), tensors(description("ddpmpp"))
    place = tmp_path / "m.safetensors"

    def stored(about, kept):
        save_file(kept, place, {"steindiff": json.dumps({"format": 1, **about})})
        return place

    short = {name: tensor for name, tensor in kept.items() if "map_layer0" not in name}
    with pytest.raises(ModelFileError, match=r"(?s)does not hold what its description says.*map_layer0"):
        models.load(stored(about, short))
    with pytest.raises(ModelFileError, match="img_resolution=4096"):
        models.load(stored(about | {"event_shape": [3, 2**12, 2**12]}, kept))
    with pytest.raises(ModelFileError, match="numbers: 3,298,534,883,328: more than"):
        models.load(stored(about | {"event_shape": [3, 2**20, 2**20]}, kept))
    with pytest.raises(ModelFileError, match="the description lacks entries"):
        models.load(stored({k: v for k, v in about.items() if k != "network"}, kept))
    levels = {name: tensor for name, tensor in tensors(description("adm")).items() if name != "u"}
    with pytest.raises(ModelFileError, match="its trained levels as the tensor u"):
        models.load(stored(description("adm"), levels))
    assert isinstance(models.load(stored(about, kept)).denoiser, EDMPrecond)


def test_what_d_does_not_need_may_lie_in_the_file(tmp_path):
    """EDM2 learns an uncertainty beside D."""
    about = description("edm2")
    more = {"logvar_fourier.freqs": torch.zeros(4), "logvar_linear.weight": torch.zeros(1, 4)}
    models.save(tmp_path / "m.safetensors", tensors(about) | more, about)
    assert models.load(tmp_path / "m.safetensors").classes == 10
