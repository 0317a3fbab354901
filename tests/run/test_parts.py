"""A batch that memory does not suffice for: in parts, with the noise, the γ and the images of the whole batch."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from steindiff import Corrected, grids, initial_noise, models, sample, solvers
from steindiff.analytic import GaussianMixture
from steindiff.divergence import Hutchinson
from steindiff.errors import InputError
from steindiff.io.memory import memory_lacks
from steindiff.noise import generators
from steindiff.run import Job, generate
from steindiff.run.parts import sample_parts, split

SEEDS = range(10)
JOB = Job("digits", tuple(range(18)), "dpmpp_2m", nfe=2, batch=18, dtype="float64", divergence=Hutchinson(method="vjp"))
NO_MEMORY = {
    "gpu": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
}


class Small:
    """A network with memory for so many images, or for so many derivatives."""

    def __init__(self, denoiser, most, error, derivative=False):
        self.denoiser, self.most, self.error, self.derivative, self.seen = denoiser, most, error, derivative, []

    def __call__(self, x, sigma):
        if len(x) > self.most and (x.requires_grad or not self.derivative):
            raise self.error
        self.seen.append(len(x))
        return self.denoiser(x, sigma)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs whose batch fits, by their correction."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: generate(replace(JOB, correction=name), folder / name) for name in ("none", "clamped")}


@pytest.mark.parametrize(("correction", "kind", "derivative"), [("none", "gpu", False), ("clamped", "cpu", True)])
def test_the_batch_is_split_and_the_files_are_those_of_the_whole(
    whole, tmp_path, monkeypatch, capsys, correction, kind, derivative
):
    network = None

    def load(*args, **kwargs):
        nonlocal network
        model = loaded(*args, **kwargs)
        network = Small(model.denoiser, 8, NO_MEMORY[kind], derivative)
        return replace(model, denoiser=network)

    loaded = models.load
    monkeypatch.setattr(models, "load", load)
    folder = generate(replace(JOB, correction=correction), tmp_path)
    assert max(network.seen[-3:]) <= 5
    assert "the network sees 5 images at a time, gamma is the batch's" in capsys.readouterr().err
    runs = whole[correction], folder
    one, other = (np.load(run / "samples.npz")["arr_0"].astype(int) for run in runs)
    assert np.abs(one - other).max() <= 1
    traces = [map(json.loads, (run / "trace.jsonl").read_text().splitlines()) for run in runs]
    for a, b in zip(*traces, strict=True):
        assert a["reason"] == b["reason"]
        assert a["gamma"] == pytest.approx(b["gamma"], rel=1e-9)
        assert a["moments"] == pytest.approx(b["moments"], rel=1e-9)
    stats = [json.loads((run / "run.json").read_text())["stats"][0] for run in runs]
    for name in ("nfe", "vjps", "batch"):
        assert stats[0][name] == stats[1][name]


def test_a_network_without_memory_for_one_image_is_refused(tmp_path, monkeypatch):
    loaded = models.load
    error = NO_MEMORY["cpu"]
    monkeypatch.setattr(
        models, "load", lambda *a, **k: replace(loaded(*a, **k), denoiser=Small(loaded(*a, **k).denoiser, 0, error))
    )
    with pytest.raises(InputError, match=r"no memory on cpu for one image at once .*: take a smaller batch or network"):
        generate(JOB, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "rule", ["literal", "energy(bands=random(2), significance=1.0)", "noise_consistent", "self_consistent"]
)
def test_every_rule_decides_from_the_whole_batch(rule):
    """In float64 on an exact law the parts agree with the whole to rounding; a part by itself decides otherwise."""
    generator = torch.Generator().manual_seed(5)
    means = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    law = GaussianMixture(torch.tensor([0.2, 0.3, 0.5]).double(), means, 0.2 * torch.eye(4).double().repeat(3, 1, 1))
    solver = Corrected(solvers.make("dpmpp_2m"), rule, divergence=Hutchinson(method="vjp"))

    def draw(solver, seeds):
        x = initial_noise(seeds, (4,), dtype=torch.float64)
        return sample(solver, law, x, grids.karras(3), generator=generators(seeds))

    whole, parts, alone = draw(solver, SEEDS), sample_parts(solver, split(SEEDS, 4), draw), draw(solver, SEEDS[:4])
    torch.testing.assert_close(parts.x, whole.x, rtol=1e-9, atol=1e-9)
    for a, b in zip(parts.trace, whole.trace, strict=True):
        assert a.reason == b.reason
        assert close(a, b)
    assert not all(close(a, b) for a, b in zip(alone.trace, whole.trace, strict=True))
    assert (parts.stats.nfe, parts.stats.batch) == (whole.stats.nfe, whole.stats.batch)


def close(record, other):
    return record.numbers == {name: pytest.approx(value, rel=1e-8, nan_ok=True) for name, value in other.numbers.items()}


def test_a_part_that_fails_ends_all():
    solver = Corrected("ddim", "literal", divergence=Hutchinson(method="vjp"))

    def draw(solver, seeds):
        solver.gather(torch.ones(len(seeds)))
        if 4 in seeds:
            raise KeyError(seeds)
        return solver.gather(torch.ones(len(seeds)))

    with pytest.raises(KeyError):
        sample_parts(solver, split(SEEDS, 4), draw)


def test_blocks_cover_the_batch():
    assert [list(block) for block in split(range(10), 4)] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert [list(block) for block in split(range(3), 10**9)] == [[0, 1, 2]]
    assert not memory_lacks(RuntimeError("shapes differ"))
    assert memory_lacks(MemoryError())
