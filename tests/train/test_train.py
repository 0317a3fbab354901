"""Training: the objective's closed forms, the schedules, exact resumption, files that are whole, and clear refusals."""

import dataclasses
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from steindiff import models
from steindiff.analytic import Gaussian
from steindiff.cli.app import app
from steindiff.cli.train import Output, run_training
from steindiff.errors import InputError, NonFiniteError
from steindiff.models.datasets import load_digits
from steindiff.models.networks import EDMPrecond, UNet, UNetConfig
from steindiff.report.card import write_card
from steindiff.train import checkpoint as checkpoints
from steindiff.train.checkpoint import load_checkpoint
from steindiff.train.export import describe, export
from steindiff.train.feed import Feed
from steindiff.train.loop import CHECKPOINT, LOG, Options, train
from steindiff.train.objective import SIGMAS, loss_per_sigma, stratified_sigmas
from steindiff.train.plan import PRESETS, Plan
from steindiff.train.recipe import Recipe, average_weight, learning_rate, power_exponent

SMALL = UNetConfig(channels=8, mults=(1, 2), blocks=1, attention=(1,), heads=1, groups=4, dropout=0.1)
SHORT = Recipe(steps=12, batch=16, warmup=4, ema_length=5.0, p_mean=-1.0)
LATER = {"label_dropout", "null_class"}  # settings that earlier versions do not know
EAGER = Options(log_every=2, report_every=0, checkpoint_seconds=0.0, progress=False, cpu=True)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / LOG).read_text().splitlines()]


# --- the objective ---------------------------------------------------------------------------------------------------


def test_the_exact_gaussian_denoiser_has_weighted_error_one_at_every_sigma():
    """E‖D − x₀‖²/d = s²σ²/(s²+σ²), and λ with σ_d = s is its inverse."""
    s = 0.7
    law = Gaussian(torch.zeros(1, 8, 8), s**2 * torch.eye(64))
    x0 = s * torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    for sigma, (mean, se) in zip(SIGMAS, loss_per_sigma(law, s, x0), strict=True):
        assert abs(mean - 1) < 4 * se, (sigma, mean, se)
        assert se < 0.01


def test_stratified_levels_are_log_normal_and_one_to_a_stratum():
    sigma = stratified_sigmas(4000, -1.2, 1.3, torch.Generator().manual_seed(0))
    z = (sigma.double().log() + 1.2) / 1.3
    assert abs(float(z.mean())) < 2e-3
    assert abs(float(z.std()) - 1) < 5e-3
    strata = (torch.special.ndtr(z) * 4000).floor().long().unique()
    assert len(strata) > 3990  # rounding moves a few across a border


def test_digits_at_their_own_scale():
    data, held = load_digits()
    assert (len(data), len(held), data.event_shape) == (1500, 297, (1, 8, 8))
    x = data.points()
    assert float(x.min()) == -1
    assert float(x.max()) == 1
    assert data.labels is not None
    assert sorted(set(data.labels.tolist())) == list(range(10))


# --- schedules -------------------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_stays_and_falls():
    r = Recipe(steps=1000, warmup=100, lr=1.0, decay=0.25)
    assert learning_rate(0, r) == pytest.approx(0.01)
    assert learning_rate(99, r) == learning_rate(750, r) == pytest.approx(1)
    assert learning_rate(875, r) == pytest.approx(0.5)
    assert learning_rate(999, r) < 1e-4
    whole = Recipe(steps=1000, warmup=1, lr=1.0, decay=1.0)
    assert learning_rate(500, whole) == pytest.approx(0.5)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_power_average_has_the_width_it_is_named_for(width):
    """The weights that the recursion gives to steps 1…n have standard deviation σ_rel·n."""
    r = Recipe(steps=20000, ema="power", ema_length=width)
    n = 20000
    kept = np.array([average_weight(step, r) for step in range(n)])
    survival = np.cumprod((1 - kept)[::-1])[::-1]
    weights = kept * np.append(survival[1:], 1)
    assert weights.sum() == pytest.approx(1)
    t = np.arange(1, n + 1) / n
    mean = (weights * t).sum()
    assert math.sqrt((weights * (t - mean) ** 2).sum()) == pytest.approx(width, rel=2e-3)
    gamma = power_exponent(width)
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(width**2)


def test_half_life_average():
    r = Recipe(steps=10**6, ema="half_life", ema_length=300.0)
    kept = 1 - average_weight(100_000, r)
    assert kept**300 == pytest.approx(0.5)
    assert average_weight(0, r) == pytest.approx(0.5)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_every_epoch_shows_every_image_once_in_another_order():
    data = load_digits()[0].take(slice(100))
    data = dataclasses.replace(data, labels=torch.arange(100))
    feed = Feed(data, dataclasses.replace(SHORT, batch=30), conditional=True)
    seen = torch.cat([feed.batch(step).labels for step in range(10)])
    for epoch in seen.split(100):
        assert sorted(epoch.tolist()) == list(range(100))
    assert not torch.equal(seen[:100], seen[100:200])


def test_processes_share_out_one_batch():
    data = load_digits()[0]
    whole = Feed(data, SHORT, conditional=True).batch(5)
    parts = [Feed(data, SHORT, conditional=True, rank=rank, world=4).batch(5) for rank in range(4)]
    for rank, part in enumerate(parts):
        for mine, all_ in zip(part, whole, strict=True):
            assert torch.equal(mine, all_[rank::4])
    with pytest.raises(InputError, match="multiple of 3"):
        Feed(data, SHORT, world=3)
    with pytest.raises(InputError, match="has no classes"):
        Feed(dataclasses.replace(data, labels=None), SHORT, conditional=True)


def test_flips_mirror_half_the_images():
    data = load_digits()[0]
    plain = Feed(data, dataclasses.replace(SHORT, batch=400)).batch(0).x0
    flipped = Feed(data, dataclasses.replace(SHORT, batch=400, flip=True)).batch(0).x0
    same = (plain == flipped).flatten(1).all(1)
    assert torch.equal(flipped[~same], plain[~same].flip(-1))
    assert 140 < int(same.sum()) < 260


def test_label_dropout_drops_its_share_and_changes_nothing_else():
    data, recipe = load_digits()[0], dataclasses.replace(SHORT, batch=400)
    plain = [Feed(data, recipe, conditional=True).batch(step) for step in range(10)]
    dropping = dataclasses.replace(recipe, label_dropout=0.25)
    dropped = [Feed(data, dropping, conditional=True).batch(step) for step in range(10)]
    lost = torch.stack([b.labels == 10 for b in dropped])
    assert abs(float(lost.double().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert len({tuple(row) for row in lost.tolist()}) == 10  # anew in every step
    for a, b, gone in zip(plain, dropped, lost, strict=True):
        assert torch.equal(a.labels[~gone], b.labels[~gone])
        assert all(torch.equal(u, v) for u, v in ((a.x0, b.x0), (a.sigma, b.sigma), (a.noise, b.noise)))
    for rank in range(4):
        part = Feed(data, dropping, conditional=True, rank=rank, world=4).batch(3)
        assert torch.equal(part.labels, dropped[3].labels[rank::4])
    assert Feed(data, dropping).batch(0).labels is None


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    data, held = load_digits()
    return folder, train(data, held.take(slice(32)), SMALL, SHORT, folder, EAGER)


def test_a_stopped_run_goes_on_exactly(unbroken, tmp_path):
    """Same losses, same weights to the bit; also with lines in the log that are none, or from after the checkpoint."""
    folder, whole = unbroken
    data, held = load_digits()
    held = held.take(slice(32))
    brief = dataclasses.replace(EAGER, session_seconds=1e-6)
    first = train(data, held, SMALL, SHORT, tmp_path, brief)
    assert first.step == 2
    damaged = b'{"step": 1, "l\xffss": 9.0}\n' + b"[" * 100_000 + b"\n"
    (tmp_path / LOG).write_bytes(damaged + (tmp_path / LOG).read_bytes() + b'{"step": 4, "loss": 99.0}\n{"step": 6, "lo')
    assert train(data, held, SMALL, SHORT, tmp_path, brief).step == 4
    last = train(data, held, SMALL, SHORT, tmp_path, EAGER)
    assert last.step == SHORT.steps
    assert losses(tmp_path) == losses(folder)
    for name, value in whole.denoiser.state_dict().items():
        assert torch.equal(value, last.denoiser.state_dict()[name]), name


def test_another_run_is_not_mixed_in(unbroken):
    folder, _ = unbroken
    data, held = load_digits()
    with pytest.raises(InputError, match=r"recipe\.lr was 0\.002, is 0\.001"):
        train(data, held, SMALL, dataclasses.replace(SHORT, lr=1e-3), folder, EAGER)
    with pytest.raises(InputError, match=r"data\.images was 1500, is 1499"):
        train(data.take(slice(1499)), held, SMALL, SHORT, folder, EAGER)


def test_files_of_a_version_without_label_dropout_are_taken_as_they_are(unbroken, tmp_path):
    """A checkpoint goes on; a model file of the same weights stays as it is, and its card can be written."""
    folder, whole = unbroken
    data, held = load_digits()
    held = held.take(slice(32))
    state = checkpoints._read(folder / CHECKPOINT)
    early = {part: {k: v for k, v in state.identity[part].items() if k not in LATER} for part in ("recipe", "unet")}
    assert (
        early["recipe"].keys() | early["unet"].keys()
        == (state.identity["recipe"].keys() | state.identity["unet"].keys()) - LATER
    )
    old = dataclasses.replace(state, identity=state.identity | early)
    torch.save({"format": checkpoints.FORMAT, **old.__dict__}, tmp_path / CHECKPOINT)
    assert train(data, held, SMALL, SHORT, tmp_path, EAGER).step == SHORT.steps
    other = {**state.identity, "recipe": {**state.identity["recipe"], "label_dropout": 0.5}}
    with pytest.raises(InputError, match=r"recipe\.label_dropout was 0\.0, is 0\.5"):
        load_checkpoint(tmp_path / CHECKPOINT, other)

    info = json.loads(json.dumps(describe("old", "none", data, held, SMALL, SHORT, 1.0, folder / LOG)))
    recipe = {k: v for k, v in info["recipe"].items() if k not in LATER}
    (file,), _ = export(tmp_path / "old.safetensors", whole.denoiser, {**info, "unet": early["unet"], "recipe": recipe})
    before = models.load(file).sha256
    files, kept = export(file, whole.denoiser, info)
    assert models.load(files[0]).sha256 == before
    write_card(tmp_path / "old.md", kept, files, (), "")
    assert "label_dropout = 0.0" in (tmp_path / "old.md").read_text()


def test_a_checkpoint_that_cannot_be_read_is_refused_and_no_code_in_it_runs(unbroken, tmp_path):
    folder, _ = unbroken
    broken = tmp_path / CHECKPOINT
    broken.write_bytes((folder / CHECKPOINT).read_bytes()[:-1000])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(broken, {})

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'evil'}",))

    torch.save({"format": 1, "step": Evil()}, broken)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(broken, {})
    broken.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(broken, {})
    assert not (tmp_path / "evil").exists()


def test_a_full_disk_leaves_the_old_checkpoint(unbroken, tmp_path, monkeypatch):
    folder, _ = unbroken
    (tmp_path / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes())
    state = checkpoints._read(folder / CHECKPOINT)

    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="free space or choose another folder"):
        checkpoints.save_checkpoint(tmp_path / CHECKPOINT, state)
    monkeypatch.undo()
    assert checkpoints._read(tmp_path / CHECKPOINT).step == SHORT.steps
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    data, held = load_digits()
    wild = dataclasses.replace(SHORT, lr=1e18, warmup=5, clip_norm=1e30)
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        train(data, held.take(slice(32)), SMALL, wild, tmp_path, EAGER)
    if (tmp_path / CHECKPOINT).exists():
        assert checkpoints._read(tmp_path / CHECKPOINT).step < SHORT.steps


SETTINGS = ["channels=8", "blocks=1", "heads=1", "groups=4", "steps=60", "batch=16", "warmup=4", "ema_length=5.0"]


def start(folder, *more):
    sets = [part for s in SETTINGS for part in ("--set", s)]
    fast = ["--log-every", "2", "--report-every", "0", "--checkpoint-seconds", "0", "--evaluate", "0", "--cpu"]
    command = ["train", "--preset", "smoke", "--data", "digits", "--outdir", str(folder), "--name", "tiny", *sets, *fast, *more]
    return [sys.executable, "-m", "steindiff", "--threads", "1", *command]


def test_killed_outright_the_command_goes_on_exactly(tmp_path):
    """Kill −9 in the middle of training, at an arbitrary moment; then the same command again."""
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = subprocess.Popen(start(broken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (broken / LOG).exists() or len((broken / LOG).read_text().splitlines()) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoints._read(broken / CHECKPOINT).step < 60
    for folder in (broken, whole):
        done = subprocess.run(start(folder), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert losses(broken) == losses(whole)
    assert len(losses(whole)) == 30
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    d = [models.load(f / "tiny.safetensors").denoiser(x, torch.tensor(0.5)) for f in (broken, whole)]
    assert torch.equal(*d)
    assert not [p for p in broken.iterdir() if "tmp" in p.name and p.suffix == ".safetensors"]


def test_two_processes_train_as_one(tmp_path):
    """The same batches, levels and noise, shared out: the losses agree up to the order of summation."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "steindiff"]
    more = ("--set", "dropout=0.0", "--set", "steps=8")
    command = [word for word in start(tmp_path / "two", *more)[3:] if word != "--cpu"]  # they find out by themselves
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("card:") == 1  # one process writes, whoever it is
    alone = subprocess.run(start(tmp_path / "one", *more), capture_output=True, text=True, timeout=300)
    assert alone.returncode == 0, alone.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


# --- the command -----------------------------------------------------------------------------------------------------


def test_bf16_and_compile_flags_reach_the_run(tmp_path):
    data, held = load_digits()
    half = dataclasses.replace(SHORT, precision="bf16", steps=4)
    trained = train(data, held.take(slice(32)), SMALL, half, tmp_path, EAGER)
    assert all(p.dtype == torch.float32 for p in trained.denoiser.parameters())


def test_a_budget_chooses_the_steps_and_a_resumed_run_keeps_them(tmp_path, capsys):
    plan = Plan("smoke", "digits", changes=tuple(s for s in SETTINGS if not s.startswith("steps")))
    options = dataclasses.replace(EAGER, session_seconds=1e-6)
    output = Output("tiny")
    assert run_training(plan, tmp_path, options, output, budget_minutes=0.05) == []
    assert "steps fill 0.05 minutes" in capsys.readouterr().out
    steps = checkpoints.steps_of(tmp_path / CHECKPOINT)
    assert steps is not None
    files = run_training(plan, tmp_path, EAGER, output, budget_minutes=0.05)
    model = models.load(files[0])
    assert model.info["recipe"]["steps"] == steps
    assert f"--set steps={steps}" in model.info["recipe"]["command"]
    assert f"--set steps={steps}" in (tmp_path / "tiny.md").read_text()
    assert run_training(plan, tmp_path, EAGER, output, budget_minutes=0.05) == files
    assert models.load(files[0]).sha256 == model.sha256  # the same weights are not written anew


def test_overwrite_removes_the_samples_of_the_run_before_and_no_others(tmp_path):
    """A picture of another name is no sample, and one that was changed is no longer the run's, however often one asks."""
    changes = tuple(s for s in SETTINGS if not s.startswith("steps"))
    plans = {steps: Plan("smoke", "digits", changes=(*changes, f"steps={steps}")) for steps in (10, 3)}
    run_training(plans[10], tmp_path, dataclasses.replace(EAGER, report_every=2), Output("tiny"))
    samples = tmp_path / "samples"
    assert len(list(samples.iterdir())) == 5
    (samples / "mine.png").write_text("mine")
    (samples / "00000007.png").write_text("mine")
    with pytest.raises(InputError, match=r"1 file in the way that this run has not written, or not so: samples/00000007\.png"):
        run_training(plans[3], tmp_path, EAGER, Output("tiny"), overwrite=True)
    (samples / "00000007.png").unlink()
    whole = (samples / "00000010.png").read_bytes()
    (samples / "00000010.png").write_text("mine")
    for _ in range(2):
        with pytest.raises(InputError, match=r"1 file in the way that this run has not written, or not so: samples/00000010\."):
            run_training(plans[3], tmp_path, EAGER, Output("tiny"), overwrite=True)
    assert checkpoints.steps_of(tmp_path / CHECKPOINT) == 10
    (samples / "00000010.png").write_bytes(whole)
    run_training(plans[3], tmp_path, EAGER, Output("tiny"), overwrite=True)
    assert sorted(path.name for path in samples.iterdir()) == ["00000003.png", "mine.png"]
    assert checkpoints.steps_of(tmp_path / CHECKPOINT) == 3
    assert len(losses(tmp_path)) == 2


def test_overwrite_after_a_kill_removes_what_the_killed_run_has_left(tmp_path, monkeypatch):
    """The record of the run before lists other bytes for a sample of the same name."""
    plan = Plan("smoke", "digits", changes=(*(s for s in SETTINGS if not s.startswith("steps")), "steps=2"))
    run_training(plan, tmp_path, EAGER, Output("tiny"))
    sample = tmp_path / "samples" / "00000002.png"
    with monkeypatch.context() as patch:
        patch.setattr("steindiff.io.folders._close", lambda *_: None)  # as after kill −9
        patch.setattr("steindiff.cli.train._train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_training(plan, tmp_path, EAGER, Output("tiny"), overwrite=True)
    sample.write_text("half a picture")
    later = tmp_path / "samples" / "00000009.png"
    later.write_text("of the killed run")
    run_training(plan, tmp_path, EAGER, Output("tiny"), overwrite=True)
    assert not later.exists()
    assert sample.read_bytes().startswith(b"\x89PNG")


def test_class_conditional_training_from_folders(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            pixels = generator.integers(0, 255, (20, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    plan = Plan("smoke", str(tmp_path / "data"), "8", (*SETTINGS, "steps=4", "flip=True"), resolution=8, classes=True)
    notes = tmp_path / "notes.md"
    notes.write_text("Not a real model.")
    (file,) = run_training(plan, tmp_path / "out", EAGER, Output("pets", notes))
    model = models.load(file)
    assert model.event_shape == (3, 8, 8)
    assert model.info["classes"] == ["cats", "dogs"]
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert model.denoiser(x, torch.tensor(1.0), torch.tensor([0, 1])).shape == x.shape
    card = (tmp_path / "out" / "pets.md").read_text()
    assert "A class-conditional (2 classes)" in card
    assert "Not a real model." in card
    assert str(tmp_path) not in card + json.dumps(model.info)
    assert not model.info["unet"]["null_class"]
    with pytest.raises(InputError, match="pets has no null class"):
        model.guided(torch.tensor(0), 2.0)
    with pytest.raises(InputError, match="has no classes"):
        Plan("smoke", "x", classes=True).network(dataclasses.replace(load_digits()[0], labels=None, classes=()))


def test_training_for_guidance_on_the_digits(tmp_path):
    changes = (*SETTINGS, "steps=20", "label_dropout=0.5")
    (file,) = run_training(Plan("smoke", "digits", changes=changes, classes=True), tmp_path, EAGER, Output("guide"))
    model = models.load(file)
    assert (model.classes, model.info["unet"]["null_class"]) == (10, True)
    assert "--classes" in model.info["recipe"]["command"]
    assert "A class-conditional (10 classes and the null class)" in (tmp_path / "guide.md").read_text()
    rows = model.denoiser.network.embedding.label.weight
    torch.manual_seed(Plan("smoke", "digits", changes=changes, classes=True).recipe().seed)
    start = EDMPrecond(UNet(UNetConfig(**model.info["unet"])), 0.5).network.embedding.label.weight
    assert float((rows - start).detach()[10].abs().max()) > 0.005  # the null class was trained too: float16 rounds by 0.001


def test_label_dropout_needs_classes_and_a_null_class(tmp_path):
    data, held = load_digits()
    for plan in (Plan("digits_classes", "digits"), Plan("smoke", "digits", changes=("label_dropout=0.15",))):
        with pytest.raises(InputError, match=r"label_dropout=0\.15 without classes: give --classes, or --set label_dropout=0"):
            plan.network(data)
    plain = Plan("digits_classes", "digits", changes=("label_dropout=0",), classes=True).network(data)
    assert (plain.num_classes, plain.null_class) == (10, False)
    for config, dropout in (
        (dataclasses.replace(SMALL, num_classes=10), 0.1),
        (dataclasses.replace(plain, null_class=True), 0.0),
    ):
        with pytest.raises(InputError, match="need both or neither"):
            train(data, held, config, dataclasses.replace(SHORT, label_dropout=dropout), tmp_path / "o", EAGER)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("lrr=1",), "did you mean 'lr'"),
        (("steps=many",), "need a value like"),
        (("steps=1.5",), "need a value like"),
        (("steps=True",), "need a value like"),
        (("flip=1",), "True or False"),
        (("attention=",), None),
        (("mults=1.5,2",), "tuples 1,2,2"),
        (("steps=0",), "at least 1"),
        (("ema=fast",), "half_life, power"),
        (("ema=power",), "below 0.28"),
        (("precision=fp8",), "no, bf16, fp16"),
        (("lr=-1",), "positive"),
        (("label_dropout=1",), "label_dropout < 1"),
    ],
)
def test_settings_are_checked_by_name_type_and_range(changes, message):
    if message is None:
        assert Plan("smoke", "digits", changes=changes).network(load_digits()[0]).attention == ()
        return
    with pytest.raises(InputError, match=message):
        (Plan("smoke", "digits", changes=changes).recipe(), Plan("smoke", "digits", changes=changes).network(load_digits()[0]))


def test_data_that_cannot_be_trained_on(tmp_path):
    with pytest.raises(InputError, match="no held-out images"):
        Plan("cifar10", "somewhere").load()
    with pytest.raises(InputError, match="their own split"):
        Plan("digits", "digits", "100").load()
    with pytest.raises(InputError, match="no such folder"):
        Plan("cifar10", str(tmp_path / "none"), "5").load()
    data, held = load_digits()
    with pytest.raises(InputError, match="all three must agree"):
        train(data, held, dataclasses.replace(SMALL, image_channels=3), SHORT, tmp_path / "o", EAGER)
    odd = dataclasses.replace(data, pixels=data.pixels[..., :7])
    with pytest.raises(InputError, match="multiples of 2"):
        train(odd, odd, SMALL, SHORT, tmp_path / "o", EAGER)
    assert not (tmp_path / "o").exists()


def test_the_command_names_what_is_wrong(tmp_path, capsys, monkeypatch):
    from steindiff.cli import app as cli

    monkeypatch.setattr(sys, "argv", ["steindiff", "train", "--preset", "smok", "--data", "digits", "--outdir", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "did you mean 'smoke'" in capsys.readouterr().err
    assert app is cli.app


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name):
    p = PRESETS[name]
    x = torch.zeros(1, p.unet.image_channels, *[p.resolution or 8] * 2)
    from steindiff.models.networks import UNet

    assert UNet(p.unet)(x, torch.zeros(1)).shape == x.shape
    if name == "cifar10-gpu":  # 48 MiB of float16 at most
        assert 2 * sum(q.numel() for q in UNet(p.unet).parameters()) < 48 * 2**20


def test_the_smoke_preset_as_the_page_gives_it(tmp_path):
    """docs/models.md's two-minute command (with fewer samples to judge), and images from what it made."""
    out = tmp_path / "smoke"
    base = [sys.executable, "-m", "steindiff"]
    train_it = [
        *base,
        "--threads",
        "1",
        "train",
        "--preset",
        "smoke",
        "--data",
        "digits",
        "--outdir",
        str(out),
        "--evaluate",
        "60",
    ]
    done = subprocess.run(train_it, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    model = models.load(out / "smoke.safetensors")
    assert model.info["recipe"]["command"] == "steindiff train --preset smoke --data digits --outdir outputs/smoke"
    by_sigma = dict(zip(SIGMAS, model.info["recipe"]["losses"]["held_out"], strict=True))
    assert by_sigma[0.8][0] < 0.5  # 1 is the loss of the best denoiser of white data of this variance
    card = (out / "smoke.md").read_text()
    assert "real images (floor)" in card
    assert "`fine`" in card
    assert (out / "samples" / "00000300.png").is_file()
    draw = [
        "sample",
        "--model",
        str(out / "smoke.safetensors"),
        "--nfe",
        "5",
        "--seeds",
        "0-3",
        "--outdir",
        str(tmp_path / "s"),
    ]
    done = subprocess.run([*base, *draw], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "s" / "000003.png").is_file()
