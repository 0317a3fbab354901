"""An evaluation end to end: numbers against known laws, files that let it go on, refusals."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from steindiff import models
from steindiff.cli.evaluate import evaluate_command, load_data
from steindiff.denoisers import Counter
from steindiff.errors import InputError
from steindiff.io.images import to_uint8
from steindiff.metrics import endpoint_rmse, energy_distance, frechet_distance
from steindiff.models import Model
from steindiff.models.datasets import ImageSet, load_digits
from steindiff.noise import initial_noise
from steindiff.report.evaluate import blocks, command, write
from steindiff.report.markdown import markdown
from steindiff.report.numbers import show
from steindiff.sampling import sample
from steindiff.study.evaluate import evaluate
from steindiff.study.evaluation import RUNS, Evaluation, Run, Settings

SPREAD = 0.3
SHAPE = (1, 4, 4)


def normal_model(shape: tuple[int, ...] = SHAPE, mean: float = 0.0, wrap: Callable | None = None, classes: int = 0) -> Model:
    """The exact denoiser of N(mean, SPREAD²): D = μ + s²(x − μ)/(s² + σ²)."""

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return mean + (x - mean) * (SPREAD**2 / (SPREAD**2 + sigma**2)).to(x.dtype)

    return Model("normal", wrap(denoise) if wrap else denoise, shape, {}, Path("normal.safetensors"), "0" * 64, classes)


def normal_images(n: int, seed: int, shape: tuple[int, ...] = SHAPE, name: str = "folder/images.zip") -> ImageSet:
    x = SPREAD * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    return ImageSet(torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2), None, (), name)


def small(**changes: object) -> Settings:
    return dataclasses.replace(Settings(n=24, fine_steps=6, runs=("fine", "heun-5"), chunk=8, batch=4), **changes)


def run(tmp_path: Path, model: Model, settings: Settings, n: int = 60) -> Evaluation:
    found = evaluate(model, normal_images(n, 1), normal_images(n, 2), settings, tmp_path / "out", progress=False)
    write(tmp_path / "out", found)
    return found


def test_a_perfect_model_reaches_the_floor_and_a_shifted_one_does_not(tmp_path):
    settings = Settings(n=400, runs=("fine", "heun-40"), features="none")
    for shift in (0.0, 0.1):
        model = normal_model(mean=shift)
        model = dataclasses.replace(model, sha256=f"{shift:064}")
        report = run(tmp_path, model, settings, n=400)
        fine, floor = report.rows[0], report.floors[0]
        for got, real in ((fine.held.energy, floor.held.energy), (fine.held.pixels, floor.held.pixels)):
            away = (got.value - real.value) / (got.se**2 + real.se**2) ** 0.5
            assert away > 4 if shift else abs(away) < 3
        assert fine.held.features is None
    assert fine.train.pixels.value - floor.held.pixels.value == pytest.approx(16 * 0.1**2, rel=0.3)  # d · shift²
    assert report.rows[1].error.value < 0.01


def test_distances_are_those_of_the_saved_images(tmp_path):
    """Reckoned again from the definitions: image i from seed i, clipped, rounded to 8 bits."""
    train, held = normal_images(30, 1), normal_images(24, 2)
    report = evaluate(normal_model(), train, held, small(first_seed=7, groups=3), tmp_path, progress=False)
    images = {}
    for row, name in zip(report.rows, ("fine", "heun-5"), strict=True):
        made = Run.of(name, small())
        x = sample(made.solver, normal_model().denoiser, initial_noise(range(7, 31), SHAPE), made.sigmas).x
        images[name] = torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2).float() * 2 / 255 - 1
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        assert row.held.energy == pytest.approx(energy_distance(images[name], held.points(order)), rel=1e-5)
        assert row.held.pixels == pytest.approx(frechet_distance(images[name], held.points(order), groups=3), rel=1e-5)
        assert row.nfe == made.nfe
    assert report.rows[1].error == pytest.approx(endpoint_rmse(images["heun-5"], images["fine"]), rel=1e-6)
    assert report.rows[0].nfe == 13
    floor = report.floors[0]
    assert floor.n == 24
    assert floor.train == floor.held
    assert (report.train.images, report.train.used, report.held.used) == (30, 24, 24)


def test_floors_have_as_many_images_as_samples_where_there_are_enough(tmp_path):
    train, held = normal_images(60, 1), normal_images(12, 2)
    report = evaluate(normal_model(), train, held, small(n_few=10), tmp_path, progress=False)
    large, few = report.floors
    assert (large.n, few.n) == (24, 10)
    assert large.train is None
    assert few.train is not None
    assert "| real images (floor) | – | 24 | – |" in markdown(blocks(report))
    assert [row.n for row in report.rows] == [24, 10]


def test_files_report_and_nothing_is_done_twice(tmp_path):
    model = normal_model(wrap=Counter)
    report = run(tmp_path, model, small())
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"samples", "distances", "quality.json", "quality.md", "samples.png"}
    found = json.loads((out / "quality.json").read_text())
    assert found["runs"][0]["held"]["energy"]["value"] == report.rows[0].held.energy.value
    assert found["model"]["sha256"] == model.sha256
    assert found["settings"]["fine_steps"] == 6
    assert (out / "quality.md").read_text() == "## Quality\n\n" + markdown(blocks(report))
    assert f"| `heun-5` | 5 | 24 | {show(report.rows[1].train.energy)} |" in markdown(blocks(report))
    calls = model.denoiser.calls
    assert calls == (13 + 5) * 24 // 4
    before = {file: file.stat().st_mtime_ns for file in (out / "distances").iterdir()}
    again = run(tmp_path, model, small())
    assert model.denoiser.calls == calls
    assert {file: file.stat().st_mtime_ns for file in (out / "distances").iterdir()} == before
    assert again.rows == report.rows
    run(tmp_path, model, small(n=32))
    assert model.denoiser.calls == calls + (13 + 5) * 8 // 4
    run(tmp_path, dataclasses.replace(model, sha256="1" * 64), small())
    assert model.denoiser.calls == 2 * calls + (13 + 5) * 8 // 4


def test_a_killed_evaluation_goes_on_within_a_run(tmp_path):
    whole = evaluate(normal_model(), normal_images(60, 1), normal_images(60, 2), small(), tmp_path / "whole", progress=False)

    class Killed(Counter):
        def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            if self.calls == 13 * 5:
                raise KeyboardInterrupt
            return super().__call__(x, sigma)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, normal_model(wrap=Killed), small())
    (held,) = (tmp_path / "out" / "samples").iterdir()
    assert held.name.startswith("fine-")
    model = normal_model(wrap=Counter)
    report = run(tmp_path, model, small())
    assert model.denoiser.calls == 13 * 2 + 5 * 6  # four of six batches of `fine` were on disk: two chunks
    assert [(r.train, r.held, r.error) for r in report.rows] == [(r.train, r.held, r.error) for r in whole.rows]


@pytest.mark.parametrize(("place", "remedy"), [("samples", "they are drawn again"), ("distances", "it is measured again")])
def test_a_damaged_file_is_named_with_its_remedy(tmp_path, place, remedy):
    whole = run(tmp_path, normal_model(), small())
    file = next((tmp_path / "out" / place).glob("fine-*"))
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match=f"remove it, and {remedy}"):
        run(tmp_path, normal_model(), small())
    file.unlink()
    again = run(tmp_path, normal_model(), small())
    assert [(r.train, r.held, r.error) for r in again.rows] == [(r.train, r.held, r.error) for r in whole.rows]


def test_a_run_that_diverges_is_reported(tmp_path):
    def broken(denoise: Callable) -> Callable:
        return lambda x, sigma: denoise(x, sigma) * (float("nan") if 0 < float(sigma.max()) < 0.004 else 1.0)

    report = run(tmp_path, normal_model(wrap=broken), small())
    assert [bool(row.failure) for row in report.rows] == [True, False]
    text = markdown(blocks(report))
    assert "| `fine` | 13 | 24 | diverged |" in text
    assert "NaN or infinite" in text
    assert report.rows[1].error is None
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["runs"][0]["failure"]


def test_bf16_states_its_effect(tmp_path):
    train, held = load_digits()
    settings = Settings(n=8, fine_steps=2, runs=("fine", "heun-5"), precision="bf16", checked=4)
    model = models.load("digits")
    model = dataclasses.replace(model, denoiser=Counter(model.denoiser))
    report = evaluate(model, train, held, settings, tmp_path, progress=False)
    assert all(0 < row.effect.value < 0.1 for row in report.rows)
    assert "bf16 under autocast" in markdown(blocks(report))
    assert f"{min(r.effect.value for r in report.rows):.4f}…" in markdown(blocks(report))
    calls = model.denoiser.calls
    assert calls == 2 * (5 + 5)
    again = evaluate(model, train, held, settings, tmp_path, progress=False)
    assert again.rows == report.rows
    assert model.denoiser.calls == calls


def test_class_conditional_models_get_the_classes_of_the_training_images(tmp_path):
    seen = []

    def wrap(denoise: Callable) -> Callable:
        def labelled(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seen.append(labels)
            return denoise(x, sigma)

        return labelled

    train, held = normal_images(60, 1), normal_images(60, 2)
    labelled = dataclasses.replace(train, labels=torch.arange(60) % 3, classes=("a", "b", "c"))
    model = normal_model(wrap=wrap, classes=3)
    evaluate(model, labelled, held, small(), tmp_path, progress=False)
    assert all(len(labels) == 4 for labels in seen)
    assert set(torch.cat(seen).tolist()) == {0, 1, 2}
    with pytest.raises(InputError, match="has 3 classes"):
        evaluate(model, train, held, small(), tmp_path, progress=False)


def test_colour_images_are_measured_in_features(tmp_path):
    shape = (3, 16, 16)
    report = evaluate(
        normal_model(shape), normal_images(60, 1, shape), normal_images(60, 2, shape), small(runs=("fine",)), tmp_path,
        progress=False,
    )  # fmt: skip
    fine = report.rows[0].held
    assert fine.features is not None
    assert fine.features.value > 0
    text = markdown(blocks(report))
    assert "feature Fréchet to held-out" in text
    assert "classifier `cifar10`; test accuracy" in text
    assert "not FID" in text


def test_features_that_do_not_fit(tmp_path):
    """Shipped ones are left out; a file that the user names is refused."""
    assert run(tmp_path, normal_model(), small(runs=("fine",))).features is None
    from steindiff.metrics.features import WEIGHTS

    with pytest.raises(InputError, match="leave these features out"):
        run(tmp_path, normal_model(), small(features=str(WEIGHTS / "cifar10_classifier.safetensors")))
    with pytest.raises(InputError, match="unknown features"):
        run(tmp_path, normal_model(), small(features="inception"))


def test_the_command_is_that_of_another_machine(tmp_path):
    images = normal_images(60, 1, name="/home/me/my photos")
    train, held = images.split(20)
    report = evaluate(normal_model(), train, held, small(first_seed=3, n_few=8), tmp_path, progress=False)
    assert command(report) == (
        "steindiff evaluate --model normal.safetensors --data 'my photos' --held-out 20 --n 24 --n-few 8 --seed 3 "
        "--fine-steps 6 --runs fine,heun-5 --outdir outputs/quality-normal"
    )
    assert "/home/me" not in markdown(blocks(report))
    other = evaluate(normal_model(), train, normal_images(30, 2), small(), tmp_path, progress=False)
    assert "--held-out images.zip --n 24" in command(other)


@pytest.mark.parametrize(
    ("train", "held", "message"),
    [
        (normal_images(9, 1, (1, 8, 8)), normal_images(9, 1), r"training images .* \(1, 8, 8\).*\(1, 4, 4\)"),
        (normal_images(9, 1), normal_images(9, 1, (3, 4, 4)), r"held-out images .* \(3, 4, 4\)"),
        (normal_images(9, 1), normal_images(3, 1), "3 held-out images"),
    ],
)
def test_images_that_do_not_fit_are_refused_before_any_sampling(tmp_path, train, held, message):
    model = normal_model(wrap=Counter)
    with pytest.raises(InputError, match=message):
        evaluate(model, train, held, small(), tmp_path / "out", progress=False)
    assert model.denoiser.calls == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 3}, "n=3"),
        ({"n_few": 1}, "n_few=1"),
        ({"groups": 1}, "groups=1"),
        ({"runs": ()}, "at least one"),
        ({"runs": ("fine", "fine")}, "none twice"),
        ({"runs": ("heun",)}, "'heun-10'"),
        ({"runs": ("hein-5",)}, "did you mean 'heun'"),
        ({"runs": ("heun-0",)}, "nfe=0"),
        ({"precision": "bf"}, "did you mean 'bf16'"),
        ({"device": "warp"}, "cannot be used"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(InputError, match=message):
        Settings(**changes)


def test_default_runs():
    assert len(RUNS) == 17
    nfe = [Run.of(name, Settings()).nfe for name in RUNS]
    assert nfe == [71, *[5, 6, 8, 10] * 4]


def test_a_run_names_a_solver_by_a_spec(tmp_path):
    names = ("dpmpp_3m(exact=True)-8", "dpmpp_3m-8")
    exact, plain = (Run.of(name, Settings()) for name in names)
    assert (exact.nfe, plain.nfe) == (8, 8)
    assert repr(exact.solver) != repr(plain.solver)
    report = run(tmp_path, normal_model(), small(runs=names))
    assert report.rows[0].held != report.rows[1].held
    assert f"--runs '{','.join(names)}'" in command(report)


def pictures(place: Path, n: int, side: int = 6) -> Path:
    place.mkdir()
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    return place


def test_data_are_loaded_as_the_model_makes_them(tmp_path):
    photos, others = pictures(tmp_path / "photos", 7), pictures(tmp_path / "others", 5)
    train, held = load_data(normal_model(), str(photos), "3")
    assert (len(train), len(held), train.event_shape) == (4, 3, SHAPE)
    train, held = load_data(normal_model((3, 3, 3)), str(photos), str(others))
    assert (len(train), len(held), held.event_shape) == (7, 5, (3, 3, 3))
    for model, data, held_out, message in (
        (normal_model(), "digits", "3", "their own split"),
        (normal_model(), str(photos), "digits", "their own split"),
        (normal_model(), str(photos), "", "no held-out images"),
        (normal_model((1, 4, 6)), str(photos), "3", "only square ones"),
    ):
        with pytest.raises(InputError, match=message):
            load_data(model, data, held_out)


def test_command_from_digits_to_a_card(tmp_path):
    app = typer.Typer()
    app.command()(evaluate_command)
    out = tmp_path / "out"
    args = ["--model", "digits", "--data", "digits", "--n", "8", "--runs", "heun-5, ddim-2", "--outdir", str(out)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "floor" in result.output
    card = (out / "quality.md").read_text()
    command = "steindiff evaluate --model digits --data digits --n 8 --runs heun-5,ddim-2"
    assert f"```\n{command} --outdir outputs/quality-digits\n```" in card
    assert "8, drawn at random once, of the 1,500 of `digits`" in card
    assert len(re.findall(r"\| `(heun-5|ddim-2)` \|", card)) == 2
    assert str(tmp_path) not in card
    settings = json.loads((out / "quality.json").read_text())["settings"]
    assert settings["runs"] == ["heun-5", "ddim-2"]
